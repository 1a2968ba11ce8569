"""`raggd train base`, `raggd targets`, `raggd train predictor`: the way to one's own weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from raggd.adaptation.base_adapter import save_base, train_base
from raggd.adaptation.examples import answered_prompt
from raggd.adaptation.optimizer import seconds_spent
from raggd.adaptation.predictors.base import Predictor
from raggd.adaptation.predictors.store import load_predictor, mean_predictor, save_predictor
from raggd.adaptation.supports import draw_supports
from raggd.adaptation.target_store import (
    Targets,
    build_targets,
    denoised,
    load_targets,
    split_held_out,
)
from raggd.adaptation.training import check_targets, train_predictor
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import find_benchmark, known_benchmarks, support_pool, training_questions
from raggd.data.prompts import Prompt
from raggd.evaluation.alignment import alignment_summary
from raggd.evaluation.tasks import support_sets
from raggd.files import write_json
from raggd.methods.spec import BASE_FILE, weights_hash
from raggd.provenance import origin
from raggd.records import RaggdError, SupportSet
from raggd.retrieval.evidence import evidence_for, is_answerable, make_demonstrations
from raggd.settings import Settings

StepProgress = Callable[[int, int, float], None]


def training_record(settings: Settings, seconds: float, **facts: Any) -> dict[str, Any]:
    """Make the record of a training.

    Args:
        settings: all of them.
        seconds: what it took.
        **facts: what else is worth keeping.

    Returns:
        The record, ready for JSON.
    """
    return {
        "settings": settings.model_dump(),
        "seconds": round(seconds, 1),
        **origin(),
        **facts,
    }


def base_examples(parts: Assembly) -> list[Prompt]:
    """Make the training examples of the base adapter.

    Args:
        parts: gives questions, retriever and tokenizer.

    Returns:
        One answered prompt per training question of the benchmarks in the settings.
    """
    settings = parts.settings
    prompts = []
    for name in known_benchmarks(settings.base_training.benchmarks):
        questions = training_questions(parts.source, name)
        if settings.base_training.answerable_only:
            evidence = evidence_for(questions, parts.retriever, settings.retrieval.top_k)
            pairs = zip(questions, evidence, strict=True)
            questions = [q for q, passages in pairs if is_answerable(q, passages)]
        shown = make_demonstrations(questions, parts.retriever, settings.retrieval.top_k)
        limit = settings.base_training.max_tokens
        prompts += [answered_prompt(parts.backbone.tokenizer, d, limit) for d in shown]
    return prompts


def run_train_base(parts: Assembly, out: Path, progress: StepProgress) -> dict[str, Any]:
    """Train the base adapter W0 and write it with its record.

    Args:
        parts: settings, data, backbone.
        out: folder for ``base.safetensors``, ``base.json`` and the checkpoint.
        progress: told step, steps, loss.

    Returns:
        The record that stands in ``base.json``.
    """
    settings = parts.settings
    checkpoint = out / "base.checkpoint.safetensors"
    prompts = base_examples(parts)
    spec = parts.backbone.adapter_spec(settings.adapter)
    with compile_layers(parts.backbone):
        base, history = train_base(
            parts.backbone,
            spec,
            prompts,
            settings.base_training,
            checkpoint=checkpoint,
            progress=progress,
        )
    save_base(out / BASE_FILE, base)
    record = training_record(
        settings,
        seconds_spent(checkpoint),
        examples=len(prompts),
        passages_cut=sum(prompt.passages_cut for prompt in prompts),
        fingerprint=base.fingerprint,
        backbone=base.backbone,
        parameters=spec.size,
        loss=[round(x, 4) for x in history],
    )
    write_json(out / "base.json", record)
    return record


def target_supports(parts: Assembly, pool: bool = False) -> list[SupportSet]:
    """Draw the support sets of all tasks, tasks in turn, so that a part is balanced.

    Args:
        parts: gives questions and retriever.
        pool: draw from the support pools, which held-out tasks have too.

    Returns:
        ``per_benchmark`` sets of each benchmark in the settings.
    """
    wanted = parts.settings.target
    by_task = []
    for name in known_benchmarks(wanted.benchmarks):
        questions = (support_pool if pool else training_questions)(parts.source, name)
        drawn = draw_supports(questions, wanted.demonstrations, wanted.per_benchmark, wanted.seed)
        by_task.append(support_sets(name, drawn, parts.retriever, parts.settings.retrieval.top_k))
    return [support for together in zip(*by_task, strict=True) for support in together]


def training_targets(store: Path, steps: int = 0) -> Targets:
    """Load targets to train on.

    Args:
        store: folder of targets.
        steps: their K; 0 for the K that the store was made for.

    Returns:
        The targets.

    Raises:
        RaggdError: the store holds a task that nothing may be trained on.
    """
    targets = load_targets(store, steps)
    held_out = [task for task in sorted(set(targets.tasks)) if find_benchmark(task).held_out]
    if held_out:
        raise RaggdError(
            f"{store} holds targets of {', '.join(held_out)}, which nothing may be trained on "
            "(paper section 5): make targets without `--pool`."
        )
    return targets


def run_targets(
    parts: Assembly, folder: Path, progress: Callable[[int, int], None], pool: bool = False
) -> dict[str, Any]:
    """Compute the K-step targets of the training tasks; continues where it stopped.

    Args:
        parts: settings, data, backbone, base adapter.
        folder: the store.
        progress: told sets done and sets in all.
        pool: targets of the support pools instead, for controls and pictures: held-out tasks may
            be among them, and no training takes those.

    Returns:
        What was made, from what.
    """
    started = time.monotonic()
    supports = target_supports(parts, pool)
    with compile_layers(parts.backbone):
        identity = build_targets(
            parts.backbone, parts.base, supports, parts.settings.target, folder, progress
        )
    record = training_record(
        parts.settings,
        time.monotonic() - started,
        sets=len(supports),
        identity=identity,
        base=parts.base.fingerprint,
        backbone=parts.backbone.fingerprint,
    )
    write_json(folder / "targets.json", record)
    return record


def held_out_facts(
    base: BaseAdapter, kept: Targets, held: Targets, predictors: Mapping[str, Predictor]
) -> dict[str, Any]:
    """Say how predictors align with targets that they were not fitted to, for a record.

    Args:
        base: W0.
        kept: targets that they were fitted to.
        held: targets kept from them; may be empty.
        predictors: by name.

    Returns:
        Number of ``sets``, and the alignment with the targets ``held_out`` and with their
        ``held_out_denoised``.
    """
    goals = {"held_out": held, "held_out_denoised": denoised(held)} if len(held) else {}
    return {
        "sets": {"training": len(kept), "held_out": len(held)},
        "held_out": {},
        "held_out_denoised": {},
        **{name: alignment_summary(base, goal, predictors) for name, goal in goals.items()},
    }


def run_train_predictor(
    parts: Assembly, store: Path, out: Path, progress: StepProgress
) -> dict[str, Any]:
    """Fit the predictor and its control, the mean update, to stored targets.

    Args:
        parts: settings and base adapter.
        store: folder of targets.
        out: folder for ``predictor.safetensors``, ``mean.safetensors`` and their record; with
            ``predictor.target_steps`` set, ``predictor-k<K>.safetensors`` and so on.
        progress: told step, steps, loss.

    Returns:
        The record, with the alignment of both on held-out support sets.
    """
    settings, base = parts.settings.predictor, parts.base
    targets = training_targets(store, settings.target_steps)
    check_targets(base, targets)
    kept, held = split_held_out(targets, settings.held_out_share)
    mean = mean_predictor(base.spec, base.fingerprint, kept.vectors)
    suffix = f"-k{settings.target_steps}" if settings.target_steps else ""
    predictor_file = f"predictor{suffix}.safetensors"
    mean_file = f"mean{suffix}.safetensors"
    checkpoint = out / f"predictor{suffix}.checkpoint.safetensors"
    predictor, history = train_predictor(
        base, kept, settings, checkpoint=checkpoint, progress=progress
    )
    save_predictor(out / predictor_file, predictor)
    save_predictor(out / mean_file, mean)
    stored = {"rag-gd": predictor_file, "mean-update": mean_file}
    known = {name: load_predictor(out / file) for name, file in stored.items()}
    record = training_record(
        parts.settings,
        seconds_spent(checkpoint),
        base=base.fingerprint,
        targets=targets.identity,
        **held_out_facts(base, kept, held, known),
        loss=[round(x, 5) for x in history[:: max(1, len(history) // 200)]],
        hashes={f: weights_hash(out / f) for f in stored.values()},
    )
    write_json(out / f"predictor{suffix}.json", record)
    return record
