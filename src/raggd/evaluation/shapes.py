"""How answers are put together: JSON of one outline, a list, literals around what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from raggd.data.pieces import cited_names, pieces_of, read_answer
from raggd.data.shown import parsed_json
from raggd.records import Demonstration

_BULLET = re.compile(r"\s*(?:[-*+•]|\d+[.)])\s+")

Values = Callable[[str], tuple[str, ...] | None]
"""What an answer holds in the places that differ; None: it is written otherwise."""


def shape_of(answered: Sequence[Demonstration]) -> tuple[str, Values]:
    """Return how answers are put together, in words, and what gives an answer's values."""
    answers = [d.answer.strip() for d in answered]
    parsed = [parsed_json(answer) for answer in answers]
    if all(value is not None for value in parsed):
        outlines = {repr(_outline(value)) for value in parsed}
        return _json_shape(outlines, answered, parsed)
    lines = [answer.split("\n") for answer in answers]
    marks = {m.group() if (m := _BULLET.match(line)) else "" for part in lines for line in part}
    numbered = all(mark.strip()[:-1].isdigit() for mark in marks)
    if max(map(len, lines)) > 1 and "" not in marks and (len(marks) == 1 or numbered):
        return f"lines that begin with '{min(marks).strip()}'", _list_of(marks, numbered)
    pieces = pieces_of(answered)
    shown = {"x": "...", "n": "<n>", "t": "<t>"}
    text = "".join(shown[kind] if kind else text for kind, text in pieces)

    def values(answer: str) -> tuple[str, ...] | None:
        found = read_answer(pieces, answer)
        return None if found is None else tuple(p.text for p in found if p.kind == "x")

    return ("" if text == "..." else f"written as '{text}'"), values


def _outline(value: Any) -> Any:
    # keys and types, whatever the values and however many items a list has
    if isinstance(value, dict):
        return {key: _outline(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_outline(inner) for inner in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def _leaves(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [leaf for item in inner for leaf in _leaves(item)]
    return [str(value)]


def _json_shape(
    outlines: set[str], answered: Sequence[Demonstration], parsed: Sequence[Any]
) -> tuple[str, Values]:
    # a leaf that names a passage in every demonstration is a citation, no content
    columns = list(zip(*map(_leaves, parsed), strict=False)) if len(outlines) == 1 else []
    cites = {
        i
        for i, column in enumerate(columns)
        if len(columns) > 1
        and all(v in cited_names(d.passages) for v, d in zip(column, answered, strict=True))
    }

    def values(answer: str) -> tuple[str, ...] | None:
        value = parsed_json(answer)
        if value is None or (len(outlines) == 1 and repr(_outline(value)) not in outlines):
            return None
        leaves = [leaf for i, leaf in enumerate(_leaves(value)) if i not in cites]
        return tuple(leaves) or None

    keys = parsed[0] if isinstance(parsed[0], dict) and len(outlines) == 1 else ()
    return "JSON" + (f" with {', '.join(repr(k) for k in keys)}" if keys else ""), values


def _list_of(marks: set[str], numbered: bool) -> Values:
    def values(answer: str) -> tuple[str, ...] | None:
        found = [(_BULLET.match(line), line) for line in answer.split("\n")]
        if not all(m and (numbered or m.group() in marks) for m, _ in found):
            return None
        if numbered and any(m and not m.group().strip()[:-1].isdigit() for m, _ in found):
            return None
        return tuple(line[m.end() :].strip() for m, line in found if m)

    return values
