"""`python -m benchmarks.load`: what the server can take, measured from outside."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_app
from benchmarks.load.run import run_throughput
from benchmarks.load.run import soak as run_soak
from raggd.cli.shared import Assignments, Config, Json, Out, emit_json, progress_bar, say

app = typer.Typer(help="Measure a running server from outside.", no_args_is_help=True)


@app.command()
def throughput(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per comparison.")] = 5,
    out: Out = Path("runs/serve"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Eight different updates in a batch against none, and against one after another."""
    with progress_bar() as bar:
        record = run_throughput(config, assignments or [], out, rounds, bar)
    if as_json:
        emit_json(record)
        return
    for kind in ("natural", "long"):
        for name, words in (
            ("mixed_vs_plain", "8 updates in a batch / the same batch without"),
            ("mixed_vs_bare", "8 updates in a batch / the bare model"),
            ("mixed_vs_in_a_row", "8 updates in a batch / one after another"),
        ):
            found = record[kind][name]
            say(
                f"{kind} answers, throughput of {words}: {found['ratio']:.2f} "
                f"({found['low']:.2f} to {found['high']:.2f})"
            )


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30,
    visitors: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="Log-probabilities this close count as the same.")
    ] = 1e-3,
    out: Out = Path("runs/serve"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Mixed load with hang-ups, impatience and garbage; every answer is checked by its content."""
    with progress_bar() as bar:
        record = run_soak(
            config,
            assignments or [],
            out,
            minutes=minutes,
            visitors=visitors,
            tolerance=tolerance,
            bar=bar,
        )
    if as_json:
        emit_json(record)
    else:
        for name, count in record["counts"].items():
            say(f"{count:>7} {name}")
        say(
            f"{record['right_per_second']} right answers a second, p95 {record['ms']['p95']} ms",
            f"memory: {record['memory']}",
            f"at the end: {record['end']}",
            "good" if record["good"] else "NOT good",
        )
    if not record["good"]:
        sys.exit(1)


if __name__ == "__main__":
    run_app(app)
