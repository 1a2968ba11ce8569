"""`python -m benchmarks`: the promised prices, as ratios measured in one run."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measured import Measured
from benchmarks.pages import growth_figure, ratio_table, time_table
from benchmarks.registry import BENCHES, find_bench
from benchmarks.setting import BenchSetting
from raggd.assembly import Assembly
from raggd.files import write_json, write_text
from raggd.provenance import origin
from raggd.records import require_known


def _record(parts: Assembly, found: dict[str, Measured]) -> dict[str, Any]:
    ratios = {name: ratio for each in found.values() for name, ratio in each.ratios.items()}
    return {
        "ratios": {name: round(ratio.ratio, 4) for name, ratio in ratios.items()},
        "details": {name: asdict(ratio) for name, ratio in ratios.items()},
        "benches": {name: each.record() for name, each in found.items()},
        "tt_sgd_steps": parts.settings.target.steps,
        "backbone": parts.backbone.name,
        "dtype": str(parts.backbone.dtype),
        "device": str(parts.backbone.device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "settings": parts.settings.model_dump(),
        **origin(),
    }


def run_bench(parts: Assembly, out: Path, rounds: int, only: str | None) -> dict[str, Any]:
    """Measure; write ``bench.json``, ``bench.md`` and, of growth, a figure.

    What is measured is written after every bench: a run that is stopped keeps those it finished.
    With `only`, the files carry the bench's name, so that single runs do not replace each other.
    What takes a minute is timed in half as many rounds.

    Returns:
        ``ratios`` (medians by name), ``details``, ``benches`` and where they were measured.
    """
    if only is not None:
        require_known("bench", only, BENCHES)
    setting = BenchSetting(parts, rounds, parts.say)
    setting.benchmark  # noqa: B018  a wrong name is told before anything is loaded
    found: dict[str, Measured] = {}
    record: dict[str, Any] = {}
    for name in [only] if only else BENCHES:
        bench = find_bench(name)
        parts.say(bench.ABOUT)
        started = time.perf_counter()
        measured = bench.run(setting)
        seconds = round(time.perf_counter() - started)
        found[name] = replace(measured, facts={**measured.facts, "seconds": seconds})
        record = _write(parts, found, out, f"bench-{only}" if only else "bench")
    return record


def _write(parts: Assembly, found: dict[str, Measured], out: Path, stem: str) -> dict[str, Any]:
    record = _record(parts, found)
    write_json(out / f"{stem}.json", record)
    tables = (ratio_table(record["details"]), time_table(record["benches"]))
    write_text(out / f"{stem}.md", "\n".join(table.to_markdown() for table in tables))
    growth = {axis: value for each in found.values() for axis, value in _axes(each).items()}
    if growth:
        write_text(out / "growth.svg", growth_figure(growth))
    return record


def _axes(found: Measured) -> dict[str, Any]:
    return dict(found.facts.get("growth", {}))
