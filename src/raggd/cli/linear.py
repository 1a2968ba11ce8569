"""Commands of the exact regime: `raggd verify` and `raggd boundary FIGURE`."""

from __future__ import annotations

import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.shared import Json, Out, progress_bar, show
from raggd.files import read_json, replacing, write_json
from raggd.provenance import origin, versions
from raggd.records import content_id, require_known

if TYPE_CHECKING:
    from torch import Tensor

    from raggd.linear.figure import FigureSpec, Row
    from raggd.progress import Progress

FIGURES = {
    "fig1": "Both interfaces, one layer: loss, predictions and sensitivities over training.",
    "fig2": "An MLP before the attention, four tables, over training.",
    "fig5": "Documents 2 to 25 and input range 0.5 to 2, beside the authors' numbers.",
    "fig6": "Dot-product, depth 2 and 5 against GD++, documents 2 to 25.",
    "fig7": "Four tables under four input normalisations, after training.",
    "fig8": "Projection, depth 2 and 5 against GD++, documents 2 to 15.",
    "statistics": "Which statistic of a table predicts its alignment (runs of fig2 and fig7).",
    "departures": "Softmax, uneven feature scales, irrelevant documents: what each costs.",
}

Figure = Annotated[
    str, typer.Argument(help="\n\n".join(f"{name}: {text}" for name, text in FIGURES.items()))
]


def verify(as_json: Json = False) -> None:
    """Hold the layers of Lemma 1 and of GD++ against closed form and autograd, in seconds."""
    from rich.table import Table

    from raggd.linear.verify import checked_lines, summary

    lines = checked_lines()
    found = summary(lines)
    table = Table("case", "cases", "vs closed form", "vs autograd", "expected", "")
    for line in lines:
        expected = "> 1e-2 (must differ)" if line.must_differ else "<= 1e-12"
        numbers = (str(line.cases), f"{line.closed_form:.1e}", f"{line.autograd:.1e}")
        table.add_row(line.label, *numbers, expected, "yes" if line.holds else "NO")
    show(
        found,
        as_json,
        table,
        "Largest deviation per line (smallest where it must differ), relative, float64.",
        f"One attention layer is one gradient step: {'yes' if found['holds'] else 'no'}",
    )
    if not found["holds"]:
        sys.exit(1)


def figure_spec(name: str) -> FigureSpec:
    """Return what one of `FIGURES` is."""
    from raggd.linear import synthetic_figures, table_figures

    specs = (*synthetic_figures.FIGURES, *table_figures.FIGURES)
    return next(spec for spec in specs if spec.name == name)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    fields = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)  # fields that a row lacks stay empty


def _load(name: str, folder: Path | None) -> tuple[Tensor, Tensor]:
    import torch

    from raggd.data.tables import load_table

    table = load_table(name, folder)
    return torch.from_numpy(table.x), torch.from_numpy(table.y)


