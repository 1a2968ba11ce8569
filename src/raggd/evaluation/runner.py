"""From a benchmark to a task, a method on a draw of it, a part file, the run record.

All methods see the same questions. A part file per draw and method is written whole; a second run
reads it instead of computing it again. Which draws, methods and tasks there are, and in which
order, is `raggd.study.run`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from raggd.adaptation.targets import draw_supports
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.data import benchmarks
from raggd.data.answers import exact_match, token_f1
from raggd.data.prompts import Prompt, prompt_fingerprint
from raggd.evaluation.timing import Stopwatch
from raggd.files import read_json, write_json
from raggd.methods.answering import answer_rows, bounded_prompt, shared_opening
from raggd.methods.base import Adapted, Control, Method
from raggd.methods.base import Item as Item
from raggd.provenance import origin
from raggd.records import (
    Passage,
    Prediction,
    Question,
    RaggdError,
    RunRecord,
    SupportSet,
    content_id,
    part_path,
)
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import demonstrations_of, evidence_for, make_demonstrations
from raggd.settings import Settings

DECIDING = {
    "backbone": {"device", "dtype", "context_tokens"},
    "target": {"steps", "learning_rate", "max_tokens"},
    "evaluation": {"batch", "max_answer_tokens", "answer_loss"},
}
"""Settings that change what a method answers, apart from the backbone, the weights, the questions
and their evidence, which are covered by fingerprints of their own. The batch counts, since padding
changes rounding."""


def deciding_values(settings: Settings) -> str:
    """Return the values of `DECIDING` as JSON text: equal for settings that give equal answers."""
    return json.dumps(settings.model_dump(include=DECIDING), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Task:
    """What every method is to answer; in a draw all share a support set, or each has its own."""

    benchmark: str
    split: str
    draws: tuple[tuple[Item, ...], ...]
    retriever: str

    @property
    def items(self) -> list[Item]:
        """All questions, draw after draw."""
        return [item for draw in self.draws for item in draw]

    @property
    def size(self) -> int:
        """Number of questions."""
        return sum(map(len, self.draws))


def _what_is_asked(item: Item) -> str:
    # The texts of the passages are covered by the retriever's fingerprint.
    question, passages = item.question, [p.id for p in item.passages]
    return content_id(
        question.id,
        question.text,
        item.gold.answer,
        item.support.id,
        content_id(*passages),
        *sorted(question.answers),
    )


@dataclass(frozen=True, slots=True)
class CellRun:
    """A method on a task: a part for every draw, in ``parts`` below the folder, then the record."""

    task: Task
    method: Method
    backbone: Backbone
    settings: Settings
    folder: Path

    def given(self, draw: int) -> Sequence[Item]:
        """Return the questions of a draw as the method is given them: controls exchange some."""
        items = self.task.draws[draw]
        return self.method.arrange(items) if isinstance(self.method, Control) else items

    def prompts(self, items: Sequence[Item], rows: Sequence[Adapted]) -> list[Prompt]:
        """Return the prompt of each question, answered with its row."""
        return [
            bounded_prompt(self.settings, self.backbone, adapted, i.question.text, i.passages)
            for i, adapted in zip(items, rows, strict=True)
        ]

    def _identity(self, draw: int) -> str:
        return content_id(
            self.task.benchmark,
            self.task.retriever,
            self.method.name,
            str(sorted(self.method.hashes.items())),
            self.backbone.fingerprint,
            prompt_fingerprint(self.backbone.tokenizer),
            deciding_values(self.settings),
            *map(_what_is_asked, self.given(draw)),
        )

    def part(self, draw: int, done: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Answer a draw's questions, unless its part file has them; `done` is told of batches."""
        path = self.folder / part_path(self.task.benchmark, draw, self.method.name)
        identity = self._identity(draw)
        known: dict[str, Any] = {}
        with suppress(RaggdError):  # one that is not there, or damaged, is made
            known = read_json(path, what="part file")
        if known.get("identity") == identity:
            done(len(self.task.draws[draw]))
            return known
        started = time.perf_counter()
        found = self.answered(draw, done)
        found |= {"identity": identity, "seconds": round(time.perf_counter() - started, 3)}
        write_json(path, found)
        return found

    def answered(self, draw: int, done: Callable[[int], None] = lambda _: None) -> dict[str, Any]:
        """Return predictions and costs of a draw; `done` is told, batch by batch."""
        items, opening, wanted = self.given(draw), None, self.settings.evaluation
        # the set before a control exchanged it names the draw in all methods' predictions, so that
        # these are compared draw by draw
        sets = [item.support.id for item in self.task.draws[draw]]
        watch = Stopwatch(cuda=self.backbone.device.type == "cuda")
        shared = len({item.support.id for item in items}) == 1
        rows, prompts = self._adapt(items, watch) if shared else ([], [])
        if shared:  # read for the support set, like an adaptation: it serves every question
            with watch.timed("opening"):
                opening = shared_opening(self.backbone, rows[0], prompts)
        found: dict[int, dict[str, Any]] = {}
        for part in alike_batches([item.passages for item in items], wanted.batch):
            batch = [items[i] for i in part]
            ready = ([rows[i] for i in part], [prompts[i] for i in part]) if shared else None
            adapted, asked = ready or self._adapt(batch, watch)
            answers, losses = answer_rows(
                self.backbone,
                adapted,
                asked,
                wanted.max_answer_tokens,
                golds=[item.gold.answer for item in batch] if wanted.answer_loss else None,
                opening=opening,
                timed=partial(watch.timed, "answer", units=len(batch)),
            )
            scored = [None] * len(batch) if losses is None else losses.tolist()
            for i, prompt, answer, loss in zip(part, asked, answers, scored, strict=True):
                found[i] = asdict(_prediction(items[i], sets[i], prompt, answer, loss))
            done(len(part))
        times = watch.medians()
        opened = 0.0 if opening is None else times["opening"]
        return {
            "predictions": [found[i] for i in range(len(items))],
            "adapt_ms": opened + (times["adapt"] if self.method.adapts else 0.0),
            "answer_ms": times["answer"],
        }

    def _adapt(self, items: Sequence[Item], watch: Stopwatch) -> tuple[list[Adapted], list[Prompt]]:
        supports = list({item.support.id: item.support for item in items}.values())
        with watch.timed("adapt", units=len(supports)):
            adapted = self.method.adapt(supports)
        by_support = {s.id: a for s, a in zip(supports, adapted, strict=True)}
        rows = [by_support[item.support.id] for item in items]
        return rows, self.prompts(items, rows)

    def record(self, parts: Sequence[dict[str, Any]]) -> RunRecord:
        """Join the parts of all draws into the run record."""
        predictions = [
            Prediction(**{**p, "passage_ids": tuple(p["passage_ids"])})
            for part in parts
            for p in part["predictions"]
        ]
        hashes = {
            **self.method.hashes,
            "backbone": self.backbone.fingerprint,
            "prompt": prompt_fingerprint(self.backbone.tokenizer),
            "questions": benchmarks.questions_hash(item.question for item in self.task.items),
            "retriever": self.task.retriever,
        }
        return RunRecord(
            method=self.method.name,
            benchmark=self.task.benchmark,
            split=self.task.split,
            backbone=self.backbone.name,
            retriever=self.task.retriever,
            seed=self.settings.evaluation.seed,
            predictions=tuple(predictions),
            cost={name: median(part[name] for part in parts) for name in ("adapt_ms", "answer_ms")},
            settings=self.settings.model_dump(),
            hashes=hashes,
            **origin(),
        )


