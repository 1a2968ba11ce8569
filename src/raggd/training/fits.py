"""What each stage of a training does: it writes its weights and returns facts for its record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from raggd.adaptation import training
from raggd.adaptation.base_adapter import save_base, train_base
from raggd.adaptation.following import Use, train_following, training_lessons
from raggd.adaptation.optimizer import Schedule, Session, seconds_spent
from raggd.adaptation.predictors.base import (
    MLPPredictor,
    Predictor,
    load_predictor,
    mean_predictor,
    save_predictor,
    save_task_means,
)
from raggd.adaptation.predictors.gate import Trial, fit_gate, measure_gains, save_gate
from raggd.adaptation.predictors.modulation import save_modulation
from raggd.adaptation.predictors.ridge import ridge_predictor
from raggd.adaptation.refusing import LESSONS, fit_rule, refusal_lessons
from raggd.adaptation.soft_prefix import save_prefix, train_prefix
from raggd.adaptation.targets import Targets, denoised, draw_supports, load_targets, split_held_out
from raggd.backbone.generate import read_prompts
from raggd.backbone.load import compile_layers
from raggd.backbone.refusal import doubts
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import HELD_OUT, known_benchmarks
from raggd.data.prompts import Prompt, answer_tokens
from raggd.data.questions import prepared_id
from raggd.data.template import REFUSAL
from raggd.evaluation.runner import support_sets
from raggd.methods import spec
from raggd.methods.answering import adapted_rows, render
from raggd.records import RaggdError, content_id
from raggd.retrieval.evidence import coverage, holds_answer
from raggd.settings import changed
from raggd.study.alignment import alignment_summary
from raggd.training.run import Run, base_examples, target_store

Facts = dict[str, Any]
HELD_OUT_SHARE = 0.2  # of each task's sets, on which a predictor is tried instead


def _session(run: Run, file: str, settings: Schedule) -> Session[Schedule]:
    checkpoint = run.out / f"{Path(file).stem}.checkpoint.safetensors"
    return Session(settings, checkpoint, run.settings.training, run.parts.progress)


def _train(
    run: Run,
    session: Session[Any],
    trainer: Callable[..., tuple[Any, list[float]]],
    *given: Any,
    **named: Any,
) -> tuple[Any, Facts]:
    # what a trainer makes with the backbone, and the facts that all trainings have
    with compile_layers(run.parts.backbone):
        made, history = trainer(run.parts.backbone, *given, session=session, **named)
    losses = [round(x, 4) for x in history]
    return made, {"seconds": seconds_spent(session.checkpoint), "loss": losses}


def base(run: Run, file: str) -> Facts:
    """Return the facts of training the base adapter W0 (paper section 5)."""
    prompts, settings = base_examples(run), run.settings
    shape = run.parts.backbone.adapter_spec(settings.adapter)
    session = _session(run, file, settings.base_training)
    made, facts = _train(run, session, train_base, shape, prompts)
    save_base(run.out / file, made)
    return {
        **facts,
        "examples": len(prompts),
        "passages_cut": sum(prompt.passages_cut for prompt in prompts),
        "fingerprint": made.fingerprint,
        "backbone": made.backbone,
        "parameters": shape.size,
    }


def prompt(run: Run, file: str) -> Facts:
    """Return the facts of training the soft prefix on the base adapter's examples."""
    prompts, session = base_examples(run), _session(run, file, run.settings.prompt_tuning)
    prefix, facts = _train(run, session, train_prefix, prompts)
    save_prefix(run.out / file, prefix)
    return {
        **facts,
        "examples": len(prompts),
        "fingerprint": prefix.fingerprint,
        "backbone": prefix.backbone,
        "parameters": prefix.vectors.numel(),
    }


def examples(run: Run, file: str) -> Facts:
    """Return the facts of training the step that follows examples, or a rival, as it is used."""
    options = spec.SPECS[Path(file).stem].options
    settings, base, rows = run.settings.examples, run.parts.base, run.rows()
    show, passages = options.get("prefix", True), options.get("passages", False)
    use = Use(show, passages, options.get("predict", False), show and base.untrained)
    tokenizer, common = run.parts.backbone.tokenizer, run.settings.training
    lessons = training_lessons(tokenizer, rows, settings, use, common)
    session = _session(run, file, settings)
    made, facts = _train(run, session, train_following, base, lessons, use=use)
    if use.predict:
        save_modulation(run.out / file, made)
    else:
        made.constant().map(lambda tensor: tensor.to(torch.bfloat16)).save(run.out / file)
    return {
        **facts,
        **use._asdict(),
        "base": base.fingerprint,
        "data": prepared_id(rows),
        "lessons": len(lessons),
    }


