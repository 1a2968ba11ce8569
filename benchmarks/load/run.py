"""`python -m benchmarks.load`: start a server, measure it from outside, write the record."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.load.soak import run_soak, stop_under_load
from benchmarks.load.throughput import measure_throughput
from benchmarks.load.work import make_workload, own_server
from raggd.assembly import Assembly
from raggd.files import write_json
from raggd.progress import Progress
from raggd.provenance import origin
from raggd.settings import load_settings

SPARE = 6
EXACT = "backbone.dtype='float32'"
"""In bfloat16 a row's neighbours change its last digits: no check by content would be sharp."""
FEW_UPDATES = "serving.updates_mb=24"
"""Room for four updates of the embedded backbone, of the eight in use: they come and go."""
PATIENT = "serving.timeout_s=3600"
"""On a busy machine eight questions take minutes, and are to be timed, not given up."""


def _about(parts: Assembly, changes: Sequence[str]) -> dict[str, Any]:
    return {
        "backbone": parts.settings.backbone.name,
        "changes": list(changes),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "settings": parts.settings.model_dump(),
        **origin(),
    }


def run_throughput(
    config: Path | None, changes: Sequence[str], out: Path, rounds: int, bar: Progress
) -> dict[str, Any]:
    """Measure throughput and write ``throughput.json``, and the server's log beside it."""
    changes = [PATIENT, *changes]
    parts = Assembly(load_settings(config, changes), bar)
    workload = make_workload(parts, 8)
    with own_server(config, changes, out / "server.log") as server:
        found = measure_throughput(server.url, workload, rounds, bar)
        exit_code = server.stop()
    record = {**found, "exit_code": exit_code, **_about(parts, changes)}
    write_json(out / "throughput.json", record)
    return record


def soak(
    config: Path | None,
    changes: Sequence[str],
    out: Path,
    *,
    minutes: float,
    visitors: int,
    tolerance: float,
    bar: Progress,
) -> dict[str, Any]:
    """Soak a server, stop it under load, and write ``soak.json``.

    Args:
        config: settings file.
        changes: single changes, applied after `EXACT` and `FEW_UPDATES`.
        out: folder of the record, and of the server's log.
        minutes: how long.
        visitors: clients at once.
        tolerance: largest difference of a log-probability that counts as the same.
        bar: told how far it is.

    Returns:
        The record; ``good`` says whether everything was as promised, memory apart.
    """
    every = [EXACT, FEW_UPDATES, *changes]
    parts = Assembly(load_settings(config, every), bar)
    workload = make_workload(parts, 12, SPARE)
    with own_server(config, every, out / "server.log") as server:
        found = run_soak(
            server.url,
            workload,
            minutes=minutes,
            visitors=visitors,
            tolerance=tolerance,
            progress=bar,
        )
        end = stop_under_load(server, workload)
    bad = [n for n in ("wrong", "another's", "lost", "garbage not refused") if n in found["counts"]]
    good = not bad and end["exit_code"] == 0 and end["finished"] == end["requests"]
    record = {"good": good, **found, "end": end, **_about(parts, every)}
    write_json(out / "soak.json", record)
    return record
