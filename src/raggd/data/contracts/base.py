"""Contracts and lessons: what is asked, shown and wanted, and how an answer is judged."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from raggd.data.answers import contains_answer
from raggd.data.closed import named_labels
from raggd.data.contracts.letters import LETTERS
from raggd.data.contracts.targets import TARGETS, Situation, refusable_passages, shown_passages
from raggd.data.questions import Prepared
from raggd.data.shown import is_refusal, parsed_json
from raggd.records import Demonstration, Passage, SupportSet

_MOST_ACCEPTED = 64  # spellings of the wanted answer that count as exact
_LONGEST_ENTITY = 12  # words that an open slot may hold: more is no entity but a sentence
_WRAPPING, _CLOSING = tuple("\"'[({<*`#|\\/_-"), tuple("\"'])}>*`#|")
_SLOTS = re.compile(r"(\$[xnt])")
_IN_STRING = r'(?:[^"\\]|\\.)+'  # what may stand in a string of JSON
_NUMBER = re.compile(r"\d+")
_FILE_ENDINGS = ("md", "txt", "pdf", "html", "rst")
_SHAPES: Mapping[str, Callable[[str], bool]] = {
    "number": str.isdecimal,
    "first-word": lambda text: len(text.split()) == 1,
    "last-word": lambda text: len(text.split()) == 1,
    "initials": lambda text: text.isalnum() and text == text.upper(),
}
"""Targets whose values are told by their shape alone."""


class Score(NamedTuple):
    """How an answer was judged: each part from 0 to 1."""

    form: float | None  # the wrapping, label or refusal, whatever the entity; None where none is
    content: float  # the entity, label or refusal, whatever its wrapping
    exact: float  # the string itself
    refused: bool  # whether the answer is a refusal that was shown
    wanted: bool  # whether a refusal was wanted


@dataclass(frozen=True, slots=True)
class Asked:
    """A question under a contract: as asked, with passages as shown and the answer as wanted."""

    id: str  # of the question that it was made from
    question: str
    passages: tuple[Passage, ...]
    answer: str
    accepted: tuple[str, ...]  # every string that counts as exact
    contents: tuple[str, ...]  # every entity or label that counts as right; none for a refusal
    refused: bool = False  # whether a refusal is wanted


@dataclass(frozen=True, slots=True)
class Contract:
    """What an answer is to be. All literals are part of it, so it is its own description."""

    name: str  # of the contract
    family: str  # contracts of one family differ in their literals only
    target: str = "entity"  # what is asked for, a key of `TARGETS`
    # the answer; ``$x`` is the target, ``$n`` the number of a passage that holds the answer,
    # ``$t`` its title
    template: str = "$x"
    letters: str = "same"  # a change of the target's own letters, a key of `LETTERS`
    labels: tuple[str, ...] = ()  # the words that a closed target chooses from
    posing: int = 0  # which of a target's ways of asking
    refusal: str = ""  # what is answered where the passages lack the answer; empty: they never do
    wrapped: bool = False  # whether the refusal stands inside the template
    whole: bool = False  # whether full passages are shown, as in the benchmarks
    files: bool = False  # whether passages come from named files; ``$t`` is then the name

    def ask(
        self,
        row: Prepared,
        pool: Sequence[Prepared],  # other questions of its source; wrong candidates come from them
        draw: random.Random,  # decides passages, their order and candidates
        refuse: bool = False,  # show near passages only, so that the refusal is wanted
        extra: Sequence[Passage] = (),  # of other questions; one is shown beside its own
    ) -> Asked | None:
        """Put an answered question under the contract; None where it does not apply to it."""
        if self.refusal:
            passages = refusable_passages(row, pool, draw, extra, self.whole, refuse)
        else:
            passages = shown_passages(row, draw, extra, self.whole)
        if not passages:
            return None
        holders = tuple(
            n for n, p in enumerate(passages, start=1) if contains_answer(p.text, row.answers)
        )
        situation = Situation(row, passages, holders, pool, draw, self.labels, self.posing)
        posed = TARGETS[self.target](situation)
        if posed is None:
            return None
        question, values = posed
        titles = [p.title for p in passages]
        if ("$t" in self.template or self.target == "title") and not all(titles):
            return None
        if self.files:
            slug = LETTERS["slug" if self.posing % 2 else "snake"]
            ending = _FILE_ENDINGS[self.posing % len(_FILE_ENDINGS)]
            titles = [f"{slug(title)[:32]}.{ending}" for title in titles]
            shown = zip(passages, titles, strict=True)
            passages = tuple(replace(p, title=f"{p.title} ({name})") for p, name in shown)
        if refuse:
            wanted = self.refusal_text
            return Asked(row.id, question, passages, wanted, (wanted,), (), True)
        cites = [(n, titles[n - 1]) for n in holders]
        if "$n" not in self.template and "$t" not in self.template:
            cites = [(1, titles[0])]
        values = tuple(filter(LETTERS[self.letters], values))  # of marks alone, a slug is nothing
        if not values or not cites:
            return None
        accepted = [self.render(value, n, title) for value in values for n, title in cites]
        accepted = list(dict.fromkeys(accepted))[:_MOST_ACCEPTED]
        return Asked(row.id, question, passages, accepted[0], tuple(accepted), values)

    @property
    def refusal_text(self) -> str:
        """The refusal as it is to be written."""
        return self.render(self.refusal, 0, "") if self.wrapped else self.refusal

    def render(self, value: str, number: int, title: str) -> str:
        """Write a target as the contract wants it, with number and title of the passage cited."""
        text = LETTERS[self.letters](value)
        if _is_json(self.template):
            text, title = (json.dumps(t, ensure_ascii=False)[1:-1] for t in (text, title))
        return _filled(self.template, {"$x": text, "$n": str(number), "$t": title})

    def slot(self, output: str) -> str | None:
        """Return what an answer holds in the place of the target; None: it has another form."""
        slots = {"$x": "(.+?)", "$n": r"\d+", "$t": r"[^\n]+?"}
        if _is_json(self.template):
            slots |= {"$x": f"({_IN_STRING})", "$t": _IN_STRING}
        parts = _SLOTS.split(self.template)
        pattern = "".join(slots.get(part) or re.escape(part) for part in parts)
        match = re.fullmatch(pattern, output.strip(), re.DOTALL)
        if match is None:
            return None
        with suppress(ValueError):  # no string of JSON
            text = json.loads(f'"{match[1]}"') if _is_json(self.template) else match[1]
            return text if self._fits(text) else None
        return None

    def _fits(self, text: str) -> bool:
        change = LETTERS[self.letters]
        if self.labels:
            return text in map(change, self.labels)
        if text != text.strip() or "\n" in text or change(text) != text:
            return False
        opened = not self.template.startswith("$x")
        words, marked = len(text.split()), not opened and text.startswith(_WRAPPING)
        if self.target in _SHAPES:
            return _SHAPES[self.target](text) and not marked
        if self.target == "sentence":  # which may begin with what somebody says
            return words > 3 and not (marked and text.endswith(_CLOSING))
        if marked or (not opened and ": " in text):
            return False
        return words <= _LONGEST_ENTITY and not (words > 4 and text.endswith("."))

    def judge(self, output: str, asked: Asked) -> Score:
        """Judge what a model wrote."""
        output = output.strip()
        refused = bool(self.refusal) and is_refusal(output, [self.refusal_text])
        inside = self.slot(output)
        exact = output in asked.accepted
        form = exact or inside is not None or (refused and not self.wrapped)
        if asked.refused or refused:
            content = asked.refused and refused
        else:
            content = self._holds(output if inside is None else inside, asked)
        return Score(float(form), float(content or exact), float(exact), refused, asked.refused)

    def _holds(self, text: str, asked: Asked) -> bool:
        if self.labels or self.target == "number":  # to name several is to choose none
            named = named_labels(text, self.labels) if self.labels else set(_NUMBER.findall(text))
            return len(named) == 1 and named <= set(asked.contents)
        spaced = re.sub(r"[-_]+", " ", text)
        return contains_answer(text, asked.contents) or contains_answer(spaced, asked.contents)


def _filled(template: str, slots: Mapping[str, str]) -> str:
    return "".join(slots.get(part, part) for part in _SLOTS.split(template))


@lru_cache(maxsize=1024)
def _is_json(template: str) -> bool:
    return parsed_json(_filled(template, {"$n": "1"})) is not None


TRIES = 400
SIZES = (3, 3, 3, 3, 3, 3, 1, 2, 4, 5, 6, 8)
"""Numbers of examples that training draws from: three is the usual one."""
REFUSED = 0.5  # share of questions that are to be refused where a refusal is shown


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a model learns from, or is judged by: examples and a question under a contract."""

    contract: Contract
    support: SupportSet
    asked: Asked


