"""`raggd train gate`: try predicted updates on other training questions, and fit the gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.gains import Trial, measure_gains
from raggd.adaptation.gate import fit_gate
from raggd.adaptation.predictors.gated import save_gate
from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import known_benchmarks, training_questions
from raggd.evaluation.tasks import support_sets
from raggd.files import write_json
from raggd.methods.spec import GATE_FILE, weights_hash
from raggd.records import RaggdError, content_id
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import make_demonstrations
from raggd.workflows.train import training_record


def _trials_of(
    parts: Assembly, name: str, retrievers: list[tuple[float, Retriever]]
) -> list[tuple[float, Trial]]:
    wanted, size = parts.settings.gate, parts.settings.target.demonstrations
    pool = training_questions(parts.source, name)
    drawn = draw_supports(pool, size + wanted.probes, wanted.per_benchmark, wanted.seed, "gate")
    k = parts.settings.retrieval.top_k
    trials = []
    for number, questions in enumerate(drawn):
        noise, retriever = retrievers[number % len(retrievers)]
        (support,) = support_sets(name, [questions[:size]], retriever, k)
        probes = make_demonstrations(questions[size:], retriever, k)
        trials.append((noise, Trial(support, tuple(probes))))
    return trials


def gate_trials(parts: Assembly) -> list[tuple[float, Trial]]:
    """Draw support sets and probes of all training tasks, tasks in turn, noise in turn.

    Args:
        parts: gives questions and retriever.

    Returns:
        ``gate.per_benchmark`` trials of each benchmark of ``target.benchmarks``, each with its
        share of random passages.
    """
    retrievers = [(noise, parts.retriever_with(noise)) for noise in parts.settings.gate.noise]
    names = known_benchmarks(parts.settings.target.benchmarks)
    by_task = [_trials_of(parts, name, retrievers) for name in names]
    return [trial for together in zip(*by_task, strict=True) for trial in together]


def _by_label(gains: Tensor, labels: list[str]) -> dict[str, list[float]]:
    groups = {label: [i for i, own in enumerate(labels) if own == label] for label in labels}
    return {
        label: [round(gain, 4) for gain in gains[rows].mean(0).tolist()]
        for label, rows in sorted(groups.items())
    }


def run_train_gate(
    parts: Assembly, predictor_file: str, out: Path, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    """Measure the gains of a predictor's updates and fit a gate to them.

    Args:
        parts: settings, data, backbone, base, predictor.
        predictor_file: which predictor of the weights folder.
        out: folder for ``gate.safetensors``, ``gate.json`` and the measured trials.
        progress: told trials done and in all.

    Returns:
        The record, with the mean gain at each scale by task and by noise.

    Raises:
        RaggdError: a scale is not positive.
    """
    wanted = parts.settings.gate
    if min(wanted.scales) <= 0:
        raise RaggdError(f"gate.scales must be positive, got {wanted.scales}: 0 is always there.")
    started = time.monotonic()
    predictor, weights = parts.predictor(predictor_file), parts.weights / predictor_file
    hashed = weights_hash(weights)
    trials = gate_trials(parts)
    identity = content_id(parts.backbone.fingerprint, parts.base.fingerprint, hashed)
    states, losses = measure_gains(
        parts.backbone,
        parts.base,
        predictor,
        [trial for _, trial in trials],
        wanted.scales,
        parts.settings.target.max_tokens,
        out / "trials",
        identity,
        progress,
    )
    gains = (losses[:, :1] - losses[:, 1:]).mean(-1)
    gate = fit_gate(states, gains, torch.tensor(wanted.scales), wanted.caution)
    save_gate(out / GATE_FILE, gate, hashed)
    chosen = gate.choose(states)
    record = training_record(
        parts.settings,
        time.monotonic() - started,
        predictor=hashed,
        trials=len(trials),
        scales=wanted.scales,
        gain_by_task=_by_label(gains, [trial.support.task for _, trial in trials]),
        gain_by_noise=_by_label(gains, [str(noise) for noise, _ in trials]),
        chosen={str(s): int((chosen == s).sum()) for s in [0.0, *wanted.scales]},
    )
    write_json(out / "gate.json", record)
    return record
