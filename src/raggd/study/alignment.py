"""How well predictors match true updates: cosine and norm ratio by task, projection, depth.

`run_alignment` compares a study's predictors on the study's own support sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.predictors.base import Predictor
from raggd.adaptation.targets import Targets, TargetStore, load_targets
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.core.low_rank import (
    PROJECTIONS,
    BaseAdapter,
    cosine_and_norms,
    total_cosine,
    update_from_vector,
)
from raggd.data.benchmarks import HELD_OUT
from raggd.evaluation.runner import drawn_supports
from raggd.evaluation.statistics import Sample
from raggd.files import write_json
from raggd.methods.spec import FILES_OF, SPECS
from raggd.progress import Progress
from raggd.provenance import origin
from raggd.report.grid import ALIGNMENT_FILE
from raggd.settings import TargetSettings
from raggd.study.plan import Cell, StudySettings
from raggd.study.run import locked

STEPS = {name: spec.imitates for name, spec in SPECS.items() if spec.imitates is not None}
"""Methods whose updates are compared, with the K of their targets; 0 is the K of the settings."""
SETS = 5  # fewest support sets per benchmark; a study with more draws takes them all
BLOCK = 16  # targets compared at once; bounds memory


def _matched(base: BaseAdapter, targets: Targets, predictor: Predictor) -> list[Tensor]:
    # of every support set: cosine (n, 3, layers), log of the norms' ratio likewise, and cosine of
    # all layers as one vector (n,)
    parts = []
    for start in range(0, len(targets), BLOCK):
        part = targets.take(range(start, min(start + BLOCK, len(targets))))
        vectors, states = (t.float().to(base.device) for t in (part.vectors, part.states))
        true = update_from_vector(base.spec, vectors, base.fingerprint)
        predicted = predictor.predict(states)
        cosine, own, wanted = cosine_and_norms(base, predicted, true)
        parts.append((cosine, (own / wanted).log(), total_cosine(base, predicted, true)))
    return [torch.cat(found).cpu() for found in zip(*parts, strict=True)]


@torch.no_grad()
def alignment_summary(base: BaseAdapter, targets: Targets, predictor: Predictor) -> dict[str, Any]:
    """Compare a predictor with true updates, in product space; both where the base is.

    The means of cosine (over sets, projections and layers), its bootstrap interval over sets
    (infinite of one set alone), of the cosine of all layers as one vector and of the log of the
    norms' ratio; the cosine by task, projection, third of the layers, place and set.
    """
    cosine, log_ratio, total = _matched(base, targets, predictor)
    per_set = cosine.mean((1, 2))
    sample = Sample(("cosine",), per_set[:, None].double().numpy(), targets.tasks)
    interval = sample.intervals()["cosine"]
    by_third = [part.mean().item() for part in cosine.tensor_split(3, dim=2)]
    return {
        "cosine": interval.mean,
        "interval": [interval.low, interval.high],
        "total_cosine": total.mean().item(),
        "log_norm_ratio": log_ratio.mean().item(),
        "by_task": {
            task: per_set[[i for i, t in enumerate(targets.tasks) if t == task]].mean().item()
            for task in sorted(set(targets.tasks))
        },
        "by_projection": {name: cosine[:, i].mean().item() for i, name in enumerate(PROJECTIONS)},
        "by_third": dict(zip(("lower", "middle", "upper"), by_third, strict=True)),
        "by_place": [[round(x, 4) for x in row] for row in cosine.mean(0).tolist()],
        "by_set": [
            {"task": task, "cosine": round(x, 4)}
            for task, x in zip(targets.tasks, per_set.tolist(), strict=True)
        ],
    }


def align_backbone(parts: Assembly, methods: Sequence[str], out: Path) -> dict[str, Any]:
    """Compute a backbone's true updates, kept below `out`, and compare predictors with them.

    Returned are the summaries by kind of tasks and method, of which the record is made.
    """
    target, drawn = parts.settings.target, parts.settings.evaluation
    steps = {method: STEPS[method] or target.steps for method in methods}
    kept = sorted(set(steps.values()) - {target.steps})
    settings: TargetSettings = target.model_copy(update={"keep": kept})
    count = max(SETS, drawn.draws)
    supports = [s for name in drawn.benchmarks for s in drawn_supports(parts, name, count)]
    store = TargetStore(parts.backbone, parts.base, supports, settings, out / "targets")
    store = replace(store, folder=store.folder / store.identity)
    with compile_layers(parts.backbone):
        store.build_all(parts.progress, f"{parts.backbone.name}: true updates")
    found: dict[str, dict[str, Any]] = {"training tasks": {}, "held-out tasks": {}}
    for method in methods:
        predictor = parts.predictor(FILES_OF[method][-1])
        targets = load_targets(store.folder, steps[method])
        for kind, by_method in found.items():
            wanted = kind == "held-out tasks"
            own = [i for i, task in enumerate(targets.tasks) if (task in HELD_OUT) is wanted]
            if own:
                summary = alignment_summary(parts.base, targets.take(own), predictor)
                by_method[method] = summary | {"steps": steps[method]}
    record = {
        "backbone": parts.backbone.name,
        "base": parts.base.fingerprint,
        "retriever": parts.retriever.fingerprint,
        "sets": len(supports),
        "found": found,
        "settings": parts.settings.model_dump(),
        **origin(),
    }
    write_json(out / ALIGNMENT_FILE, record)
    return found


def run_alignment(
    study: StudySettings, out: Path, cells: Sequence[Cell], progress: Progress
) -> dict[str, Any]:
    """Compare the predictors of every backbone with true updates; return mean cosines."""
    pairs = {cell.pair for cell in cells}
    result: dict[str, Any] = {}
    with locked(out):
        for name in (entry.name for entry in study.backbones):
            if methods := [method for method in STEPS if (name, method) in pairs]:
                parts = Assembly(study.first(name), progress)
                found = align_backbone(parts, methods, out / name)
                result[name] = {
                    kind: {m: {k: s[k] for k in ("cosine", "interval")} for m, s in by.items()}
                    for kind, by in found.items()
                }
    return result