def _prediction(
    item: Item, support: str, prompt: Prompt, answer: str, loss: float | None
) -> Prediction:
    return Prediction(
        question_id=item.question.id,
        answer=answer,
        em=exact_match(answer, item.question.answers),
        f1=token_f1(answer, item.question.answers),
        passage_ids=tuple(p.id for p in item.passages),
        support_id=support,
        answer_loss=loss,
        passages_cut=prompt.passages_cut,
    )


def alike_batches(evidence: Sequence[Sequence[Passage]], size: int) -> list[list[int]]:
    """Group questions, by number, whose passages are of similar length: less padding."""
    lengths = [sum(len(passage.text) for passage in passages) for passages in evidence]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def support_sets(
    name: str, drawn: Sequence[Sequence[Question]], retriever: Retriever, k: int
) -> list[SupportSet]:
    """Return a support set of each draw's questions, with evidence found in one search."""
    shown = iter(make_demonstrations([q for questions in drawn for q in questions], retriever, k))
    return [SupportSet(name, tuple(islice(shown, len(questions)))) for questions in drawn]


def asked_items(
    asked: Sequence[Question], supports: Sequence[SupportSet], retriever: Retriever, k: int
) -> list[Item]:
    """Return questions with their evidence and golds; support sets take turns."""
    evidence = evidence_for(asked, retriever, k)
    golds = demonstrations_of(asked, evidence)
    return [
        Item(question, passages, gold, supports[i % len(supports)])
        for i, (question, passages, gold) in enumerate(zip(asked, evidence, golds, strict=True))
    ]


def drawn_supports(parts: Assembly, name: str, count: int) -> list[SupportSet]:
    """Draw support sets of a benchmark's pool, as an evaluation shows them."""
    settings = parts.settings
    pool, size = benchmarks.support_pool(parts.source, name), settings.target.demonstrations
    drawn = draw_supports(pool, size, count, settings.evaluation.seed, purpose="evaluation")
    return support_sets(name, drawn, parts.retriever, settings.retrieval.top_k)


def task_of(parts: Assembly, name: str) -> Task:
    """Choose questions, find their evidence, draw supports: a pure function. None are refused."""
    settings, source, retriever = parts.settings.evaluation, parts.source, parts.retriever
    scored = benchmarks.scored_questions(source, name)
    wanted = 0 if name in settings.whole else settings.questions
    asked = benchmarks.choose_by_hash(scored, wanted or len(scored), settings.seed)
    if not asked:
        raise RaggdError(f"benchmark '{name}' has no questions to score in {source}.")
    per_query = settings.support == "query"
    draws = len(asked) if per_query else min(settings.draws, len(asked))
    supports, k = drawn_supports(parts, name, draws), parts.settings.retrieval.top_k
    items = asked_items(asked, supports, retriever, k)
    count = 1 if per_query else draws
    dealt = tuple(tuple(items[d::count]) for d in range(count))
    split = next(
        (split for split in benchmarks.SCORED if benchmarks.find_file(source, name, split)),
        benchmarks.SCORED[0],
    )
    return Task(name, split, dealt, retriever.fingerprint)