def run_cell(
    spec: FigureSpec, cell: Row, out: Path, tables: Path | None, progress: Progress
) -> dict[str, Any]:
    """Return rows and seconds of a cell, from its part file if it was run before."""
    import torch

    name = content_id(json.dumps(cell, sort_keys=True))
    path = out / "parts" / f"{cell['kind']}-{name}.json"
    if path.is_file():
        stored: dict[str, Any] = read_json(path, what="a part of a figure")
        return stored
    start, worked = time.perf_counter(), time.process_time()
    rows = spec.run(cell, progress, lambda name: _load(name, tables))
    part = {
        "cell": cell,
        "rows": rows,
        "seconds": round(time.perf_counter() - start, 2),
        "processor_seconds": round(time.process_time() - worked, 2),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    write_json(path, part)
    return part


def _save(spec: FigureSpec, rows: Sequence[Row], stem: Path) -> None:
    from matplotlib import rc_context

    figure = spec.draw(rows)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": spec.name}):
        for kind, extra in (("png", {"dpi": 130}), ("svg", {"metadata": {"Date": None}})):
            with replacing(stem.with_suffix(f".{kind}")) as temporary:
                figure.savefig(temporary, format=kind, **extra)


def run_boundary(
    name: str,
    out: Path,
    progress: Progress,
    *,
    quick: bool = False,
    seed: int = 0,
    tables: Path | None = None,
    reading: str | None = None,
) -> dict[str, Any]:
    """Make one figure: ``NAME.png``, ``NAME.svg``, ``NAME.csv`` and ``NAME.json`` in `out`.

    Every training run is stored in ``out/parts`` as soon as it ends, so that the same command
    continues. Another reading of section 4 than the figure's is written to ``NAME-READING``.
    """
    from raggd.linear.figure import SOURCE, compared

    require_known("figure", name, list(FIGURES))
    spec = figure_spec(name)
    reading = reading or spec.readings[0]
    require_known(f"reading of {name}", reading, spec.readings)
    cells = [{**cell, "seed": seed} for cell in spec.cells(quick, reading)]
    parts = [run_cell(spec, cell, out, tables, progress) for cell in cells]
    rows = [row for part in parts for row in part["rows"]]
    stem = out / (name if reading == spec.readings[0] else f"{name}-{reading}")
    _write_csv(stem.with_suffix(".csv"), rows)
    _save(spec, rows, stem)
    record = {
        "figure": name,
        "file": stem.name,
        "title": FIGURES[name],
        "reading": reading,
        "loss": "half the mean squared error" if reading == "authors" else "mean squared error",
        "quick": quick,
        "seed": seed,
        "summary": spec.summarise(rows),
        "authors": compared(name, rows),
        "authors_source": SOURCE,
        "seconds": round(sum(part["seconds"] for part in parts), 1),
        "processor_seconds": round(sum(part["processor_seconds"] for part in parts), 1),
        "seconds_by_cell": [part["seconds"] for part in parts],
        "settings": cells,
        "cores": os.cpu_count(),
        "threads": sorted({part["threads"] for part in parts}),
        "instructions": sorted({part["instructions"] for part in parts}),
        **origin("matplotlib"),
    }
    write_json(stem.with_suffix(".json"), record)
    return record


def _authors_table(record: dict[str, Any]) -> list[Any]:
    """Return the authors' numbers beside ours, to be shown; nothing where none are known."""
    from rich.table import Table

    if not record["authors"]:
        return []
    columns = ("interface", "documents", "layers", "inputs in ±", "which", "theirs", "ours")
    title = f"Ours, on the authors' tasks, beside {record['authors_source']}"
    table = Table(*columns, "difference", "fresh tasks", "", title=title)
    for row in record["authors"]:
        where = (row["interface"], row["documents"], row["layers"], row["input_range"])
        numbers = (row["which"], row["theirs"], row["ours"], f"{100 * row['relative']:+.1f} %")
        table.add_row(*map(str, (*where, *numbers, row.get("fresh", ""), row["verdict"])))
    said = Counter(row["verdict"] for row in record["authors"])
    return [table, f"Of {said.total()}: " + ", ".join(f"{what} {n}" for what, n in said.items())]


def boundary(
    figure: Figure,
    out: Out = Path("results/linear"),
    quick: Annotated[bool, typer.Option("--quick", help="Same shape, under a minute.")] = False,
    seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    reading: Annotated[
        str | None,
        typer.Option(help="Of section 4: 'authors' (their code) or 'ours'; default by figure."),
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder of the tables; default: found or fetched.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a figure of the boundary of the exact regime."""
    with progress_bar() as bar:
        record = run_boundary(
            figure, out, bar, quick=quick, seed=seed, tables=tables, reading=reading
        )
    stem, seconds = out / record["file"], record["seconds"]
    made = f"{stem}.png, .svg, .csv, .json ({seconds:.0f} s of training)"
    show(record, as_json, made, *_authors_table(record))
