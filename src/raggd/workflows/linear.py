"""`raggd verify` and `raggd boundary`: run what is missing, write figure, curves and record."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.data.tables import load_table
from raggd.files import read_json, replacing, write_json, write_text
from raggd.linear.boundary import FIGURES
from raggd.linear.boundary.base import FigureSpec, Progress, Row, cell_id
from raggd.linear.boundary.speed import measure_speed
from raggd.provenance import origin, versions
from raggd.records import require_known


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as CSV; fields that a row lacks stay empty."""
    fields = list(dict.fromkeys(key for row in rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _load(name: str, folder: Path | None) -> tuple[Tensor, Tensor]:
    table = load_table(name, folder)
    return torch.from_numpy(table.x), torch.from_numpy(table.y)


def _run_cell(
    spec: FigureSpec, cell: Row, out: Path, tables: Path | None, progress: Progress
) -> dict[str, Any]:
    """Return rows and seconds of a cell, from its part file if it was run before."""
    path = out / "parts" / f"{cell['kind']}-{cell_id(cell)}.json"
    if path.is_file():
        stored: dict[str, Any] = read_json(path, what="a part of a figure")
        return stored
    start = time.perf_counter()
    rows = spec.run(cell, progress, lambda name: _load(name, tables))
    part = {
        "cell": cell,
        "rows": rows,
        "seconds": round(time.perf_counter() - start, 2),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    write_json(path, part)
    return part


def _save(spec: FigureSpec, rows: Sequence[Row], out: Path) -> None:
    from matplotlib import rc_context

    figure = spec.draw(rows)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": spec.name}):
        for kind, extra in (("png", {"dpi": 130}), ("svg", {"metadata": {"Date": None}})):
            with replacing(out / f"{spec.name}.{kind}") as temporary:
                figure.savefig(temporary, format=kind, **extra)


def run_boundary(
    name: str,
    out: Path,
    progress: Progress,
    *,
    quick: bool = False,
    seed: int = 0,
    tables: Path | None = None,
) -> dict[str, Any]:
    """Make one figure: ``NAME.png``, ``NAME.svg``, ``NAME.csv`` and ``NAME.json`` in `out`.

    Every training run is stored in ``out/parts`` under the hash of its settings as soon as it ends;
    the same command continues where it was interrupted.

    Args:
        name: of the figure.
        out: folder.
        progress: told label, steps done, steps in all.
        quick: small settings, under a minute.
        seed: first seed.
        tables: folder of the tables; None looks in the usual places and fetches.

    Returns:
        The record: settings, seconds, summary, versions.
    """
    require_known("figure", name, list(FIGURES))
    spec = FIGURES[name]
    cells = [{**cell, "seed": seed} for cell in spec.cells(quick)]
    parts = [_run_cell(spec, cell, out, tables, progress) for cell in cells]
    rows = [row for part in parts for row in part["rows"]]
    write_text(out / f"{name}.csv", to_csv(rows))
    _save(spec, rows, out)
    record = {
        "figure": name,
        "title": spec.title,
        "quick": quick,
        "seed": seed,
        "summary": spec.summarise(rows),
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "seconds_by_cell": [part["seconds"] for part in parts],
        "settings": cells,
        "cores": os.cpu_count(),
        "threads": sorted({part["threads"] for part in parts}),
        **origin("matplotlib"),
    }
    write_json(out / f"{name}.json", record)
    return record


def run_speed(
    out: Path, progress: Progress, *, steps: int, rounds: int, seeds: int = 3
) -> dict[str, Any]:
    """Time the training loop against a plain one and write ``speed.json``.

    Args:
        out: folder.
        progress: told label, rounds done, rounds in all.
        steps: per measurement.
        rounds: pairs of measurements.
        seeds: replicas.

    Returns:
        The record.
    """
    record = {
        "summary": measure_speed(steps, rounds, seeds, progress),
        "steps": steps,
        "rounds": rounds,
        "cores": os.cpu_count(),
        **origin(),
    }
    write_json(out / "speed.json", record)
    return record
