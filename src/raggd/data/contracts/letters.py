"""Changes of an answer's own letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping


def _joined(text: str, mark: str) -> str:
    return re.sub(r"\W+", mark, text.lower().replace("'", "")).strip(mark)


LETTERS: Mapping[str, Callable[[str], str]] = {
    "same": lambda text: text,
    "upper": str.upper,
    "lower": str.lower,
    "slug": lambda text: _joined(text, "-"),
    "snake": lambda text: _joined(text, "_"),
}
"""By name. Each leaves its own result as it is."""
