"""Changes of an answer's own letters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from raggd.data.contracts.figures import FIGURES


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


def _initials(text: str) -> str:
    words = [word for word in text.split() if word[0].isalnum()]
    return text if text.isupper() and len(words) < 2 else "".join(w[0].upper() for w in words)


SHORTENED: Mapping[str, Callable[[str], str]] = {
    "first-word": lambda text: (text.split() or [""])[0],
    "last-word": lambda text: (text.split() or [""])[-1],
    "initials": _initials,
}
"""What may be left of a name. Each leaves its own result as it is."""
CAPITALS: Mapping[str, Callable[[str], str]] = {
    "capital": lambda text: text[:1].upper() + text[1:],
    "titled": lambda text: re.sub(r"(?<![\w'’])[^\W\d_]", lambda letter: letter[0].upper(), text),
}
"""Capitals at the beginning, or of every word. Each leaves its own result as it is."""


def _dotted(text: str) -> str:
    words = [word for word in re.split(r"[\s-]+", text) if word[:1].isupper()]
    done = re.fullmatch(r"\w(?:\.\w)+\.?", text)  # the last dot stands behind it
    return text if done or not words else ".".join(word[0] for word in words)


def _last_first(text: str) -> str:
    first, _, last = text.rpartition(" ")
    return text if not first or "," in text else f"{last}, {first}"


def _camel(text: str) -> str:
    words: list[str] = re.findall(r"\w+", text) or [""]
    first, *others = words
    first = first.lower() if first.isupper() else first[:1].lower() + first[1:]
    return first + "".join(word[0].upper() + word[1:] for word in others)


RESPELLED: Mapping[str, Callable[[str], str]] = {
    "joined": lambda text: re.sub(r"\W+", "", text),
    "camel": _camel,
    "dotted": _dotted,
    "last-first": _last_first,
}
"""Names as hashtags, identifiers, lists of authors write them. Each leaves its result as it is."""
FIGURED = {name: figure.change for name, figure in FIGURES.items()}
CHANGES = {**LETTERS, **SHORTENED, **CAPITALS, **RESPELLED, **FIGURED}