def _draw(
    contract: Contract,
    pool: Sequence[Prepared],
    draw: random.Random,
    taken: set[str],
    refuse: bool,
    extra: Sequence[Passage] = (),
    may_ask: Callable[[str], bool] = lambda _: True,
) -> Asked | None:
    for _ in range(TRIES):
        row = pool[draw.randrange(len(pool))]
        fresh = row.id not in taken and may_ask(row.id)
        if fresh and (asked := contract.ask(row, pool, draw, refuse, extra)):
            taken.add(row.id)
            return asked
    return None


def draw_lesson(
    contract: Contract,
    pool: Sequence[Prepared],
    draw: random.Random,
    *,
    size: int = 3,  # number of examples
    refusals: int | None = None,  # examples that are, for a contract with a refusal; None: drawn
    refuse: bool | None = None,  # the question; None: drawn, never without an example of it
    # how often a passage of the examples stands beside the question's own, so that an answer that
    # was shown is near and wrong
    neighbours: float = 0.0,
    # whether the question may be that of an id; examples may be any
    may_ask: Callable[[str], bool] = lambda _: True,
) -> Lesson | None:
    """Draw examples and a question from answered questions of one source.

    None where too few of them are such that the contract applies to them.
    """
    flags = [False] * size
    if contract.refusal:  # a set without a refusal cannot teach its words
        count = refusals if refusals is not None else draw.choice([1, 1, 1, 1, 2, 0])
        flags = [number < count for number in range(size)]
        draw.shuffle(flags)
    for _ in range(8):
        taken: set[str] = set()
        drawn = [_draw(contract, pool, draw, taken, flag) for flag in flags]
        shown = [asked for asked in drawn if asked is not None]
        if len(shown) < size:
            return None
        if not contract.labels or size < 2 or len({asked.answer for asked in shown}) > 1:
            break  # labels that are all alike would not show the other one
    wanted = refuse if refuse is not None else any(flags) and draw.random() < REFUSED
    beside = draw.random() < neighbours
    extra = [p for example in shown for p in example.passages] if beside else []
    asked = _draw(contract, pool, draw, taken, wanted, extra, may_ask)
    if asked is None:
        return None
    support = tuple(Demonstration(a.id, a.question, a.passages, a.answer) for a in shown)
    return Lesson(contract, SupportSet(contract.name, support), asked)
