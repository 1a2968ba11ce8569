"""Reading what examples share: their `AnswerTemplate`, and what they are without it."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product

from raggd.data.answers import contains_answer, held
from raggd.data.closed import Closed, are_grades, closed_of, line_of
from raggd.data.pieces import NAMES, VALUE, Piece, is_part, letters_of, pieces_of
from raggd.data.shown import parsed_json, refusals_of
from raggd.data.template import (
    ASKED,
    NUMBER,
    REFUSAL,
    STOPS,
    AnswerTemplate,
    Several,
    kind_of,
    marked,
    whole_sentences,
)
from raggd.data.text import in_word, is_boundary
from raggd.records import Demonstration

READING = "12"
"""Raised when the same examples are read otherwise, so that stored states are made again."""
_MOST_NAMES = 2
_JSON_VALUE = re.compile(
    r':\s*(?:"(?P<text>(?:[^"\\]|\\.)*)"|(?P<number>-?\d+(?:\.\d+)?)(?=\s*[,}]))'
)
_BETWEEN = re.compile(r"[^\w\s,.'’-]|[\n\t]|',")  # what tells that a value ends and another begins
_LONGEST = 600  # characters of an answer of several values
_LISTING = frozenset(["", *";|/+&·•"])  # between the items of a list
_UNIT = re.compile(
    r"(?:[A-Z]{3} |[$£€¥] ?)?0(?:[.,]0+)?"
    r"(?: ?(?:[^\W\d_]{1,4}|percent|[%$£€¥]|°[CF]?)(?: ?/ ?\w+| p\. ?a\.)?)?"
)


def template_of(
    demonstrations: Sequence[Demonstration],
) -> tuple[AnswerTemplate | None, tuple[Demonstration, ...]]:
    """Return the template that answers share, and the demonstrations as they are without it.

    Answers are left as they are where they share nothing, where passages hold less than most of the
    values, or others are named than those: then it is the model that follows the examples.
    None where there is no refusal either.
    """
    shown, refusals = tuple(demonstrations), refusals_of(demonstrations)
    answered, told = [d for d in shown if d.answer.strip() not in refusals], refusals
    again = [replace(d, answer=marked(d.question, d.answer)) for d in answered]
    if again and all(ASKED in d.answer for d in again):  # every answer says its own question again
        answered = again
        pairs = [(d.question, d.answer.strip()) for d in shown if d.answer.strip() in refusals]
        told = tuple(dict.fromkeys(marked(*pair) for pair in pairs))
    read = _read(answered) if answered else AnswerTemplate()
    values = [read.value_of(d.answer) or "" for d in answered]
    template, before = _closed(read, values, answered) or _open(read, values, answered)
    if template == AnswerTemplate():
        template = replace(template, several=several_of(answered))
    template = replace(template, refusals=told if answered else ())
    if template == AnswerTemplate():
        return None, shown
    plain = iter(before)
    return replace(template, given=tuple((d.question, d.answer) for d in shown)), tuple(
        replace(
            d,
            question=template.asked(d.question),
            answer=REFUSAL if d.answer.strip() in refusals else next(plain),
        )
        for d in shown
    )


def _closed(
    template: AnswerTemplate, values: Sequence[str], answered: Sequence[Demonstration]
) -> tuple[AnswerTemplate, list[str]] | None:
    # the template whose values are options or labels, and the values as the model reads them
    whole = [d.answer.strip() for d in answered]
    # one is part of another, 'supported', 'not supported', or all share the letter of a scale
    if not all(values) or are_grades(whole):
        template, values = AnswerTemplate(), whole
    lines = set(map(line_of, answered))
    if len(lines) == 1 and (line := lines.pop()):
        before, between, behind = line
        pieces = (Piece("", before), VALUE, Piece("", behind))
        template = replace(template, pieces=tuple(p for p in pieces if p.kind or p.text))
        closed: Closed | None = Closed("line", between=between)
        values = [template.value_of(d.answer) or "" for d in answered]
    else:
        closed = closed_of(values, answered)
    if closed is None:
        return None
    pairs = zip(values, answered, strict=True)
    return replace(template, closed=closed), [closed.read(v, d.question) for v, d in pairs]


def _open(
    template: AnswerTemplate, values: Sequence[str], answered: Sequence[Demonstration]
) -> tuple[AnswerTemplate, list[str]]:
    # the template whose values are found in passages, and the values as passages spell them
    letters, before = letters_of(values, answered)
    template = replace(template, letters=letters, quotes=_quoted(values, answered))
    if not _settled(template, before, answered):
        template, before = AnswerTemplate(), [d.answer for d in answered]
    numbers = _are_numbers(template, before, answered)
    # labels come back and are short; one example shows too little
    told = not template.quotes and 1 < len(set(before)) == len(before)
    pairs = zip(before, answered, strict=True)
    parts = told and all(len(value) > 1 and is_part(value, d.passages) for value, d in pairs)
    return replace(template, extractive=parts or numbers, numbers=numbers), before


def _read(answered: Sequence[Demonstration]) -> AnswerTemplate:
    pieces = tuple(pieces_of(answered))
    if pieces.count(VALUE) != 1 or pieces.count(Piece("t")) > _MOST_NAMES:
        return AnswerTemplate()
    written = len(pieces) > 1 and all(parsed_json(d.answer) is not None for d in answered)
    template = _with_stops(AnswerTemplate(pieces, json=written), answered)
    for names in product(NAMES, repeat=pieces.count(Piece("t"))):
        named = replace(template, names=names)
        if all(named.cited_in(d.answer, d.passages) for d in answered):
            return named
    return template


def _with_stops(template: AnswerTemplate, answered: Sequence[Demonstration]) -> AnswerTemplate:
    # a full stop behind values that are sentences of their passages is theirs
    at = template.pieces.index(VALUE) + 1
    before, behind = template.pieces[:at], template.pieces[at:]
    stop = behind[0].text if behind else ""
    if stop[:1] not in STOPS or (len(stop) == 1 and behind[1:]):
        return template
    rest = [Piece("", stop[1:])] if stop[1:] else []
    longer = replace(template, pieces=(*before, *rest, *behind[1:]))
    values = [longer.value_of(d.answer) or "" for d in answered]
    return longer if _quoted(values, answered) == "sentence" else template


def _quoted(values: Sequence[str], answered: Sequence[Demonstration]) -> str:
    pairs = list(zip(values, answered, strict=True))
    if len(pairs) < 2:
        return ""
    if all(value in whole_sentences(d.passages) for value, d in pairs):
        return "sentence"
    titled = all(any(value == p.title for p in d.passages) for value, d in pairs)
    # a title that the text holds, too, may be meant as what the text says
    return "title" if titled and not all(held(value, d) for value, d in pairs) else ""


def _are_numbers(
    template: AnswerTemplate, values: Sequence[str], answered: Sequence[Demonstration]
) -> bool:
    # of JSON, where no word could stand; else bare or beside a unit, which words would say again
    if not values or not all(NUMBER.fullmatch(v) and ":" not in v for v in values):
        return False
    if len(template.pieces) < 2:  # the number of a passage is none of its own
        told = len(values) > 2 and max(map(len, values)) > 1
        return told and all(is_part(v, d.passages) for v, d in zip(values, answered, strict=True))
    if template.json:
        return parsed_json(template.joined({"x": "x", "n": "1"})) is None
    return bool(_UNIT.fullmatch(template.joined({"x": "0", "n": "1"})))


def _settled(
    template: AnswerTemplate, values: Sequence[str], answered: Sequence[Demonstration]
) -> bool:
    # every value on one line, most of them in a passage that their answer names: retrieval may
    # have missed one; a number that all passages hold is a second value that happens to be alike
    if not all(value.strip() and "\n" not in value for value in values):
        return False
    cited = [template.cited_in(d.answer, d.passages) for d in answered]
    found = [
        any(contains_answer(p.text, [value]) for p in passages)
        for value, passages in zip(values, cited, strict=True)
    ]
    literal = template.joined({"x": " ", "n": " "})
    numbers = re.findall(r"\d+", re.sub(r"\[\^\d+\]", "", literal))  # but for marks of notes
    alike = any(all(held(number, d) for d in answered) for number in numbers)
    enough = sum(found) > len(found) / 2 if len(found) > 2 else all(found)
    told = enough or template.letters != "same" or bool(template.quotes)
    return told and all(cited) and not alike


def several_of(answered: Sequence[Demonstration]) -> Several | None:
    """Return what examples write around several values; None where they do not all do so alike."""
    answers = [d.answer.strip() for d in answered]
    if len(answers) < 2 or max(map(len, answers)) > _LONGEST:
        return None
    parsed = list(map(parsed_json, answers))
    if any(isinstance(one, list) for one in parsed):
        return None
    json = None not in parsed
    parts = [_parts(a, d, json) for a, d in zip(answers, answered, strict=True)]
    if len(set(map(len, parts))) > 1:
        return None
    literals, kinds = [""], list[str]()
    for number, column in enumerate(zip(*parts, strict=True)):
        if len(set(column)) == 1:  # what is the same in all is no value
            literals[-1] += column[0]
            continue
        kind = kind_of(column, answered) if number % 2 else None
        if kind is None:
            return None
        kinds.append(kind)
        literals.append("")
    between = literals[1:-1]
    if not between or not all(map(_BETWEEN.search, between)) or (not json and _is_list(literals)):
        return None
    return Several(tuple(literals), tuple(kinds), json)


def _parts(answer: str, shown: Demonstration, json: bool) -> list[str]:
    # what stands around values, and values, in turn
    found = _JSON_VALUE.finditer(answer) if json else ()
    cuts = [at for match in found for at in match.span(match.lastgroup or 0)]
    cuts = cuts if json else _held_cuts(answer, shown)
    return [answer[start:end] for start, end in pairwise([0, *cuts, len(answer)])]


def _is_list(literals: Sequence[str]) -> bool:
    # of which another may have more items, or fewer: alike lines, two values and the mark of a list
    first, *between, last = literals
    lines = set(between) == {f"\n{first}"}
    listed = len(between) == 1 and between[0].strip() in _LISTING
    return lines or (listed and not first and not re.search(r"[^\w\s.]", last))


def _held_cuts(answer: str, shown: Demonstration) -> list[int]:
    # from left to right the longest runs of words that passages hold
    told = "\n".join(" ".join(f"{p.title}\n{p.text}".split()) for p in shown.passages)
    cuts: list[int] = []
    at = 0
    while at < len(answer):
        end = _end(answer, at, told, shown)
        cuts += [at, end] if end > at else []
        at = max(end, at + 1)
    return cuts


def _end(answer: str, at: int, told: str, shown: Demonstration) -> int:
    if not (is_boundary(answer, at) and in_word(answer[at])):
        return at
    line = answer.find("\n", at)
    ends = range(at + 1, (len(answer) if line < 0 else line) + 1)
    # the longest that stands there: what goes on from what does not stand there does not either
    last = at + bisect_left(ends, True, key=lambda end: answer[at:end] not in told)
    for end in range(last, at, -1):
        whole = is_boundary(answer, end) and in_word(answer[end - 1])
        if whole and is_part(answer[at:end], shown.passages):
            return end
    return at
