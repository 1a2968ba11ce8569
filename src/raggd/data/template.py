"""What all examples' answers share around their values: taken out before reading, put back after.

Three answers in one JSON object, one sentence or one way to cite say with certainty what stands
around the value, and three in capitals how its letters are changed. A small model need not copy
that: the examples are shown to it without, as their passages spell the values, and what it answers
is put into the same place. So it is with a refusal: its words are the user's, and whether to refuse
must not depend on them. What three answers do not settle is left to the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from raggd.data.answers import contains_answer
from raggd.data.closed import Closed, closed_of, line_of
from raggd.data.contracts.letters import CHANGES, SHORTENED
from raggd.data.contracts.trim import sentences
from raggd.data.pieces import NAMES, VALUE, Piece, held, is_part, letters_of, pieces_of, read_answer
from raggd.data.shown import is_refusal, parsed_json, refusals_of
from raggd.records import Demonstration, Passage

READING = "6"
"""Raised when the same examples are read otherwise, so that stored states are made again."""
_FEW = 4  # characters that stand in many an answer
_MOST_NAMES = 2
_STOPS = frozenset(".!?。！？")
_ASKED = "\ufdd0"  # no character: stands for the question where answers say it again
_UNIT = re.compile(r"(?:[A-Z]{3} |[$£€¥] ?)?0(?: ?(?:[^\W\d_]{1,4}|[%$£€¥°]))?")
NUMBER = re.compile(r"(?<!\w)-?\d+(?:,\d{3})*(?:\.\d+)?")
REFUSAL = "not in the passages"
"""What the model reads and writes in place of the refusal that examples show."""


@dataclass(frozen=True)
class AnswerTemplate:
    """How an answer is written around its value."""

    pieces: tuple[Piece, ...] = (VALUE,)  # one of them is the value
    letters: str = "same"  # the change of the value's own letters, a key of `CHANGES`
    names: tuple[str, ...] = ()  # what a passage is called by, keys of `NAMES`, for each place
    json: bool = False  # whether the answer is JSON, so that values are escaped
    # what the value is word for word: a ``sentence`` of a passage, or its ``title``
    quotes: str = ""
    # whether every value stands in its passages as it is written, so that an answer is held
    # to the words of its own
    extractive: bool = False
    numbers: bool = False  # whether the value is a number beside its unit, or of JSON
    closed: Closed | None = None  # what values are chosen from: options or labels
    refusals: tuple[str, ...] = ()  # as they were shown; the model writes `REFUSAL` for the first
    given: tuple[tuple[str, str], ...] = ()  # questions and answers of the examples, as they were

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> AnswerTemplate:
        """Return the template whose fields `dataclasses.asdict` gave."""
        pieces = tuple(Piece(*pair) for pair in fields["pieces"])
        told = {name: tuple(fields[name]) for name in ("names", "refusals")}
        told["given"] = tuple(map(tuple, fields["given"]))
        closed = Closed.of(fields["closed"]) if fields.get("closed") else None
        return cls(**{**fields, **told, "pieces": pieces, "closed": closed})

    @property
    def rewrites(self) -> bool:
        """Whether an answer is not written as the model says it."""
        labels = self.closed is not None and not self.closed.options
        plain = replace(self, extractive=False, given=(), closed=None if labels else self.closed)
        return plain != AnswerTemplate()

    def __str__(self) -> str:
        """Return it in words; empty where nothing but a refusal is settled.

        >>> str(AnswerTemplate((Piece("", "It is "), VALUE, Piece("", " ["), Piece("n")), "upper"))
        "written as 'It is ... [n', in upper letters"
        """
        text = self.joined({"x": "...", "n": "n"}, self.names)
        text = text.replace(_ASKED, "question")
        said = [f"written as '{text}'"] if len(self.pieces) > 1 else []
        kind = "alone" if self.letters in SHORTENED else "letters"
        said += [f"in {self.letters} {kind}"] if self.letters != "same" else []
        said += [f"the {self.quotes} of a passage"] if self.quotes else []
        said += ["in words of the passages"] if self.extractive else []
        said += [str(self.closed)] if self.closed else []
        return ", ".join(said)

    def asked(self, question: str) -> str:
        """Return a question as the model reads it."""
        return self.closed.asked(question) if self.closed else question

    def fill(self, value: str, passages: Sequence[Passage] = ()) -> str:
        """Write an answer; a passage named in it is the first that holds the value.

        >>> citing = AnswerTemplate((VALUE, Piece("", " ["), Piece("n"), Piece("", "]")))
        >>> citing.fill("Rome", [Passage("a", "Oslo"), Passage("b", "Rome")])
        'Rome [2]'
        """
        text = CHANGES[self.letters](value)
        found = NUMBER.search(text) if self.numbers else None
        text = found[0] if found else text
        if {piece.kind for piece in self.pieces} & {"n", "t"} and not passages:
            return text  # nothing to name
        at = _best(value, [p.text for p in passages]) if passages else 0
        names = [NAMES[name](passages[at]) for name in self.names] if passages else []
        slots = {"x": self._unmarked(text), "n": str(at + 1)}
        if self.json:
            slots = {kind: json.dumps(t, ensure_ascii=False)[1:-1] for kind, t in slots.items()}
            names = [json.dumps(name, ensure_ascii=False)[1:-1] for name in names]
        written = self.joined(slots, names)
        if self.json and parsed_json(written) is None:  # the examples had numbers there
            told = (slots["x"].replace(",", ""), f'"{slots["x"]}"')
            texts = [self.joined({**slots, "x": each}, names) for each in told]
            written = next((t for t in texts if parsed_json(t) is not None), texts[-1])
        return written

    def _unmarked(self, text: str) -> str:
        # without the full stop that the template writes behind it
        behind = self.pieces[self.pieces.index(VALUE) + 1 :]
        mark = behind[0].text[:1] if behind else ""
        return (mark in _STOPS and text.rstrip(mark)) or text

    def joined(self, slots: Mapping[str, str], names: Sequence[str] = ()) -> str:
        """Return the literals with what stands in each kind of slot; names in their order."""
        left = iter(names)
        named = (
            next(left, "") if kind == "t" else slots.get(kind, text) for kind, text in self.pieces
        )
        return "".join(named)

    def write(
        self,
        answer: str,
        passages: Sequence[Passage] = (),
        question: str = "",
        asked: str = "",  # the question alone, without the one before it
    ) -> str:
        """Write what a model answered, in the template or without it, as the examples are written.

        A refusal comes out as it was shown, an option of the question by its marker.
        """
        asked = asked or question
        answer = self.without(asked, answer)
        for shown in self.refusals:
            if is_refusal(answer, (REFUSAL, shown)):
                return _asked_again(shown, asked)
        value = self.value_of(answer)
        if value is None:  # a part of it may stand there
            first, last = self.pieces[0].text.strip(), self.pieces[-1].text.strip()
            value = answer.strip().removeprefix(first).removesuffix(last).strip()
        if self.closed:
            value = self.closed.written(value, question)
        if self.quotes and value and passages:
            value = _quote(self.quotes, value, passages)
        return _asked_again(self.fill(value, passages) if value else answer, asked)

    def refusals_to(self, question: str) -> tuple[str, ...]:
        """Return the refusals as they are written for a question, which they may say again."""
        return tuple(_asked_again(shown, question) for shown in self.refusals)

    def without(self, question: str, answer: str) -> str:
        """Return an answer with a mark for the question, where the template says it again."""
        again = any(_ASKED in piece.text for piece in self.pieces)
        return _marked(question, answer) if again else answer

    def value_of(self, answer: str) -> str | None:
        """Return what stands in the place of the value; None where the answer is not so written."""
        return next(iter(self._slots("x", answer)), None)

    def cited_in(self, answer: str, passages: Sequence[Passage]) -> list[Passage]:
        """Return the passages that an answer names; all of them where the template names none."""
        if not {piece.kind for piece in self.pieces} & {"n", "t"}:
            return list(passages)
        number, names = self._slots("n", answer), self._slots("t", answer)
        return [
            passage
            for i, passage in enumerate(passages, start=1)
            if number in ([], [str(i)]) and names == [NAMES[name](passage) for name in self.names]
        ]

    def _slots(self, kind: str, answer: str) -> list[str]:
        found = [part.text for part in read_answer(self.pieces, answer) or () if part.kind == kind]
        with suppress(ValueError):
            return [str(json.loads(f'"{text}"')) for text in found] if self.json else found
        return []


def _quote(kind: str, text: str, passages: Sequence[Passage]) -> str:
    titles = [p.title for p in passages]
    if kind == "title":
        return text if text in titles else titles[_best(text, [p.text for p in passages])]
    parts = _whole_sentences(passages)
    return parts[_best(text, parts)] if parts else text


def _whole_sentences(passages: Sequence[Passage]) -> list[str]:
    return [s for p in passages for s in sentences(p.text) if len(s.split()) > 3]


def _best(text: str, choices: Sequence[str]) -> int:
    # the first that holds a text, else the one that shares most words with it
    words = _words(text)
    shared = [len(words & _words(choice)) / max(1, len(_words(choice))) for choice in choices]
    holds = [contains_answer(choice, [text]) for choice in choices]
    return max(range(len(choices)), key=lambda i: (holds[i], not holds[i] and shared[i], -i))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def template_of(
    demonstrations: Sequence[Demonstration],
) -> tuple[AnswerTemplate | None, tuple[Demonstration, ...]]:
    """Return the template that answers share, and the demonstrations as they are without it.

    Answers are left as they are where they share nothing, where passages hold less than most of the
    values, or others are named than those: then it is the model that follows the examples.
    None where there is no refusal either.
    """
    shown, refusals = tuple(demonstrations), refusals_of(demonstrations)
    answered = _without_questions([d for d in shown if d.answer.strip() not in refusals])
    told = refusals
    if any(_ASKED in d.answer for d in answered):
        pairs = [(d.question, d.answer.strip()) for d in shown if d.answer.strip() in refusals]
        told = tuple(dict.fromkeys(_marked(*pair) for pair in pairs))
    read = _read(answered) if answered else AnswerTemplate()
    values = [read.value_of(d.answer) or "" for d in answered]
    template, before = _closed(read, values, answered) or _open(read, values, answered)
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


def _marked(question: str, answer: str) -> str:
    # an answer with a mark for the question, which JSON may hold in two spellings
    spelled = [question]
    if parsed_json(answer) is not None:
        spelled = [json.dumps(question, ensure_ascii=plain)[1:-1] for plain in (False, True)]
    for text in spelled:
        answer = answer.replace(text, _ASKED) if len(text) > _FEW else answer
    return answer


def _asked_again(written: str, question: str) -> str:
    told = json.dumps(question, ensure_ascii=False)[1:-1] if parsed_json(written) else question
    return written.replace(_ASKED, told)


def _without_questions(answered: Sequence[Demonstration]) -> list[Demonstration]:
    # with the mark, where every answer says its own question again
    marked = [replace(d, answer=_marked(d.question, d.answer)) for d in answered]
    return marked if all(_ASKED in d.answer for d in marked) else list(answered)


def _closed(
    template: AnswerTemplate, values: Sequence[str], answered: Sequence[Demonstration]
) -> tuple[AnswerTemplate, list[str]] | None:
    # the template whose values are options or labels, and the values as the model reads them
    if not all(values):  # one is part of another: 'supported', 'not supported'
        template, values = AnswerTemplate(), [d.answer.strip() for d in answered]
    closed = closed_of(values, answered)
    lines = set(map(line_of, answered))
    if len(lines) == 1 and (line := lines.pop()):
        before, between, behind = line
        pieces = (Piece("", before), VALUE, Piece("", behind))
        template = replace(template, pieces=tuple(p for p in pieces if p.kind or p.text))
        closed = Closed("line", between=between)
        values = [template.value_of(d.answer) or "" for d in answered]
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
    extractive = not template.quotes and _extractive(before, answered)
    numbers = _are_numbers(template, before)
    return replace(template, extractive=extractive or numbers, numbers=numbers), before


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
    behind = "".join(piece.text for piece in template.pieces[at : at + 1])
    if behind[:1] not in _STOPS or (len(behind) == 1 and template.pieces[at + 1 :]):
        return template
    rest = [Piece("", behind[1:])] if behind[1:] else []
    pieces = (*template.pieces[:at], *rest, *template.pieces[at + 1 :])
    longer = replace(template, pieces=pieces)
    values = [longer.value_of(d.answer) or "" for d in answered]
    return longer if _quoted(values, answered) == "sentence" else template


def _quoted(values: Sequence[str], answered: Sequence[Demonstration]) -> str:
    pairs = list(zip(values, answered, strict=True))
    if len(values) > 1 and all(value in _whole_sentences(d.passages) for value, d in pairs):
        return "sentence"
    titled = all(any(value == p.title for p in d.passages) for value, d in pairs)
    # a title that the text holds, too, may be meant as what the text says
    return "title" if len(values) > 1 and titled and not all(held(v, d) for v, d in pairs) else ""


def _extractive(values: Sequence[str], answered: Sequence[Demonstration]) -> bool:
    # labels come back and are short; one example shows too little
    told = len(values) > 1 and len(set(values)) == len(values)
    pairs = zip(values, answered, strict=True)
    return told and all(len(value) > 1 and is_part(value, d.passages) for value, d in pairs)


def _are_numbers(template: AnswerTemplate, values: Sequence[str]) -> bool:
    # of JSON, where no word could stand; else beside a unit alone, which words would say again
    if len(template.pieces) < 2 or not all(map(NUMBER.fullmatch, values)):
        return False
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
    return (
        all(cited) and not alike and bool(template.letters != "same" or template.quotes or enough)
    )
