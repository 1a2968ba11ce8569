r"""Passages as JSON Lines: one per line.

FlashRAG's form, ``{"id", "contents": "Title\ntext"}``, or ``{"id", "title", "text"}``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raggd.data.text import normal_text
from raggd.files import read_json_lines
from raggd.records import Passage, RaggdError


def read_lines(path: Path, name: str) -> Iterator[Passage]:
    """Stream passages from JSON Lines; they are kept as long as they are.

    Args:
        path: a ``.jsonl`` or ``.jsonl.gz`` file.
        name: of the file; a line without an id is named after it and its number.

    Yields:
        The passages, in the normal form of text; their source is what a line's ``source`` says.

    Raises:
        RaggdError: the file is damaged or holds none; a line is no passage, or an empty one.
    """
    number = 0
    try:
        for number, value in read_json_lines(path):
            yield _passage(value, f"{name}#{number}", f"{name}, line {number}")
    except RaggdError as error:  # by the name that the file has in its corpus
        raise RaggdError(str(error).replace(str(path), name)) from error
    if not number:
        raise RaggdError(f"{name} holds no passage: expected one JSON object per line.")


def _passage(value: dict[str, Any], fallback_id: str, where: str) -> Passage:
    held = {key: _text(value[key], key, where) for key in _KEYS if value.get(key) is not None}
    if "contents" in value:
        first, newline, rest = held.get("contents", "").partition("\n")
        title, text = (first.strip().strip('"'), rest) if newline else ("", first)
    elif "text" in value:
        title, text = held.get("title", ""), held.get("text", "")
    else:
        raise RaggdError(
            f'{where}: not a passage. Expected {{"id", "contents": "Title\\ntext"}} or '
            f'{{"id", "title", "text"}}, found the keys {", ".join(value) or "(none)"}.'
        )
    name = held.get("id") or fallback_id
    if not text.strip():
        raise RaggdError(f"{where}: passage '{name}' is empty. Give it a text or remove the line.")
    return Passage(name, text.strip(), title.strip(), held.get("source", ""))


_KEYS = ("id", "contents", "title", "text", "source")


def _text(value: Any, key: str, where: str) -> str:
    if isinstance(value, str):
        return value if key == "id" else normal_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise RaggdError(f'{where}: "{key}" is a {type(value).__name__}: expected text.')
