"""What each stage of a training does: it writes its weights and returns facts for its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.base_adapter import save_base, train_base
from raggd.adaptation.following import train_following, training_lessons
from raggd.adaptation.optimizer import seconds_spent
from raggd.adaptation.predictors.base import (
    MeanPredictor,
    Predictor,
    load_predictor,
    mean_predictor,
    save_predictor,
    save_task_means,
)
from raggd.adaptation.predictors.gate import Trial, fit_gate, measure_gains, save_gate
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.predictors.modulation import save_modulation
from raggd.adaptation.predictors.ridge import ridge_predictor
from raggd.adaptation.prompt_tuning import save_prefix, train_prefix
from raggd.adaptation.supports import draw_supports
from raggd.adaptation.targets import (
    Targets,
    denoised,
    load_targets,
    split_held_out,
)
from raggd.adaptation.training import (
    check_targets,
    plan_lessons,
    task_means,
    train_hyper,
    train_predictor,
)
from raggd.core.low_rank import BaseAdapter, load_update
from raggd.data.benchmarks import known_benchmarks
from raggd.data.prepared import prepared_id
from raggd.data.prompts import Prompt
from raggd.evaluation.runner import support_sets
from raggd.methods import spec
from raggd.methods.spec import weight_file, weights_hash
from raggd.records import RaggdError, content_id
from raggd.retrieval.evidence import make_demonstrations
from raggd.study.alignment import alignment_summary
from raggd.training.run import Run, base_examples, in_turn, lesson_pool, target_store

Facts = dict[str, Any]
HYPER_FILES = {"zero": spec.HYPER_FILE, "predictor": spec.TUNED_FILE, "mean": spec.MEAN_TUNED_FILE}
"""What each start of HyperTuning ends in."""
FOLLOWING_FILES = {
    (True, False): spec.EXAMPLES_FILE,
    (True, True): spec.EXAMPLES_BOTH_FILE,
    (False, False): spec.EXAMPLES_CONSTANT_FILE,
    (False, True): spec.EXAMPLES_UPDATE_FILE,
}
"""What learning from examples ends in, by whether they are shown and whether it predicts."""


def _checkpoint(run: Run, file: str) -> Path:
    return run.out / f"{Path(file).stem}.checkpoint.safetensors"


def _train(
    run: Run, file: str, trainer: Callable[..., tuple[Any, list[float]]], *given: Any, **named: Any
) -> tuple[Any, Facts]:
    # what a trainer makes with the backbone, and the facts that all trainings have
    checkpoint, name = _checkpoint(run, file), Path(file).stem
    named |= {"checkpoint": checkpoint, "progress": run.losses(name)}
    with run.compiled():
        made, history = trainer(run.parts.backbone, *given, **named)
    losses = [round(x, 4) for x in history]
    return made, {"seconds": seconds_spent(checkpoint), "loss": losses}


def hashes_of(run: Run, *files: str) -> dict[str, str]:
    """Return the hashes of files in the folder of the weights."""
    return {file: weights_hash(run.out / file) for file in files}


def base(run: Run) -> Facts:
    """Return the facts of training the base adapter W0 (paper section 5)."""
    prompts, settings = base_examples(run), run.settings
    shape = run.parts.backbone.adapter_spec(settings.adapter)
    given = (shape, prompts, settings.base_training)
    made, facts = _train(run, spec.BASE_FILE, train_base, *given)
    save_base(run.out / spec.BASE_FILE, made)
    return {
        **facts,
        "examples": len(prompts),
        "passages_cut": sum(prompt.passages_cut for prompt in prompts),
        "fingerprint": made.fingerprint,
        "backbone": made.backbone,
        "parameters": shape.size,
    }


def prompt(run: Run) -> Facts:
    """Return the facts of training the soft prefix on the base adapter's examples."""
    prompts = base_examples(run)
    given = (prompts, run.settings.prompt_tuning)
    prefix, facts = _train(run, spec.PROMPT_FILE, train_prefix, *given)
    save_prefix(run.out / spec.PROMPT_FILE, prefix)
    return {
        **facts,
        "examples": len(prompts),
        "fingerprint": prefix.fingerprint,
        "backbone": prefix.backbone,
        "parameters": prefix.vectors.numel(),
    }


