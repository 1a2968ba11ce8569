"""`raggd train prompt`, `hyper`, `task-mean`: weights of what RAG-GD is compared with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.adaptation.examples import answered_prompt
from raggd.adaptation.hyper_tuning import plan_lessons, train_hyper
from raggd.adaptation.optimizer import Progress, seconds_spent
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.predictors.store import load_predictor, mean_predictor, save_predictor
from raggd.adaptation.prompt_tuning import save_prefix, train_prefix
from raggd.adaptation.target_store import Targets, load_targets, split_held_out
from raggd.adaptation.task_means import save_task_means, task_means
from raggd.adaptation.training import check_targets
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.data.benchmarks import known_benchmarks, training_questions
from raggd.data.prompts import Prompt
from raggd.files import write_json
from raggd.methods.spec import (
    HYPER_FILE,
    MEAN_TUNED_FILE,
    PREDICTOR_FILE,
    PROMPT_FILE,
    TASK_MEAN_FILE,
    TUNED_FILE,
    weight_file,
    weights_hash,
)
from raggd.records import Question, RaggdError
from raggd.retrieval.evidence import evidence_for, holds_answer, make_demonstrations
from raggd.workflows.train import base_examples, training_record, training_targets

_FILES = {"zero": HYPER_FILE, "predictor": TUNED_FILE, "mean": MEAN_TUNED_FILE}
"""What each start of HyperTuning ends in."""


def run_train_prompt(parts: Assembly, out: Path, progress: Progress) -> dict[str, Any]:
    """Train the soft prefix of prompt tuning on the base adapter's examples.

    Args:
        parts: settings, data, backbone.
        out: folder for ``prompt.safetensors``, ``prompt.json`` and the checkpoint.
        progress: told step, steps, loss.

    Returns:
        The record that stands in ``prompt.json``.
    """
    checkpoint = out / "prompt.checkpoint.safetensors"
    prompts = base_examples(parts)
    with compile_layers(parts.backbone):
        prefix, history = train_prefix(
            parts.backbone,
            prompts,
            parts.settings.prompt_tuning,
            checkpoint=checkpoint,
            progress=progress,
        )
    save_prefix(out / PROMPT_FILE, prefix)
    record = training_record(
        parts.settings,
        seconds_spent(checkpoint),
        examples=len(prompts),
        fingerprint=prefix.fingerprint,
        backbone=prefix.backbone,
        parameters=prefix.vectors.numel(),
        loss=[round(x, 4) for x in history],
    )
    write_json(out / "prompt.json", record)
    return record


def lesson_pool(parts: Assembly, name: str) -> list[Question]:
    """Choose the training questions of a task that lessons may ask.

    Args:
        parts: gives questions and, with ``hyper_tuning.answerable_only``, their evidence.
        name: the benchmark.

    Returns:
        All of them, or those whose passages hold an answer or that are answered by yes or no.
    """
    questions = training_questions(parts.source, name)
    if not parts.settings.hyper_tuning.answerable_only:
        return questions
    evidence = evidence_for(questions, parts.retriever, parts.settings.retrieval.top_k)
    held = map(holds_answer, questions, evidence)
    return [q for q, holds in zip(questions, held, strict=True) if holds is not False]


def hyper_lessons(parts: Assembly, targets: Targets) -> list[tuple[int, Prompt]]:
    """Make the questions that HyperTuning learns from.

    Args:
        parts: gives questions, retriever and tokenizer.
        targets: the support sets.

    Returns:
        Number of the support set and an answered prompt of its task, in the order of the plan.
    """
    settings = parts.settings
    tasks = known_benchmarks(sorted(set(targets.tasks)))
    pools = {name: lesson_pool(parts, name) for name in tasks}
    lessons = plan_lessons(targets, pools, settings.hyper_tuning)
    asked = {lesson.question.id: lesson.question for lesson in lessons}
    shown = make_demonstrations(list(asked.values()), parts.retriever, settings.retrieval.top_k)
    tokenizer, limit = parts.backbone.tokenizer, settings.target.max_tokens
    prompts = {d.id: answered_prompt(tokenizer, d, limit) for d in shown}
    return [(lesson.support, prompts[lesson.question.id]) for lesson in lessons]


def _start(parts: Assembly) -> MLPPredictor | None:
    if parts.settings.hyper_tuning.start != "predictor":
        return None
    # read anew: it is changed in place, and `parts` keeps what it has read
    start = load_predictor(weight_file(parts.weights, PREDICTOR_FILE))
    if not isinstance(start, MLPPredictor):
        raise RaggdError(f"{parts.weights / PREDICTOR_FILE} has no network that could be tuned.")
    return start


def run_train_hyper(parts: Assembly, store: Path, out: Path, progress: Progress) -> dict[str, Any]:
    """Train HyperTuning's predictor through the answer loss.

    Args:
        parts: settings, data, backbone, base adapter.
        store: folder of targets, whose support sets and states are used.
        out: folder for ``hyper.safetensors`` (``tuned``, ``mean-tuned``), its record and the
            checkpoint.
        progress: told step, steps, loss.

    Returns:
        The record that stands beside it.
    """
    settings, base = parts.settings, parts.base
    targets = training_targets(store)
    check_targets(base, targets)
    kept, _ = split_held_out(targets, settings.predictor.held_out_share)
    file = _FILES[settings.hyper_tuning.start]
    name = file.removesuffix(".safetensors")
    checkpoint = out / f"{name}.checkpoint.safetensors"
    lessons = hyper_lessons(parts, kept)
    with compile_layers(parts.backbone):
        predictor, history = train_hyper(
            parts.backbone,
            base,
            kept,
            lessons,
            settings.predictor,
            settings.hyper_tuning,
            checkpoint=checkpoint,
            progress=progress,
            start=_start(parts),
        )
    if file == MEAN_TUNED_FILE:
        vectors = predictor.predict(kept.states[:1]).vector()
        save_predictor(out / file, mean_predictor(base.spec, base.fingerprint, vectors))
    else:
        save_predictor(out / file, predictor)
    record = training_record(
        settings,
        seconds_spent(checkpoint),
        base=base.fingerprint,
        targets=targets.identity,
        sets=len(kept),
        loss=[round(x, 4) for x in history],
        hashes={file: weights_hash(out / file)},
    )
    write_json(out / f"{name}.json", record)
    return record


def run_train_task_mean(parts: Assembly, stores: Sequence[Path], out: Path) -> dict[str, Any]:
    """Average stored targets by task.

    Args:
        parts: settings and base adapter.
        stores: folders of targets.
        out: folder for ``task-mean.safetensors`` and its record.

    Returns:
        The record, with the number of targets of each task.
    """
    started = time.monotonic()
    found = [load_targets(store) for store in stores]
    means = task_means(parts.base, found)
    save_task_means(out / TASK_MEAN_FILE, parts.base, means)
    record = training_record(
        parts.settings,
        time.monotonic() - started,
        base=parts.base.fingerprint,
        targets=[store.identity for store in found],
        sets={task: sum(store.tasks.count(task) for store in found) for task in means},
        hashes={TASK_MEAN_FILE: weights_hash(out / TASK_MEAN_FILE)},
    )
    write_json(out / "task-mean.json", record)
    return record
