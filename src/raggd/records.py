"""The types that flow through raggd, from a passage to a run record, and its one error type.

documents -> `Passage` -> `Hit` -> `SupportSet` -> update -> `Prediction` -> `RunRecord`.
Nothing here imports torch: these are plain, hashable, JSON-friendly values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any


class RaggdError(Exception):
    """Bad input or a missing resource, told to the user in one message.

    The message names the thing, says what was expected and what to do. The command line prints
    it and exits with code 2; every other exception is a bug.
    """


def unknown_name(kind: str, name: str, known: Sequence[str]) -> RaggdError:
    """Build the error for a name that is not in a fixed list, with the nearest one offered.

    >>> str(unknown_name("benchmark", "popqq", ["nq", "popqa"]))
    "unknown benchmark 'popqq': did you mean 'popqa'? Known: nq, popqa."
    """
    small = {each.casefold(): each for each in reversed(known)}
    near = [small[each] for each in get_close_matches(name.casefold(), list(small), n=1)]
    hint = f" did you mean '{near[0]}'?" if near else ""
    return RaggdError(f"unknown {kind} '{name}':{hint} Known: {', '.join(known)}.")


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Refuse a name that is not in a fixed list; the nearest is offered."""
    if name not in known:
        raise unknown_name(kind, str(name), known)


def known_names(kind: str, names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Return names that a user gives, each once; refuse none, and unknown ones with the nearest."""
    if not names:
        raise RaggdError(f"no {kind} is named: give at least one of {', '.join(known)}.")
    for name in names:
        require_known(kind, name, known)
    return list(dict.fromkeys(names))


def content_id(*parts: str, length: int = 16) -> str:
    """Hash strings to a hexadecimal id (SHA-256, parts kept apart), the same on every machine."""
    return hash_of(parts, length)


def hash_of(parts: Iterable[str], length: int = 16) -> str:
    """Return the `content_id` of strings that come one by one."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")  # file names may hold any byte
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:length]


@dataclass(frozen=True, slots=True)
class Passage:
    """A retrieved unit: about 100 words of one document.

    `source` is the name of the file that it stands in, where it comes from a document.
    """

    id: str
    text: str
    title: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a benchmark, with every answer that counts as right (a set without order)."""

    id: str
    text: str
    answers: tuple[str, ...] = ()
    task: str = ""


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage found for a query, with the retriever's score (higher is better)."""

    passage: Passage
    score: float


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A question with the passages retrieved for it and one gold answer (paper section 5)."""

    id: str
    question: str
    passages: tuple[Passage, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class SupportSet:
    """N demonstrations of one task: the context that an update is made from.

    The text is kept, so that few-shot prompts, test-time SGD and predictors see the same thing.
    """

    task: str
    demonstrations: tuple[Demonstration, ...]

    def __post_init__(self) -> None:
        if not self.demonstrations:
            raise RaggdError(
                f"the support set of task '{self.task}' is empty: give at least one demonstration "
                "(a question with its answer)."
            )
        for shown in self.demonstrations:
            if not shown.answer.strip():
                raise RaggdError(
                    f"demonstration '{shown.id}' of task '{self.task}' has no answer: a support "
                    "set adapts the model from answered questions. Add an answer or leave it out."
                )

    @property
    def id(self) -> str:
        """Content hash of the demonstrations, in order."""
        parts = [self.task]
        for shown in self.demonstrations:  # a line feed is the sign of a passage
            parts += [text.replace("\n", "\0") for text in (shown.question, shown.answer)]
            for p in shown.passages:
                title = p.title.replace("\n", "\0")
                parts.append(f"{title}\n{p.text}" + (f"\0{p.source}" if p.source else ""))
        return content_id(*parts)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One scored answer. `em` is 0 or 1 and `f1` lies in [0, 1]: best over the gold answers.

    `answerable` says whether an answer stands in the passages; None where it was not looked at or
    where finding it says nothing (yes and no).
    """

    question_id: str
    answer: str
    em: float
    f1: float
    passage_ids: tuple[str, ...] = ()
    support_id: str = ""
    answer_loss: float | None = None
    passages_cut: int = 0
    answerable: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it was read from."""

    question: str
    text: str  # empty where nothing was found and nobody told the model to guess
    passages: tuple[Passage, ...]  # the evidence, best first; empty where nothing was found
    passages_cut: int = 0  # passages that were shortened or left out to fit the context window
    refused: bool = False  # whether it is a refusal that the demonstrations show
    named: tuple[int, ...] = ()  # numbers, from 1, of the passages that it names

    @property
    def hits(self) -> int:
        """Number of passages found; 0: none shares a word with the question."""
        return len(self.passages)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What one method did on one benchmark, and all that is needed to do it again."""

    method: str
    benchmark: str
    split: str
    backbone: str
    retriever: str  # fingerprint
    seed: int  # of the support draws
    predictions: tuple[Prediction, ...]  # one per question, in the order of the questions
    # milliseconds: ``adapt_ms`` (one adaptation) and ``answer_ms`` (one question)
    cost: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # all of the run's
    hashes: Mapping[str, str] = field(default_factory=dict)  # of data, index, prompt, base, ...
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    created: str = ""  # UTC, in ISO form

    def to_json(self) -> str:
        """Return JSON text: one object, keys as the attributes."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str, *, source: str = "run record") -> RunRecord:
        """Read back what `to_json` gave, or refuse it; `source` is the file's name in messages."""
        try:
            raw = json.loads(text)
            predictions = tuple(
                Prediction(**{**p, "passage_ids": tuple(p.get("passage_ids", ()))})
                for p in raw.pop("predictions")
            )
            return cls(predictions=predictions, **raw)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RaggdError(f"{source} is not a raggd run record ({error}).") from error


def part_path(benchmark: str, draw: int, method: str) -> str:
    """Return where a method's answers to a draw lie, below the folder of its cells.

    >>> part_path("nq", 0, "rag-gd")
    'parts/nq-000-rag-gd.json'
    """
    return f"parts/{benchmark}-{draw:03d}-{method}.json"