def examples(run: Run) -> Facts:
    """Return the facts of training the step that follows examples, or one of its rivals."""
    settings, base, rows = run.settings.examples, run.parts.base, run.rows()
    lessons = training_lessons(run.parts.backbone.tokenizer, rows, settings)
    file = FOLLOWING_FILES[settings.show, settings.predict]
    file = spec.EXAMPLES_WHOLE_FILE if settings.passages else file
    start = load_update(settings.start).to(base.device) if settings.start else None
    given = (base, lessons, settings)
    made, facts = _train(run, file, train_following, *given, start=start)
    if settings.predict:
        save_modulation(run.out / file, made)
    else:
        made.constant().map(lambda tensor: tensor.to(torch.bfloat16)).save(run.out / file)
    return {
        **facts,
        "base": base.fingerprint,
        "data": prepared_id(rows),
        "lessons": len(lessons),
        "hashes": hashes_of(run, file),
    }


def targets(run: Run) -> Facts:
    """Return the facts of the K-step targets (paper equation 8); continues where it stopped."""
    store = target_store(run)
    with run.compiled():
        store.build_all(lambda done, total: run.progress("targets", done, total))
    return {
        "sets": len(store.supports),
        "identity": store.identity,
        "base": store.base.fingerprint,
        "backbone": store.backbone.fingerprint,
    }


def _split(run: Run, steps: int = 0) -> tuple[Targets, Targets, Facts]:
    # targets to train on, those held out, and what the record says of both
    stored, w0 = run.targets(steps), run.parts.base
    check_targets(w0, stored)
    kept, held = split_held_out(stored, run.settings.predictor.held_out_share)
    return kept, held, {"base": w0.fingerprint, "targets": stored.identity}


def _fits(
    base: BaseAdapter, kept: Targets, held: Targets, predictors: Mapping[str, Predictor]
) -> Facts:
    # how predictors align with targets that they were not fitted to
    goals = {"held_out": held, "held_out_denoised": denoised(held)} if len(held) else {}
    return {
        "sets": {"training": len(kept), "held_out": len(held)},
        "held_out": {},
        "held_out_denoised": {},
        **{name: alignment_summary(base, goal, predictors) for name, goal in goals.items()},
    }


