"""Answers of several values: what all examples write between them, and that passages hold each.

`{"role": "night porter", "since": 2021}`, `Veenstra (8 bar)`, `- Maker: ...` and `- Flow: ...` on
two lines: what stands between the values is the same in all, so it is written for the model, and
each value is held to the words of its passages.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raggd.data.contracts.letters import FIGURES
from raggd.data.pieces import is_part
from raggd.data.shown import parsed_json
from raggd.data.text import in_word, is_boundary
from raggd.records import Demonstration

_JSON_VALUE = re.compile(
    r':\s*(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<number>-?\d+(?:\.\d+)?)(?=\s*[,}]))'
)
_KINDS = {
    "number": re.compile(r"(?<![\w.,])-?\d+(?:\.\d+)?(?![\w%]|[.,]\d)"),
    "measure": re.compile(r"(?<![\w.,])\d[\d.,]*\s?(?:[^\W\d_]+|[%€$£°])(?:/[^\W\d_]+)?"),
}
"""Of values that are never a part of something longer."""
_MARK = re.compile(r"[.,;:!?()\[\]](?=\s|$)|(?<=\s)[(\[]")
_BETWEEN = re.compile(r"[^\w\s,.'’-]|\n")  # what tells that one value ends and another begins
_LONGEST = 600  # characters of an answer
_FEW = 2  # marks between values, and characters of one

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Several:
    """What stands around the values of an answer."""

    literals: tuple[str, ...]  # before the first, between two, behind the last
    # of each value: a key of `_KINDS` or `FIGURES`, ``part`` of what stands between two marks, or
    # of ``any`` text
    kinds: tuple[str, ...]
    json: bool = False  # whether the answer is JSON, whose values hold no quotes

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Several:
        """Return what `dataclasses.asdict` gave the fields of."""
        return cls(tuple(fields["literals"]), tuple(fields["kinds"]), fields["json"])

    def __str__(self) -> str:
        """Return it in words."""
        return f"written as '{'...'.join(self.literals)}'"

    def texts(self, number: int, passages: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return what a value may be a part of, and what it may be the whole of."""
        kind = self.kinds[number]
        if kind in _KINDS:
            return [], list(dict.fromkeys(n for p in passages for n in _KINDS[kind].findall(p)))
        if kind in FIGURES:
            figure = FIGURES[kind]
            return [], list(
                dict.fromkeys(figure.change(n) for p in passages for n in figure.among(p))
            )
        cuts = [_MARK.pattern] * (kind == "part") + [r'["\\]'] * self.json
        return [part for text in passages for part in _cut(cuts, text)], []


def _cut(cuts: Sequence[str], text: str) -> list[str]:
    return re.split("|".join(cuts), text) if cuts else [text]


def several_of(answered: Sequence[Demonstration]) -> Several | None:
    """Return what examples write around several values; None where they do not all do so alike."""
    answers = [d.answer.strip() for d in answered]
    if len(answers) < 2 or max(map(len, answers)) > _LONGEST:
        return None
    parsed = list(map(parsed_json, answers))
    if any(isinstance(one, list) for one in parsed):
        return None
    json = all(isinstance(one, dict) for one in parsed)
    find = _json_spans if json else _held_spans
    spans = [find(answer, d) for answer, d in zip(answers, answered, strict=True)]
    if len({len(found) for found in spans}) > 1:
        return None
    # what is the same in all is none of theirs
    columns = [
        column
        for column in zip(*spans, strict=True)
        if len({a[slice(*span)] for a, span in zip(answers, column, strict=True)}) > 1
    ]
    if len(columns) < 2:
        return None
    rows = list(zip(*columns, strict=True))
    written = {_around(answer, row) for answer, row in zip(answers, rows, strict=True)}
    values = [[a[slice(*s)] for a, s in zip(answers, c, strict=True)] for c in columns]
    kinds = [_kind(column, answered) for column in values]
    literals = written.pop()
    between = literals[1:-1]
    told = json or not _is_list(literals)
    if written or not all(kinds) or not told or not all(map(_BETWEEN.search, between)):
        return None
    return Several(literals, tuple(filter(None, kinds)), json)


def _is_list(literals: Sequence[str]) -> bool:
    # of which another may have more items, or fewer: alike lines, two values and one mark
    first, *between, _ = literals
    lines = set(between) == {f"\n{first}"}
    return lines or (not first and len(between) < _FEW and len(between[0].strip()) < _FEW)


def _kind(values: Sequence[str], answered: Sequence[Demonstration]) -> str | None:
    pairs = list(zip(values, answered, strict=True))
    if not all(is_part(value, d.passages) for value, d in pairs):
        texts = [(value, "\n".join(p.text for p in d.passages)) for value, d in pairs]
        figured = (
            name
            for name, figure in FIGURES.items()
            if all(re.fullmatch(figure.written, value) for value in values)
            and all(value in map(figure.change, figure.among(text)) for value, text in texts)
        )
        return next(figured, None)
    told = (name for name, kind in _KINDS.items() if all(map(kind.fullmatch, values)))
    return next(told, "any" if any(map(_MARK.search, values)) else "part")


def _around(answer: str, spans: Sequence[Span]) -> tuple[str, ...]:
    ends = [0, *(end for _, end in spans)]
    begins = [*(start for start, _ in spans), len(answer)]
    return tuple(answer[end:start] for end, start in zip(ends, begins, strict=True))


def _json_spans(answer: str, _: Demonstration) -> list[Span]:
    found = _JSON_VALUE.finditer(answer)
    return [match.span(match.lastgroup or 0) for match in found]


def _held_spans(answer: str, shown: Demonstration) -> list[Span]:
    # from left to right the longest runs of words that passages hold
    told = "\n".join(" ".join(f"{p.title}\n{p.text}".split()) for p in shown.passages)
    spans: list[Span] = []
    at = 0
    while at < len(answer):
        end = next(_ends(answer, at, told, shown), at)
        spans += [(at, end)] if end > at else []
        at = max(end, at + 1)
    return spans


def _ends(answer: str, at: int, told: str, shown: Demonstration) -> Iterator[int]:
    if not (is_boundary(answer, at) and in_word(answer[at])):
        return
    line = answer.find("\n", at)
    ends = range(at + 1, (len(answer) if line < 0 else line) + 1)
    # the longest that stands there: what goes on from what does not stand there does not either
    last = at + bisect_left(ends, True, key=lambda end: answer[at:end] not in told)
    for end in range(last, at, -1):
        whole = is_boundary(answer, end) and in_word(answer[end - 1])
        if whole and is_part(answer[at:end], shown.passages):
            yield end
