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

from raggd.data.answers import contains_answer
from raggd.data.closed import YES_NO, Closed
from raggd.data.contracts.letters import CHANGES, FIGURED, FIGURES, SHORTENED, Figure
from raggd.data.contracts.targets import sentences
from raggd.data.pieces import NAMES, VALUE, Piece, are_sentences, is_part, read_answer
from raggd.data.shown import is_refusal, parsed_json
from raggd.records import Demonstration, Passage

_FEW = 4  # characters that stand in many an answer
STOPS = frozenset(".!?。！？")
ASKED = "\ufdd0"  # no character: stands for the question where answers say it again
NUMBER = re.compile(r"(?<!\w)-?\d+(?:,\d{3})*(?:[.,:]\d+)?")  # 1,290, 4,20, 18:30
REFUSAL = "not in the passages"
"""What the model reads and writes in place of the refusal that examples show."""
_WHOLE: Mapping[str, Figure] = {
    name: Figure(pattern, str, re.compile(pattern).findall)
    for name, pattern in (
        ("number", r"(?<![\w.,])-?\d+(?:\.\d+)?(?![\w%]|[.,]\d)"),
        ("measure", r"(?<![\w.,])\d[\d.,]*\s?(?:[^\W\d_]+|[%€$£°])(?:/[^\W\d_]+)?"),
    )
}
"""Of values that are never a part of something longer, as their passages write them."""
# but for the dot of "Dr." or an initial
_MARK = re.compile(
    r"(?:[,;:!?()\[\]]|(?<!\b[A-Z])(?<!\b[A-Z][a-z])(?<!\b[A-Z][a-z]{2})\.)(?=\s|$)|(?<=\s)[(\[]"
)


@dataclass(frozen=True, slots=True)
class Several:
    """What stands around the values of an answer that has several.

    `{"role": "night porter", "since": 2021}`, `Veenstra (8 bar)`, `- Maker: ...` and `- Flow: ...`
    on two lines: it is written for the model, and each value is held to the words of its passages.
    """

    literals: tuple[str, ...]  # before the first, between two, behind the last
    # of each value: a key of `_WHOLE` or `FIGURES`, ``part`` of what stands between two marks, or
    # of ``any`` text
    kinds: tuple[str, ...]
    json: bool = False  # whether the answer is JSON, whose values hold no quotes

    def __str__(self) -> str:
        """Return it in words."""
        return f"written as '{'...'.join(self.literals)}'"

    def texts(self, number: int, passages: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return what a value may be a part of, and what it may be the whole of."""
        kind = self.kinds[number]
        if figure := _WHOLE.get(kind) or FIGURES.get(kind):
            told = (figure.change(n) for text in passages for n in figure.among(text))
            if found := list(dict.fromkeys(told)):
                return [], found
        cuts = [_MARK.pattern] * (kind == "part") + [r'["\\]'] * self.json
        cut = re.compile("|".join(cuts) or r"(?!)")
        return [part for text in passages for part in cut.split(text)], []


def kind_of(values: Sequence[str], answered: Sequence[Demonstration]) -> str | None:
    """Return the kind of values of `Several`; None where their passages do not hold them."""
    pairs = list(zip(values, answered, strict=True))
    written = all(is_part(value, d.passages) for value, d in pairs)
    texts = [(value, "\n".join(p.text for p in d.passages)) for value, d in pairs]
    for name, figure in (_WHOLE if written else FIGURES).items():
        fits = all(re.fullmatch(figure.written, value) for value in values)
        if fits and (written or all(v in map(figure.change, figure.among(t)) for v, t in texts)):
            return name
    marked = any(map(_MARK.search, values))
    return ("any" if marked else "part") if written else None


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

    @property
    def rewrites(self) -> bool:
        """Whether an answer is not written as the model says it."""
        closed = self.closed if self.closed and self.closed.options else None
        plain = replace(self, extractive=False, given=(), closed=closed, several=None)
        return plain != AnswerTemplate()

    @property
    def classes(self) -> bool:
        """Whether labels, all but yes and no, sort questions: no passage need be found for them."""
        labels = self.closed.labels if self.closed else ()
        return bool(labels) and not {label.lower() for label in labels} & YES_NO

    def __str__(self) -> str:
        """Return it in words; empty where nothing but a refusal is settled.

        >>> str(AnswerTemplate((Piece("", "It is "), VALUE, Piece("", " ["), Piece("n")), "upper"))
        "written as 'It is ... [n', in upper letters"
        """
        text = self.joined({"x": "...", "n": "n"}, self.names).replace(ASKED, "question")
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

    def figures(self, texts: Sequence[str]) -> list[str]:
        """Return the dates or times of texts, where the examples write such otherwise."""
        figure = None if "digits" in self.letters else FIGURES.get(self.letters)
        return [spelt for text in texts for spelt in figure.among(text)] if figure else []

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
        told = [self._unmarked(text)]
        if self.json:  # where the examples may have had numbers
            text, names = _escaped(told[0]), list(map(_escaped, names))
            told = [text, re.sub(r",(?=\d{3})", "", text).replace(",", "."), f'"{text}"']
        texts = [self.joined({"x": each, "n": str(at + 1)}, names) for each in told]
        if self.numbers:  # decimals of its own stand for those that the examples write: 12.00
            texts = [re.sub(r"([.,]\d\d?)[.,]00?(?!\d)", r"\1", each) for each in texts]
        whole = (each for each in texts if not self.json or parsed_json(each) is not None)
        return next(whole, texts[-1])

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
        spelled = [_escaped(question), json.dumps(question)[1:-1]]
    for text in spelled:
        answer = answer.replace(text, ASKED) if len(text) > _FEW else answer
    return answer


def _asked_again(written: str, question: str) -> str:
    return written.replace(ASKED, _escaped(question) if parsed_json(written) else question)


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]