def targets(run: Run, file: str) -> Facts:
    """Return the facts of the K-step targets (paper equation 8); continues where it stopped."""
    store = target_store(run)
    with compile_layers(run.parts.backbone):
        store.build_all(run.parts.progress)
    return {
        "sets": len(store.supports),
        "identity": store.identity,
        "base": store.base.fingerprint,
        "backbone": store.backbone.fingerprint,
    }


def _split(run: Run, steps: int = 0) -> tuple[Targets, Targets, Facts]:
    # targets of K steps (0: the store's own) to train on, those held out, and facts of both
    stored = load_targets(run.stores[0], steps)
    never = sorted(HELD_OUT.intersection(stored.tasks))
    if never:
        raise RaggdError(
            f"{run.stores[0]} holds targets of {', '.join(never)}, which nothing may be trained on "
            "(paper section 5): make targets without `--pool`."
        )
    w0 = run.parts.base
    training.check_targets(w0, stored)
    kept, held = split_held_out(stored, HELD_OUT_SHARE)
    return kept, held, {"base": w0.fingerprint, "targets": stored.identity}


def _fits(
    base: BaseAdapter, kept: Targets, held: Targets, predictors: Mapping[str, Predictor]
) -> Facts:
    # how predictors align with targets that they were not fitted to
    calm = denoised(held)
    return {
        "sets": {"training": len(kept), "held_out": len(held)},
        "held_out": {name: alignment_summary(base, held, p) for name, p in predictors.items()},
        "held_out_denoised": {
            name: alignment_summary(base, calm, p) for name, p in predictors.items()
        },
    }


