"""The contract: what is asked, what is shown, what is wanted, and how an answer is judged."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from raggd.data.answers import contains_answer, normalise_answer
from raggd.data.closed import named_labels
from raggd.data.contracts.letters import LETTERS
from raggd.data.contracts.targets import TARGETS, Situation
from raggd.data.contracts.trim import shown_passages
from raggd.data.questions import Prepared
from raggd.records import Passage

MOST_ACCEPTED = 64
"""Spellings of the wanted answer that count as exact."""
_LONGEST_ENTITY = 12
"""Words that an open slot may hold: more is no entity but a sentence."""
_WRAPPING = tuple("\"'[({<*`#|\\/_-")
SLOTS = re.compile(r"(\$[xnt])")
FILE_ENDINGS = ("md", "txt", "pdf", "html", "rst")


def titled(title: str, file: str) -> str:
    """Return a passage's title as a prompt shows it where its file is to be named."""
    return f"{title} ({file})" if title else file


class Score(NamedTuple):
    """How an answer was judged: each part is 0 or 1."""

    form: float  # the wrapping, label or refusal, whatever the entity
    content: float  # the entity, label or refusal, whatever its wrapping
    exact: float  # the string itself
    refused: bool  # whether the answer is the contract's refusal


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
        filler = self._filler(pool, draw, extra) if self.refusal else None
        passages = shown_passages(
            row, draw, refuse=refuse, whole=self.whole, extra=extra, filler=filler
        )
        if not passages:
            return None
        holders = tuple(
            number
            for number, passage in enumerate(passages, start=1)
            if contains_answer(passage.text, row.answers)
        )
        posed = TARGETS[self.target](
            Situation(row, passages, holders, pool, draw, self.labels, self.posing)
        )
        if posed is None:
            return None
        question, values = posed
        titles = [p.title for p in passages]
        if ("$t" in self.template or self.target == "title") and not all(titles):
            return None
        if self.files:
            titles = [self._file(title) for title in titles]
            shown = zip(passages, titles, strict=True)
            passages = tuple(replace(p, title=titled(p.title, name)) for p, name in shown)
        if refuse:
            wanted = (self.refusal_text,)
            return Asked(row.id, question, passages, wanted[0], wanted, (), True)
        cites = [(n, titles[n - 1]) for n in holders] or [(1, titles[0])]
        if not self._cites:
            cites = cites[:1]
        values = tuple(filter(LETTERS[self.letters], values))  # of marks alone, a slug is nothing
        if not values or (self._cites and not holders):
            return None
        accepted = [self.render(value, n, title) for value in values for n, title in cites]
        accepted = list(dict.fromkeys(accepted))[:MOST_ACCEPTED]
        return Asked(row.id, question, passages, accepted[0], tuple(accepted), tuple(values))

    def _filler(
        self, pool: Sequence[Prepared], draw: random.Random, extra: Sequence[Passage]
    ) -> Passage:
        other = pool[draw.randrange(len(pool))]
        return draw.choice([*extra] or [*other.passages, *other.near])

    def _file(self, title: str) -> str:
        name = LETTERS["slug" if self.posing % 2 else "snake"](title)[:32]
        return f"{name}.{FILE_ENDINGS[self.posing % len(FILE_ENDINGS)]}"

    @property
    def _cites(self) -> bool:
        return "$n" in self.template or "$t" in self.template

    @property
    def _json(self) -> bool:
        return _is_json(self.template)

    @property
    def refusal_text(self) -> str:
        """The refusal as it is to be written."""
        return self.render(self.refusal, 0, "") if self.wrapped else self.refusal

    def render(self, value: str, number: int, title: str) -> str:
        """Write a target as the contract wants it, with number and title of the passage cited."""
        text = LETTERS[self.letters](value)
        if self._json:
            text, title = (json.dumps(t, ensure_ascii=False)[1:-1] for t in (text, title))
        slots = {"$x": text, "$n": str(number), "$t": title}
        return "".join(slots.get(part, part) for part in SLOTS.split(self.template))

    def _pattern(self) -> str:
        slots = {"$x": "(?P<x>.+?)", "$n": r"(?P<n>\d+)", "$t": r"(?P<t>[^\n]+?)"}
        if self._json:  # what may stand in a string
            slots |= {f"${name}": rf'(?P<{name}>(?:[^"\\]|\\.)+)' for name in "xt"}
        parts = SLOTS.split(self.template)
        return "".join(slots.get(part) or re.escape(part) for part in parts)

    def slot(self, output: str) -> str | None:
        """Return what an answer holds in the place of the target; None: it has another form."""
        match = re.fullmatch(self._pattern(), output.strip(), re.DOTALL)
        if match is None:
            return None
        text = match["x"]
        if self._json:
            try:
                text = json.loads(f'"{text}"')
            except ValueError:
                return None
        return text if self._fits(text) else None

    def _fits(self, text: str) -> bool:
        if self.labels:
            return text in {LETTERS[self.letters](label) for label in self.labels}
        if text != text.strip() or "\n" in text or LETTERS[self.letters](text) != text:
            return False
        words, marked = len(text.split()), not self._opened and text.startswith(_WRAPPING)
        if self.target in _SHAPES:
            return _SHAPES[self.target](text) and not marked
        if self.target == "sentence":  # which may begin with what somebody says
            return words > 3 and not (marked and text.endswith(_CLOSING))
        if marked:
            return False
        if not self._opened and ": " in text:
            return False
        return words <= _LONGEST_ENTITY and not (words > 4 and text.endswith("."))

    @property
    def _opened(self) -> bool:
        return not self.template.startswith("$x")

    def is_refusal(self, output: str) -> bool:
        """Return whether an answer is the contract's refusal, marks and case aside."""
        return bool(self.refusal) and _plain(output) == _plain(self.refusal_text)

    def judge(self, output: str, asked: Asked) -> Score:
        """Judge what a model wrote."""
        output = output.strip()
        refused = self.is_refusal(output)
        inside = self.slot(output)
        exact = output in asked.accepted
        form = exact or inside is not None or (refused and not self.wrapped)
        if asked.refused or refused:
            content = asked.refused and refused
        else:
            content = self._holds(output if inside is None else inside, asked)
        return Score(float(form), float(content or exact), float(exact), refused)

    def _holds(self, text: str, asked: Asked) -> bool:
        if self.labels:
            named = named_labels(text, self.labels)
            return len(named) == 1 and named <= set(asked.contents)
        if self.target == "number":  # likewise, all numbers are none
            numbers = set(re.findall(r"\d+", text))
            return len(numbers) == 1 and numbers <= set(asked.contents)
        spaced = re.sub(r"[-_]+", " ", text)
        return contains_answer(text, asked.contents) or contains_answer(spaced, asked.contents)


_SHAPES: Mapping[str, Callable[[str], bool]] = {
    "number": str.isdecimal,
    "first-word": lambda text: len(text.split()) == 1,
    "last-word": lambda text: len(text.split()) == 1,
    "initials": lambda text: text.isalnum() and text == text.upper(),
}
"""Targets whose values are told by their shape alone."""
_CLOSING = tuple("\"'])}>*`#|")


@lru_cache(maxsize=1024)
def _is_json(template: str) -> bool:
    slots = {"$x": "x", "$n": "1", "$t": "t"}
    text = "".join(slots.get(part, part) for part in SLOTS.split(template))
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def _plain(text: str) -> str:
    return normalise_answer(text) or text.strip()
