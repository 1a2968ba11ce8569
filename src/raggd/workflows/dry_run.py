"""`raggd study FILE --dry-run`: what is there, what is missing, and what the study will take."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raggd.assembly import Assembly
from raggd.methods.spec import SPECS
from raggd.records import RaggdError
from raggd.report.contrasts import sample
from raggd.report.grid import load_grid
from raggd.study.estimate import Lengths, Rates, Work, memory_bytes, method_work, power
from raggd.study.inspect import (
    Checks,
    check_benchmarks,
    check_prompts,
    check_retrievers,
    check_weights_of,
    corpus_told,
)
from raggd.study.plan import Cell, Part, all_cells
from raggd.study.progress import Speed, measured_speed
from raggd.study.rates import dtype_name, machine_rates
from raggd.study.settings import StudyBackbone, StudySettings
from raggd.study.shapes import Sizes, backbone_sizes

Say = Callable[[str], None]


def _observed(out: Path) -> tuple[float, float] | None:
    # share of questions whose EM differs between RAG-GD and base, and the deviation, over blocks
    try:
        blocks = load_grid(out).blocks
    except RaggdError:
        return None
    pair = ("rag-gd", "base")
    both = [b for b in blocks if set(pair) <= set(b.methods)]
    found = [s for b in both if (s := sample([b], pair, b.benchmarks, "em")) is not None]
    differences = np.concatenate([s.values[:, 0] - s.values[:, 1] for s in found] or [np.zeros(0)])
    if len(differences) < 30:
        return None
    return float(np.mean(differences != 0)), float(differences.std())


@dataclass(frozen=True, slots=True)
class _Plan:
    """Questions and adaptations of every backbone and method."""

    cells: Sequence[Cell]
    counts: Mapping[str, int]
    study: StudySettings

    def questions(self) -> int:
        return sum(self.counts[cell.benchmark] for cell in self.cells)

    def work(self) -> dict[tuple[str, str], tuple[int, int]]:
        sampled, found = self.study.evaluation, dict[tuple[str, str], tuple[int, int]]()
        for cell in self.cells:
            n = self.counts[cell.benchmark]
            adaptations = n if sampled.support == "query" else min(sampled.draws, n)
            known = found.get((cell.backbone, cell.method), (0, 0))
            found[cell.backbone, cell.method] = (known[0] + n, known[1] + adaptations)
        return found


def _seconds(
    plan: _Plan, works: Mapping[tuple[str, str], Work], speed: Speed
) -> Iterator[tuple[tuple[str, str], float, bool]]:
    for key, (questions, adaptations) in plan.work().items():
        if key in speed.spent:
            yield key, questions * speed.spent[key] / speed.answered[key], True
        elif key in works:
            work = works[key]
            yield key, questions * work.answer_seconds + adaptations * work.adapt_seconds, False


def _backbone_estimates(
    study: StudySettings, entry: StudyBackbone, sizes: Sizes, lengths: Lengths, rates: Rates
) -> tuple[dict[tuple[str, str], Work], dict[str, float]]:
    dtype, sampled = dtype_name(study), study.evaluation
    works = {
        (entry.name, method): method_work(
            method,
            sizes,
            lengths,
            rates,
            demonstrations=study.target.demonstrations,
            steps=study.target.steps,
            rank=study.adapter.rank,
            batch=sampled.batch,
            dtype=dtype,
        )
        for method in entry.methods
    }
    longest = round(lengths.prompt * 1.3)
    if any(SPECS[method].shown for method in entry.methods):
        longest = round(lengths.prompt + lengths.demonstration * study.target.demonstrations)
    memory = memory_bytes(
        sizes,
        lengths,
        dtype=dtype,
        batch=sampled.batch,
        demonstrations=study.target.demonstrations,
        gradients=any(SPECS[method].gradient_steps is not None for method in entry.methods),
        longest=min(longest, study.backbone.context_tokens),
    )
    return works, {name: round(value / 2**30, 2) for name, value in memory.items()}


def dry_run(
    study: StudySettings, out: Path, part: Part, tflops: float | None, say: Say
) -> dict[str, Any]:
    """Look at everything that a study needs and estimate what it will take; nothing is run.

    Args:
        study: the settings.
        out: its folder; parts that are there give measured times.
        part: the piece to look at.
        tflops: speed of the machine in 10^12 operations per second; None measures or assumes it.
        say: told what is being looked at.

    Returns:
        ``ready``, ``checks``, ``cells``, ``questions``, ``hours``, ``backbones`` (memory, lengths,
        hours by method), ``power`` and ``rates``.
    """
    part.check(study)
    checks = Checks(say)
    first = study.retrievers[0].name
    parts = Assembly(study.run_settings(study.backbones[0].name, first, study.seeds[0]))
    counts = check_benchmarks(checks, study, parts)
    checks.run("corpus", partial(corpus_told, parts), str)
    check_retrievers(checks, study)
    plan = _Plan(all_cells(study, part), counts, study)
    speed, works = measured_speed(out), dict[tuple[str, str], Work]()
    told: dict[str, Any] = {}
    for entry in (b for b in study.backbones if not part.backbones or b.name in part.backbones):
        look = partial(backbone_sizes, entry.model or entry.name)
        sizes = checks.run(f"{entry.name}: shape", look, lambda found: found.source)
        lengths = check_prompts(checks, study, entry, parts)
        methods = [m for m in entry.methods if not part.methods or m in part.methods]
        check_weights_of(checks, study, entry, methods, sizes)
        if sizes is not None and lengths is not None:
            rates = machine_rates(study, sizes, tflops)
            mine, memory = _backbone_estimates(study, entry, sizes, lengths, rates)
            works |= mine
            told[entry.name] = {
                "memory_gib": memory,
                "lengths": asdict(lengths),
                "rates": rates.told,
            }
    spent = list(_seconds(plan, works, speed))
    for (backbone, method), seconds, measured in spent:
        by_method = told.setdefault(backbone, {}).setdefault("hours", {})
        by_method[method] = {"hours": round(seconds / 3600, 3), "measured": measured}
    observed = _observed(out)
    return {
        "ready": all(check.ok for check in checks.found),
        "checks": [asdict(check) for check in checks.found],
        "cells": len(plan.cells),
        "questions": plan.questions(),
        "hours": round(sum(seconds for _, seconds, _ in spent) / 3600, 2),
        "estimated": all(key in {k for k, _, _ in spent} for key in plan.work()),
        "power": power(sum(counts.values()), *(observed or (None,))),
        "backbones": told,
    }


def _backbone_words(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    if "memory_gib" in found:
        memory = found["memory_gib"]
        yield (
            f"{name}: about {memory['total']:.1f} GiB (weights {memory['weights']:.1f}, keys and "
            f"values {memory['cache']:.1f}, activations {memory['activations']:.1f}); "
            f"{found['rates']}"
        )
    for method, spent in found.get("hours", {}).items():
        how = "measured" if spent["measured"] else "estimated"
        yield f"  {method:<22} {spent['hours']:8.2f} h  {how}"


def told_in_words(found: Mapping[str, Any]) -> list[str]:
    """Put the result of a dry run into lines for a terminal.

    Args:
        found: from `dry_run`.

    Returns:
        The lines.
    """
    lines = [
        f"{'ok ' if check['ok'] else 'NO '} {check['item']}: {check['message']}"
        for check in found["checks"]
    ]
    lines.append("")
    for name, entry in found["backbones"].items():
        lines += _backbone_words(name, entry)
    power_found = found["power"]
    share = f"{power_found['changed']:.1%} of the questions"
    share += " (observed)" if power_found["observed"] else " (assumed; no records yet)"
    needed = ", ".join(f"{e} EM: {n}" for e, n in power_found["needed"].items())
    some = "" if found["estimated"] else " (some methods could not be estimated)"
    return [
        *lines,
        "",
        f"{found['cells']} cells, {found['questions']} answers, about {found['hours']} h{some}",
        f"Questions needed to see the paper's gains at 80 % power, two methods differing on "
        f"{share}: {needed}. Planned per block: {power_found['planned']}, which shows "
        f"{power_found['detectable']} EM.",
        "Everything is there." if found["ready"] else "Not everything is there: see NO above.",
    ]
