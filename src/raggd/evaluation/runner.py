"""From a benchmark to a task, a method on a draw of it, a part file, the run record.

All methods see the same questions. A part file per draw and method is written whole; a second run
reads it instead of computing it again. Which draws, methods and tasks there are, and in which
order, is `raggd.study.runner`'s.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.backbone.prefix import Prefix
from raggd.data.benchmarks import (
    SCORED,
    choose_by_hash,
    find_file,
    questions_hash,
    scored_questions,
    support_pool,
)
from raggd.data.prompts import Prompt, prompt_fingerprint
from raggd.evaluation.metrics import exact_match, token_f1
from raggd.evaluation.timing import Stopwatch
from raggd.files import read_json, write_json
from raggd.methods.answering import answer_rows, bounded_prompt, shared_opening
from raggd.methods.base import Adapted, Method, Rearranges
from raggd.methods.base import Item as Item
from raggd.provenance import origin
from raggd.records import (
    Prediction,
    Question,
    RaggdError,
    RunRecord,
    SupportSet,
    content_id,
)
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for, make_demonstrations
from raggd.settings import EvaluationSettings, Settings

DECIDING = {
    "backbone": ("device", "dtype", "context_tokens"),
    "target": ("steps", "learning_rate", "max_tokens"),
    "evaluation": ("batch", "max_answer_tokens", "answer_loss"),
}
"""Settings that change what a method answers, apart from the backbone, the weights, the questions
and their evidence, which are covered by fingerprints of their own. The batch counts, since padding
changes rounding."""


def deciding_values(settings: Settings) -> str:
    """Return the values of `DECIDING` as JSON text: equal for settings that give equal answers."""
    values = {
        section: {name: getattr(getattr(settings, section), name) for name in names}
        for section, names in DECIDING.items()
    }
    return json.dumps(values, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Task:
    """What every method is to answer.

    In one of the draws all questions share a support set, or each has its own; the retriever is the
    fingerprint of what found the evidence.
    """

    benchmark: str
    split: str
    draws: tuple[tuple[Item, ...], ...]
    retriever: str

    @property
    def size(self) -> int:
        """Number of questions."""
        return sum(len(draw) for draw in self.draws)


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


def arranged(items: Sequence[Item], method: Method) -> Sequence[Item]:
    """Return the questions of a draw as a method is given them: controls exchange something."""
    return method.arrange(items) if isinstance(method, Rearranges) else items


def _identity(
    task: Task, given: Sequence[Item], method: Method, backbone: Backbone, settings: Settings
) -> str:
    asked = [_what_is_asked(item) for item in given]
    return content_id(
        task.benchmark,
        task.retriever,
        method.name,
        str(sorted(method.hashes.items())),
        backbone.fingerprint,
        prompt_fingerprint(backbone.tokenizer),
        deciding_values(settings),
        *asked,
    )


class _DrawRunner:
    """Answers the questions of one draw with one method."""

    def __init__(self, backbone: Backbone, method: Method, settings: Settings) -> None:
        self.backbone = backbone
        self.method = method
        self.settings = settings
        queued = backbone.device.type == "cuda"  # there, work is timed when it is done
        self.watch = Stopwatch(synchronise=torch.cuda.synchronize if queued else None)

    def _adapt(self, items: Sequence[Item]) -> list[Adapted]:
        supports = list({item.support.id: item.support for item in items}.values())
        with self.watch.timed("adapt", units=len(supports)):
            adapted = self.method.adapt(supports)
        by_support = {s.id: a for s, a in zip(supports, adapted, strict=True)}
        return [by_support[item.support.id] for item in items]

    def _prompts(self, items: Sequence[Item], rows: Sequence[Adapted]) -> list[Prompt]:
        return [
            bounded_prompt(self.settings, self.backbone, adapted, i.question.text, i.passages)
            for i, adapted in zip(items, rows, strict=True)
        ]

    def _opening(self, rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> Prefix | None:
        # read for the support set, like an adaptation: it serves every question
        with self.watch.timed("opening"):
            return shared_opening(self.backbone, rows[0], prompts)

    def _batch(
        self,
        items: Sequence[Item],
        rows: Sequence[Adapted],
        prompts: Sequence[Prompt],
        opening: Prefix | None,
    ) -> list[Prediction]:
        wanted = self.settings.evaluation
        answers, losses = answer_rows(
            self.backbone,
            rows,
            prompts,
            wanted.max_answer_tokens,
            golds=[item.gold.answer for item in items] if wanted.answer_loss else None,
            opening=opening,
            timed=lambda: self.watch.timed("answer", units=len(items)),
        )
        scored = [None] * len(items) if losses is None else [float(loss) for loss in losses]
        return [
            Prediction(
                question_id=item.question.id,
                answer=answer,
                em=exact_match(answer, item.question.answers),
                f1=token_f1(answer, item.question.answers),
                passage_ids=tuple(p.id for p in item.passages),
                support_id=item.support.id,
                answer_loss=loss,
                passages_cut=prompt.passages_cut,
            )
            for item, answer, loss, prompt in zip(items, answers, scored, prompts, strict=True)
        ]

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        # similar lengths share a batch: less padding
        size = self.settings.evaluation.batch
        order = sorted(range(len(items)), key=lambda i: sum(len(p.text) for p in items[i].passages))
        return [order[start : start + size] for start in range(0, len(order), size)]

    def run(
        self, items: Sequence[Item], draw: Sequence[Item], done: Callable[[int], None]
    ) -> dict[str, Any]:
        # `draw`: the same questions before a control rearranged them; their support set names the
        # draw in all methods' predictions, so that these are compared draw by draw
        shared = len({item.support.id for item in items}) == 1
        rows = self._adapt(items) if shared else []
        prompts = self._prompts(items, rows) if shared else []
        opening = self._opening(rows, prompts) if shared else None
        found: dict[int, Prediction] = {}
        for part in self._batches(items):
            batch = [items[i] for i in part]
            adapted = [rows[i] for i in part] if shared else self._adapt(batch)
            asked = [prompts[i] for i in part] if shared else self._prompts(batch, adapted)
            found |= dict(zip(part, self._batch(batch, adapted, asked, opening), strict=True))
            done(len(part))
        times = self.watch.medians()
        opened = 0.0 if opening is None else times["opening"]
        return {
            "predictions": [
                asdict(replace(found[i], support_id=item.support.id)) for i, item in enumerate(draw)
            ],
            "adapt_ms": opened + (times["adapt"] if self.method.adapts else 0.0),
            "answer_ms": times["answer"],
        }


def make_record(
    parts: Sequence[dict[str, Any]],
    task: Task,
    method: Method,
    backbone: Backbone,
    settings: Settings,
) -> RunRecord:
    """Join the parts of a method on a task, one per draw, into its record."""
    predictions = [
        Prediction(**{**p, "passage_ids": tuple(p["passage_ids"])})
        for part in parts
        for p in part["predictions"]
    ]
    asked = questions_hash(item.question for draw in task.draws for item in draw)
    hashes = {
        **method.hashes,
        "backbone": backbone.fingerprint,
        "prompt": prompt_fingerprint(backbone.tokenizer),
        "questions": asked,
        "retriever": task.retriever,
    }
    return RunRecord(
        method=method.name,
        benchmark=task.benchmark,
        split=task.split,
        backbone=backbone.name,
        retriever=task.retriever,
        seed=settings.evaluation.seed,
        predictions=tuple(predictions),
        cost={name: median(part[name] for part in parts) for name in ("adapt_ms", "answer_ms")},
        settings=settings.model_dump(),
        hashes=hashes,
        **origin(),
    )


def run_part(
    task: Task,
    draw: int,
    method: Method,
    backbone: Backbone,
    settings: Settings,
    folder: Path,
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Answer the questions of one draw with one method, unless a part file below `folder` has them.

    The part file holds predictions, costs, seconds spent and identity; `done` is told how many
    questions were answered, batch by batch.
    """
    path = folder / "parts" / f"{task.benchmark}-{draw:03d}-{method.name}.json"
    given = arranged(task.draws[draw], method)
    identity = _identity(task, given, method, backbone, settings)
    if path.exists():
        known: dict[str, Any] = read_json(path, what="part file")
        if known.get("identity") == identity:
            done(len(task.draws[draw]))
            return known
    started = time.perf_counter()
    part = _DrawRunner(backbone, method, settings).run(given, task.draws[draw], done)
    part |= {"identity": identity, "seconds": round(time.perf_counter() - started, 3)}
    write_json(path, part)
    return part


