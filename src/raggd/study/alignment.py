"""How well a study's predictors match the true updates of the study's own support sets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raggd.adaptation.predictors.base import Predictor
from raggd.adaptation.supports import draw_supports
from raggd.adaptation.target_store import Targets, build_targets, load_targets, store_identity
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.data.benchmarks import BENCHMARKS, support_pool
from raggd.evaluation.alignment import alignment_summary
from raggd.evaluation.runner import support_sets
from raggd.files import write_json
from raggd.methods.spec import FILES_OF, SPECS
from raggd.progress import Progress
from raggd.provenance import origin
from raggd.records import SupportSet
from raggd.settings import TargetSettings
from raggd.study.folder import locked
from raggd.study.plan import Part
from raggd.study.settings import StudySettings

ALIGNMENT_FILE = "alignment.json"
STEPS = {name: spec.imitates for name, spec in SPECS.items() if spec.imitates is not None}
"""Methods whose updates are compared, with the K of their targets; 0 is the K of the settings."""
SETS = 5
"""Fewest support sets per benchmark; a study with more draws takes them all."""


def _supports(parts: Assembly) -> list[SupportSet]:
    settings = parts.settings
    found = []
    for name in settings.evaluation.benchmarks:
        pool = support_pool(parts.source, name)
        count = max(SETS, settings.evaluation.draws)
        size, seed = settings.target.demonstrations, settings.evaluation.seed
        drawn = draw_supports(pool, size, count, seed, purpose="evaluation")
        found += support_sets(name, drawn, parts.retriever, settings.retrieval.top_k)
    return found


def _of_kind(targets: Targets, held_out: bool) -> Targets:
    kinds = [task in BENCHMARKS and BENCHMARKS[task].held_out for task in targets.tasks]
    return targets.take([i for i, kind in enumerate(kinds) if kind is held_out])


def _compared(
    parts: Assembly, methods: Sequence[str], folder: Path, steps: dict[str, int]
) -> dict[str, Any]:
    found: dict[str, Any] = {"training tasks": {}, "held-out tasks": {}}
    for method in methods:
        predictor: dict[str, Predictor] = {method: parts.predictor(FILES_OF[method][-1])}
        targets = load_targets(folder, steps[method])
        for label, held_out in (("training tasks", False), ("held-out tasks", True)):
            chosen = _of_kind(targets, held_out)
            if len(chosen):
                summary = alignment_summary(parts.base, chosen, predictor)[method]
                found[label][method] = summary | {"steps": steps[method]}
    return found


def align_backbone(
    parts: Assembly, methods: Sequence[str], out: Path, progress: Progress
) -> dict[str, Any]:
    """Compute the true updates of a backbone's support sets and compare predictors with them.

    The updates are kept below `out`, so that it continues; the record stands in ``alignment.json``.
    """
    target = parts.settings.target
    steps = {method: STEPS[method] or target.steps for method in methods}
    kept = sorted(set(steps.values()) - {target.steps})
    settings: TargetSettings = target.model_copy(update={"keep": kept})
    supports = _supports(parts)
    identity = store_identity(parts.backbone, parts.base, supports, settings)
    folder = out / "targets" / identity
    with compile_layers(parts.backbone):
        told = partial(progress, f"{parts.backbone.name}: true updates")
        build_targets(parts.backbone, parts.base, supports, settings, folder, told)
    record = {
        "backbone": parts.backbone.name,
        "base": parts.base.fingerprint,
        "retriever": parts.retriever.fingerprint,
        "sets": len(supports),
        "found": _compared(parts, methods, folder, steps),
        "settings": parts.settings.model_dump(),
        **origin(),
    }
    write_json(out / ALIGNMENT_FILE, record)
    return record


def run_alignment(
    study: StudySettings, out: Path, part: Part, progress: Progress
) -> dict[str, Any]:
    """Compare the predictors of every backbone with true updates; one record per backbone.

    By backbone, by kind of task, by method: mean cosine and its interval.
    """
    part.check(study)
    result: dict[str, Any] = {}
    with locked(out):
        for entry in study.backbones:
            wanted = not part.backbones or entry.name in part.backbones
            methods = [m for m in STEPS if m in entry.methods]
            methods = [m for m in methods if not part.methods or m in part.methods]
            if not wanted or not methods:
                continue
            settings = study.run_settings(entry.name, study.retrievers[0].name, study.seeds[0])
            parts = Assembly(settings, progress)
            record = align_backbone(parts, methods, out / entry.name, progress)
            result[entry.name] = {
                kind: {m: {k: s[k] for k in ("cosine", "interval")} for m, s in by_method.items()}
                for kind, by_method in record["found"].items()
            }
    return result
