"""How answers are put together: JSON of one outline, a list, literals around what differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from raggd.data.answers import contains_answer
from raggd.data.shown import parsed_json, shared_ends
from raggd.records import Demonstration, Passage

_MARK = re.compile(r"[^\w\s]|\n")
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
    pieces = _template(answered)
    if are_sentences(answers) and pieces in ([_Slot("x")], [_Slot("x"), "."]):
        pieces = [_Slot("x")]
    text = "".join(p if isinstance(p, str) else f"<{p.kind}>" for p in pieces)
    slots = {"x": "(.+?)", "n": r"\d+", "t": r"[^\n]+?"}
    pattern = re.compile(
        "".join(re.escape(p) if isinstance(p, str) else slots[p.kind] for p in pieces), re.DOTALL
    )

    def values(answer: str) -> tuple[str, ...] | None:
        match = pattern.fullmatch(answer)
        return match and match.groups()

    return ("" if text == "<x>" else f"written as '{text.replace('<x>', '...')}'"), values


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
        and all(v in _cited_names(d.passages) for v, d in zip(column, answered, strict=True))
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


class _Slot(NamedTuple):
    kind: str  # x: content; n, t: the number or name of a passage


_Pieces = list["str | _Slot"]


def _template(answered: Sequence[Demonstration]) -> _Pieces:
    answers = [d.answer.strip() for d in answered]
    if len(set(answers)) == 1 or all(map(verbatim, answers, answered)):
        return [_Slot("x")]
    columns = [answers]
    if len({answer.count("\n") for answer in answers}) == 1:
        columns = [list(column) for column in zip(*(a.split("\n") for a in answers), strict=True)]
    pieces: _Pieces = []
    for number, column in enumerate(columns):
        pieces += [*(["\n"] if number else []), *_cited(column, answered)]
    kinds = [piece.kind for piece in pieces if not isinstance(piece, str)]
    if "x" not in kinds:  # the name or number is what is asked for
        pieces = [_Slot("x") if not isinstance(p, str) else p for p in pieces]
    return pieces if kinds else [_Slot("x")]


def verbatim(text: str, shown: Demonstration) -> bool:
    """Return whether a demonstration's passages hold a text as it is written."""
    return any(text in passage.text for passage in shown.passages)


def _cited_names(passages: Sequence[Passage]) -> set[str]:
    names = {part for p in passages for part in (p.title, p.source, p.source.rpartition("/")[2])}
    files = {m.group(1) for p in passages if (m := re.search(r"\(([^()]+\.\w+)\)$", p.title))}
    return {n for n in names | files if n} | {str(i + 1) for i in range(len(passages))}


def _cited(column: Sequence[str], answered: Sequence[Demonstration]) -> _Pieces:
    # a column of texts in which each names a passage of its own, if there is one: split there
    for kind, last in (("t", True), ("n", True), ("t", False), ("n", False)):
        spans = [_citation(t, d, kind, last) for t, d in zip(column, answered, strict=True)]
        if any(span is None for span in spans):
            continue
        left = [t[: s[0]] for t, s in zip(column, spans, strict=True) if s]
        right = [t[s[1] :] for t, s in zip(column, spans, strict=True) if s]
        ends, begins = _shared(left)[1], _shared(right)[0]
        alone = not any(left) or not any(right)
        marked = _MARK.search(ends + begins) or (alone and not any(left) and not any(right))
        if marked and (ends or not any(left)) and (begins or not any(right)):
            return [*_wrapped(left, answered), _Slot(kind), *_wrapped(right, answered)]
    return _wrapped(column, answered)


def _citation(text: str, shown: Demonstration, kind: str, last: bool) -> tuple[int, int] | None:
    names = _cited_names(shown.passages)
    kept = [n for n in names if n.isdigit() == (kind == "n")]
    spans = [
        m.span()
        for name in kept
        for m in re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        if len(name) > 2 or kind == "n"
    ]
    if not spans:
        return None
    return max(spans, key=lambda s: (s[1], s[1] - s[0])) if last else min(spans)


def _shared(texts: Sequence[str]) -> tuple[str, str]:
    return (texts[0], texts[0]) if len(set(texts)) == 1 else shared_ends(texts)


def _wrapped(column: Sequence[str], answered: Sequence[Demonstration]) -> _Pieces:
    if not any(column):
        return []
    if len(column) > 1 and len(set(column)) == 1:
        return [column[0]]
    start, end = shared_ends(column) if len(column) > 1 else ("", "")
    start = _without_entity(start, end, column, answered, r"\w[\w,.'-]*[\s_-]+$|\w+[_-]$")
    end = _without_entity(start, end, column, answered, r"^[\s_-]+\w[\w,.'-]*")
    return [*([start] if start else []), _Slot("x"), *([end] if end else [])]


def _without_entity(
    start: str, end: str, column: Sequence[str], answered: Sequence[Demonstration], word: str
) -> str:
    # words that stand beside the entity in the passages too are its own: 'the', 'University of'
    behind = word.startswith("^")
    while match := re.search(word, end if behind else start):
        cut = match.end() if behind else match.start()
        first, last = (len(start), end[cut:]) if behind else (cut, end)
        bare = [text[first : len(text) - len(last)] for text in column]
        if not all(map(held, bare, answered)):
            break
        start, end = (start, last) if behind else (start[:cut], end)
    return end if behind else start


def held(text: str, shown: Demonstration) -> bool:
    """Return whether a demonstration's passages hold a text as an answer."""
    return contains_answer("\n".join(p.text for p in shown.passages), [text])


def are_sentences(texts: Sequence[str]) -> bool:
    """Return whether all texts are whole sentences."""
    return all(len(text.split()) > 3 and re.search(r"[.!?]\W*$", text) for text in texts)
