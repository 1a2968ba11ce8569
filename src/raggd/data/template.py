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
from typing import Any

from raggd.data.answers import contains_answer
from raggd.data.closed import Closed
from raggd.data.contracts.letters import CHANGES, FIGURED, SHORTENED
from raggd.data.contracts.targets import sentences
from raggd.data.pieces import NAMES, VALUE, Piece, are_sentences, read_answer
from raggd.data.several import Several
from raggd.data.shown import is_refusal, parsed_json
from raggd.records import Passage

_FEW = 4  # characters that stand in many an answer
STOPS = frozenset(".!?。！？")
ASKED = "\ufdd0"  # no character: stands for the question where answers say it again
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
    numbers: bool = False  # whether the value is a number and nothing besides
    closed: Closed | None = None  # what values are chosen from: options or labels
    several: Several | None = None  # what stands around values, where there are several
    refusals: tuple[str, ...] = ()  # as they were shown; the model writes `REFUSAL` for the first
    given: tuple[tuple[str, str], ...] = ()  # questions and answers of the examples, as they were

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> AnswerTemplate:
        """Return the template whose fields `dataclasses.asdict` gave."""
        pieces = tuple(Piece(*pair) for pair in fields["pieces"])
        told = {name: tuple(fields[name]) for name in ("names", "refusals")}
        told["given"] = tuple(map(tuple, fields["given"]))
        closed = Closed.of(fields["closed"]) if fields.get("closed") else None
        several = Several.of(fields["several"]) if fields.get("several") else None
        return cls(**{**fields, **told, "pieces": pieces, "closed": closed, "several": several})

    @property
    def rewrites(self) -> bool:
        """Whether an answer is not written as the model says it."""
        labels = self.closed is not None and not self.closed.options
        closed = None if labels else self.closed
        plain = replace(self, extractive=False, given=(), closed=closed, several=None)
        return plain != AnswerTemplate()

    @property
    def classes(self) -> bool:
        """Whether answers sort questions into classes, for which no passage need be found."""
        return self.closed is not None and self.closed.classes

    def __str__(self) -> str:
        """Return it in words; empty where nothing but a refusal is settled.

        >>> str(AnswerTemplate((Piece("", "It is "), VALUE, Piece("", " ["), Piece("n")), "upper"))
        "written as 'It is ... [n', in upper letters"
        """
        text = self.joined({"x": "...", "n": "n"}, self.names)
        text = text.replace(ASKED, "question")
        said = [f"written as '{text}'"] if len(self.pieces) > 1 else []
        kind = " alone" if self.letters in SHORTENED else " letters"
        kind = "" if self.letters in FIGURED else kind
        said += [f"in {self.letters}{kind}"] if self.letters != "same" else []
        said += [f"the {self.quotes} of a passage"] if self.quotes else []
        said += ["in words of the passages"] if self.extractive else []
        said += [str(each) for each in (self.closed, self.several) if each]
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
        # without the full stop that the template writes behind it, or a sentence has before more
        behind = self.pieces[self.pieces.index(VALUE) + 1 :]
        mark = behind[0].text[:1] if behind else ""
        if mark and mark in " ,;" and not self.quotes and are_sentences([text]):
            mark = "."
        return (mark in STOPS and text.rstrip(mark)) or text

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
        again = any(ASKED in piece.text for piece in self.pieces)
        return marked(question, answer) if again else answer

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
    parts = whole_sentences(passages)
    return parts[_best(text, parts)] if parts else text


def whole_sentences(passages: Sequence[Passage]) -> list[str]:
    """Return the sentences of passages that are more than a few words."""
    return [s for p in passages for s in sentences(p.text) if len(s.split()) > 3]


def _best(text: str, choices: Sequence[str]) -> int:
    # the first that holds a text, else the one that shares most words with it
    words = _words(text)
    shared = [len(words & _words(choice)) / max(1, len(_words(choice))) for choice in choices]
    holds = [contains_answer(choice, [text]) for choice in choices]
    return max(range(len(choices)), key=lambda i: (holds[i], not holds[i] and shared[i], -i))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def marked(question: str, answer: str) -> str:
    """Return an answer with `ASKED` for its question, which JSON may hold in two spellings."""
    spelled = [question]
    if parsed_json(answer) is not None:
        spelled = [json.dumps(question, ensure_ascii=plain)[1:-1] for plain in (False, True)]
    for text in spelled:
        answer = answer.replace(text, ASKED) if len(text) > _FEW else answer
    return answer


def _asked_again(written: str, question: str) -> str:
    told = json.dumps(question, ensure_ascii=False)[1:-1] if parsed_json(written) else question
    return written.replace(ASKED, told)