def predictor(run: Run, file: str, steps: int = 0) -> Facts:
    """Fit the predictor (equation 9) and its control, the mean, to targets of K `steps`."""
    w0, session = run.parts.base, _session(run, file, run.settings.predictor)
    kept, held, facts = _split(run, steps)
    fitted, history = training.train_predictor(w0, kept, session)
    mean_file = file.replace("predictor", "mean")
    save_predictor(run.out / file, fitted)
    save_predictor(run.out / mean_file, mean_predictor(w0.spec, w0.fingerprint, kept.vectors))
    known = {
        "rag-gd": load_predictor(run.out / file, w0.device),
        "mean-update": load_predictor(run.out / mean_file, w0.device),
    }
    return {
        "seconds": seconds_spent(session.checkpoint),
        **facts,
        **_fits(w0, kept, held, known),
        "loss": [round(x, 5) for x in history[:: max(1, len(history) // 200)]],
        "hashes": {mean_file: spec.weights_hash(run.out / mean_file)},
    }


def ridge(run: Run, file: str) -> Facts:
    """Return the facts of the predictor in closed form, from the targets of the MLP."""
    w0, (kept, held, facts) = run.parts.base, _split(run)
    fitted = ridge_predictor(w0.spec, w0.fingerprint, kept.states, denoised(kept).vectors)
    save_predictor(run.out / file, fitted)
    known = {
        "rag-gd-ridge": load_predictor(run.out / file, w0.device),
        "mean-update": mean_predictor(w0.spec, w0.fingerprint, kept.vectors.to(w0.device)),
    }
    return {**facts, **_fits(w0, kept, held, known)}


def hyper_lessons(run: Run, kept: Targets) -> list[tuple[int, Prompt]]:
    """Make what HyperTuning learns from, in order: a support set's number, an answered prompt."""
    pools = {name: run.answerable(name, holds_answer) for name in sorted(set(kept.tasks))}
    lessons = training.plan_lessons(kept, pools, run.settings.hyper_tuning, run.settings.training)
    asked = {question.id: question for _, question in lessons}
    prompts = run.prompts(list(asked.values()), run.settings.target.max_tokens)
    by_id = dict(zip(asked, prompts, strict=True))
    return [(support, by_id[question.id]) for support, question in lessons]


def hyper(run: Run, file: str, begin: Literal["zero", "predictor", "mean"] = "zero") -> Facts:
    """Train a predictor through the answers to other questions; refuse one that is no network."""
    # it begins with no update, the trained predictor, or the mean target: then it stays one for all
    settings, w0, start = run.settings, run.parts.base, None
    kept, _, facts = _split(run)
    if begin == "predictor":
        # read anew: it is changed in place, and `parts` keeps what it has read
        path = spec.weight_file(run.parts.weights, spec.PREDICTOR_FILE)
        start = load_predictor(path)  # in float32, which a card's copy is not
        if not isinstance(start, MLPPredictor):
            raise RaggdError(f"{path} has no network that could be tuned.")
    session = _session(run, file, settings.hyper_tuning)
    given = (w0, kept, hyper_lessons(run, kept), settings.predictor)
    how = {"start": start, "constant": begin == "mean"}
    made, told = _train(run, session, training.train_hyper, *given, **how)
    if begin == "mean":  # what any states give
        vectors = made.predict(kept.states[:1].to(w0.device)).vector()
        made = mean_predictor(w0.spec, w0.fingerprint, vectors)
    save_predictor(run.out / file, made)
    return {**told, **facts, "start": begin, "sets": len(kept)}


def task_mean(run: Run, file: str) -> Facts:
    """Return the facts of the average target of each task, which knows the task alone."""
    w0, found = run.parts.base, [load_targets(store) for store in run.stores]
    means = training.task_means(w0, found)
    save_task_means(run.out / file, w0, means)
    return {
        "base": w0.fingerprint,
        "targets": [store.identity for store in found],
        "sets": {task: sum(store.tasks.count(task) for store in found) for task in means},
    }


GATE_SETS, PROBES, GATE_SEED = 36, 8, 11
"""Support sets per training task that a gate is fitted on; questions that each is tried on."""
SCALES = (0.5, 1.0, 2.0, 3.0, 4.0)
NOISE = (0.0, 0.5, 1.0)  # shares of random passages in their evidence; support sets take turns


def gate_trials(run: Run) -> list[tuple[float, Trial]]:
    """Draw support sets and probes of all training tasks, tasks in turn, each with its noise."""
    settings = run.settings
    size, k = settings.target.demonstrations, settings.retrieval.top_k
    retrievers = [(noise, run.noisy(noise)) for noise in NOISE]
    by_task = []
    for name in known_benchmarks(settings.target.benchmarks):
        drawn = draw_supports(run.questions(name), size + PROBES, GATE_SETS, GATE_SEED, "gate")
        trials = []
        for number, questions in enumerate(drawn):
            noise, retriever = retrievers[number % len(retrievers)]
            sets = [questions[:size], questions[size:]]
            support, probes = support_sets(name, sets, retriever, k)
            trials.append((noise, (support, probes)))
        by_task.append(trials)
    return list(chain.from_iterable(zip(*by_task, strict=True)))


def _by_label(gains: Tensor, labels: list[str]) -> dict[str, list[float]]:
    groups = {label: [i for i, own in enumerate(labels) if own == label] for label in labels}
    return {
        label: [round(gain, 4) for gain in gains[rows].mean(0).tolist()]
        for label, rows in sorted(groups.items())
    }


def gate(run: Run, file: str) -> Facts:
    """Return the facts of a gate fitted to what the tuned predictor's updates gain."""
    parts = run.parts
    hashed = spec.weights_hash(spec.weight_file(parts.weights, spec.TUNED_FILE))
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
        run.parts.progress,
    )
    gains = (losses[:, :1] - losses[:, 1:]).mean(-1)
    fitted = fit_gate(states, gains, torch.tensor(SCALES))
    save_gate(run.out / file, fitted, hashed)
    chosen = fitted.choose(states)
    return {
        "predictor": hashed,
        "trials": len(trials),
        "scales": list(SCALES),
        "gain_by_task": _by_label(gains, [support.task for _, (support, _) in trials]),
        "gain_by_noise": _by_label(gains, [str(noise) for noise, _ in trials]),
        "chosen": {str(s): int((chosen == s).sum()) for s in [0.0, *SCALES]},
    }


def refusals(run: Run, file: str) -> Facts:
    """Return the facts of fitting the rule that decides whether to refuse."""
    rows, path = run.rows(), run.out / file
    path.unlink(missing_ok=True)  # lessons are read without one
    parts = run.parts.derived(changed(run.settings, "adapter", weights=str(run.out)))
    step, name = run.out / spec.EXAMPLES_FILE, "examples"
    if not step.is_file():  # of the model as it reads the examples without one
        step, name = run.out / spec.BASE_FILE, "base-examples"
    backbone, method = parts.backbone, parts.method(name)
    limit = run.settings.backbone.context_tokens
    token = answer_tokens(backbone.tokenizer, REFUSAL)[0]
    features: list[list[float]] = []  # what logits tell, and coverage
    wanted: list[bool] = []  # which are to be refused
    for lesson in islice(refusal_lessons(rows), LESSONS):
        adapted, asked = method.adapt([lesson.support])[0], lesson.asked
        prompt = render(backbone, adapted, asked.question, asked.passages, limit=limit)
        with adapted_rows(backbone, [adapted]):
            reading = read_prompts(backbone, [prompt], prefixes=[adapted.prefix])
        odds = doubts(reading.logits[0], token).tolist()
        features.append([*odds, coverage(prompt.question, prompt.passages)])
        wanted.append(asked.refused)
        run.parts.progress("refusals", len(wanted), LESSONS)
    rule, told = fit_rule(torch.tensor(features, dtype=torch.float64), torch.tensor(wanted), token)
    hashed = spec.weights_hash(step)
    rule.save(path, hashed if name == "examples" else parts.base.fingerprint)
    return {
        "lessons": len(wanted),
        "method": name,
        **{name: round(share, 3) for name, share in told.items()},
        "data": prepared_id(rows),
        "hashes": {step.name: hashed},
    }