def predictor(run: Run) -> Facts:
    """Return the facts of fitting the predictor (equation 9) and its control, the mean update."""
    settings, w0 = run.settings.predictor, run.parts.base
    kept, held, facts = _split(run, settings.target_steps)
    suffix = f"-k{settings.target_steps}" if settings.target_steps else ""
    files = {"rag-gd": f"predictor{suffix}.safetensors", "mean-update": f"mean{suffix}.safetensors"}
    checkpoint = _checkpoint(run, files["rag-gd"])
    fitted, history = train_predictor(
        w0, kept, settings, checkpoint=checkpoint, progress=run.losses("predictor", 4)
    )
    save_predictor(run.out / files["rag-gd"], fitted)
    mean = mean_predictor(w0.spec, w0.fingerprint, kept.vectors)
    save_predictor(run.out / files["mean-update"], mean)
    known = {name: load_predictor(run.out / file) for name, file in files.items()}
    return {
        "seconds": seconds_spent(checkpoint),
        **facts,
        **_fits(w0, kept, held, known),
        "loss": [round(x, 5) for x in history[:: max(1, len(history) // 200)]],
        "hashes": hashes_of(run, *files.values()),
    }


def ridge(run: Run) -> Facts:
    """Return the facts of the predictor in closed form, from the targets of the MLP."""
    settings, w0 = run.settings, run.parts.base
    kept, held, facts = _split(run, settings.predictor.target_steps)
    goals, scale = denoised(kept).vectors, settings.ridge.scale
    fitted = ridge_predictor(w0.spec, w0.fingerprint, kept.states, goals, scale)
    save_predictor(run.out / spec.RIDGE_FILE, fitted)
    known = {
        "rag-gd-ridge": load_predictor(run.out / spec.RIDGE_FILE),
        "mean-update": mean_predictor(w0.spec, w0.fingerprint, kept.vectors),
    }
    hashes = hashes_of(run, spec.RIDGE_FILE)
    return {**facts, **_fits(w0, kept, held, known), "hashes": hashes}


def hyper_lessons(run: Run, kept: Targets) -> list[tuple[int, Prompt]]:
    """Make the questions that HyperTuning learns from: a support set's number, an answered prompt.

    They are in the order of the plan.
    """
    tasks = known_benchmarks(sorted(set(kept.tasks)))
    pools = {name: lesson_pool(run, name) for name in tasks}
    lessons = plan_lessons(kept, pools, run.settings.hyper_tuning)
    asked = {lesson.question.id: lesson.question for lesson in lessons}
    prompts = run.prompts(list(asked.values()), run.settings.target.max_tokens)
    by_id = dict(zip(asked, prompts, strict=True))
    return [(lesson.support, by_id[lesson.question.id]) for lesson in lessons]


def _start(run: Run) -> MLPPredictor | None:
    if run.settings.hyper_tuning.start != "predictor":
        return None
    # read anew: it is changed in place, and `parts` keeps what it has read
    path = weight_file(run.parts.weights, spec.PREDICTOR_FILE)
    start = load_predictor(path, run.parts.device)
    if not isinstance(start, MLPPredictor):
        raise RaggdError(f"{path} has no network that could be tuned.")
    return start


def hyper(run: Run) -> Facts:
    """Return the facts of a predictor trained through the answer loss of other questions."""
    settings, w0 = run.settings, run.parts.base
    kept, _, facts = _split(run)
    file = HYPER_FILES[settings.hyper_tuning.start]
    given = (w0, kept, hyper_lessons(run, kept), settings.predictor, settings.hyper_tuning)
    made, told = _train(run, file, train_hyper, *given, start=_start(run))
    saved: MLPPredictor | MeanPredictor = made
    if file == spec.MEAN_TUNED_FILE:  # one update for all sets: what any states give
        vectors = made.predict(kept.states[:1]).vector()
        saved = mean_predictor(w0.spec, w0.fingerprint, vectors)
    save_predictor(run.out / file, saved)
    return {**told, **facts, "sets": len(kept), "hashes": hashes_of(run, file)}


def task_mean(run: Run) -> Facts:
    """Return the facts of the average target of each task, which knows the task alone."""
    w0, found = run.parts.base, [load_targets(store) for store in run.stores]
    means = task_means(w0, found)
    save_task_means(run.out / spec.TASK_MEAN_FILE, w0, means)
    return {
        "base": w0.fingerprint,
        "targets": [store.identity for store in found],
        "sets": {task: sum(store.tasks.count(task) for store in found) for task in means},
        "hashes": hashes_of(run, spec.TASK_MEAN_FILE),
    }


GATE_SETS, PROBES, GATE_SEED = 36, 8, 11
"""Support sets per training task that a gate is fitted on; questions that each is tried on."""
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0)
NOISE = (0.0, 0.5, 1.0)
"""Shares of random passages in their evidence; support sets take turns."""


def gate_trials(run: Run) -> list[tuple[float, Trial]]:
    """Draw support sets and probes of all training tasks, tasks in turn, noise in turn.

    Each trial comes with its share of random passages.
    """
    settings = run.settings
    size, k = settings.target.demonstrations, settings.retrieval.top_k
    retrievers = [(noise, run.noisy(noise)) for noise in NOISE]
    by_task = []
    for name in known_benchmarks(settings.target.benchmarks):
        drawn = draw_supports(run.questions(name), size + PROBES, GATE_SETS, GATE_SEED, "gate")
        trials = []
        for number, questions in enumerate(drawn):
            noise, retriever = retrievers[number % len(retrievers)]
            (support,) = support_sets(name, [questions[:size]], retriever, k)
            probes = make_demonstrations(questions[size:], retriever, k)
            trials.append((noise, Trial(support, tuple(probes))))
        by_task.append(trials)
    return in_turn(by_task)


def _by_label(gains: Tensor, labels: list[str]) -> dict[str, list[float]]:
    groups = {label: [i for i, own in enumerate(labels) if own == label] for label in labels}
    return {
        label: [round(gain, 4) for gain in gains[rows].mean(0).tolist()]
        for label, rows in sorted(groups.items())
    }


def gate(run: Run) -> Facts:
    """Return the facts of a gate fitted to what the tuned predictor's updates gain."""
    parts = run.parts
    hashed = weights_hash(weight_file(parts.weights, spec.TUNED_FILE))
    trials = gate_trials(run)
    states, losses = measure_gains(
        parts.backbone,
        parts.base,
        parts.predictor(spec.TUNED_FILE),
        [trial for _, trial in trials],
        SCALES,
        run.settings.target.max_tokens,
        run.out / "trials",
        content_id(parts.backbone.fingerprint, parts.base.fingerprint, hashed),
        lambda done, total: run.progress("trials of the gate", done, total),
    )
    gains = (losses[:, :1] - losses[:, 1:]).mean(-1)
    fitted = fit_gate(states, gains, torch.tensor(SCALES))
    save_gate(run.out / spec.GATE_FILE, fitted, hashed)
    chosen = fitted.choose(states)
    return {
        "predictor": hashed,
        "trials": len(trials),
        "scales": list(SCALES),
        "gain_by_task": _by_label(gains, [trial.support.task for _, trial in trials]),
        "gain_by_noise": _by_label(gains, [str(noise) for noise, _ in trials]),
        "chosen": {str(s): int((chosen == s).sum()) for s in [0.0, *SCALES]},
    }