def support_sets(
    name: str, drawn: Sequence[Sequence[Question]], retriever: Retriever, k: int
) -> list[SupportSet]:
    """Return a support set of each draw's questions, with evidence found in one search."""
    flat = make_demonstrations([q for questions in drawn for q in questions], retriever, k)
    sets, at = [], 0
    for questions in drawn:
        sets.append(SupportSet(name, tuple(flat[at : at + len(questions)])))
        at += len(questions)
    return sets


def asked_items(
    asked: Sequence[Question], supports: Sequence[SupportSet], retriever: Retriever, k: int
) -> list[Item]:
    """Return questions with their evidence and golds; support sets take turns."""
    evidence, golds = evidence_for(asked, retriever, k), make_demonstrations(asked, retriever, k)
    return [
        Item(question, passages, gold, supports[i % len(supports)])
        for i, (question, passages, gold) in enumerate(zip(asked, evidence, golds, strict=True))
    ]


def build_task(
    name: str,
    source: str,
    retriever: Retriever,
    k: int,
    demonstrations: int,
    settings: EvaluationSettings,
) -> Task:
    """Choose a benchmark's questions, find their evidence, draw their supports: a pure function.

    `k` is passages per question, `demonstrations` their number N in a support set.

    Raises:
        RaggdError: the benchmark has no questions to score or too small a support pool.
    """
    scored = scored_questions(source, name)
    wanted = 0 if name in settings.whole else settings.questions
    asked = choose_by_hash(scored, wanted or len(scored), settings.seed)
    if not asked:
        raise RaggdError(f"benchmark '{name}' has no questions to score in {source}.")
    per_query = settings.support == "query"
    draws = len(asked) if per_query else min(settings.draws, len(asked))
    pool = support_pool(source, name)
    drawn = draw_supports(pool, demonstrations, draws, settings.seed, purpose="evaluation")
    items = asked_items(asked, support_sets(name, drawn, retriever, k), retriever, k)
    count = 1 if per_query else draws
    dealt = tuple(tuple(items[d::count]) for d in range(count))
    split = next((split for split in SCORED if find_file(source, name, split)), SCORED[0])
    return Task(name, split, dealt, retriever.fingerprint)


def task_of(parts: Assembly, name: str) -> Task:
    """Return the task of one benchmark, from settings, data and retriever."""
    settings = parts.settings
    return build_task(
        name,
        parts.source,
        parts.retriever,
        settings.retrieval.top_k,
        settings.target.demonstrations,
        settings.evaluation,
    )
