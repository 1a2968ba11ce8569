"""`raggd bench`: the promised prices, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raggd.cli.options import Assignments, Config, Json, Out, load_parts


def bench(
    only: Annotated[
        str | None,
        typer.Option(help="Run one: adaptation, answering, targets, training, growth, retrieval."),
    ] = None,
    rounds: Annotated[
        int, typer.Option(min=1, help="Rounds per comparison; half as many for slow ones.")
    ] = 5,
    out: Out = Path("runs/bench"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Measure the promised prices as ratios: A and B in turn, in one run."""
    from raggd.cli.console import emit_json, progress_bar, say
    from raggd.report.bench import ratio_table, time_table
    from raggd.workflows.bench import run_bench

    with progress_bar() as bar:
        result = run_bench(load_parts(config, assignments, bar), out, rounds, only)
    if as_json:
        emit_json(result)
        return
    if result["details"]:
        say(ratio_table(result["details"]).to_text())
    say(time_table(result["benches"]).to_text())
    for found in result["benches"].values():
        for axis, grown in found.get("growth", {}).items():
            say(f"{axis}: cost grows with the power {grown['exponent']:.2f}")


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: the program's commands.
    """
    app.command()(bench)
