"""`python -m benchmarks`: the promised prices, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.command import run_app
from benchmarks.pages import ratio_table, time_table
from benchmarks.run import run_bench
from raggd.cli.shared import Assignments, Config, Json, Out, emit_json, opened, say

app = typer.Typer(add_completion=False)


@app.command()
def bench(
    only: Annotated[
        str | None,
        typer.Option(
            help="Run one: adaptation, answering, following, targets, training, growth, retrieval."
        ),
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
    with opened(config, assignments) as rag:
        result = run_bench(rag.parts, out, rounds, only)
    if as_json:
        emit_json(result)
        return
    if result["details"]:
        say(ratio_table(result["details"]).to_text())
    say(time_table(result["benches"]).to_text())
    for measured in result["benches"].values():
        for axis, grown in measured.get("growth", {}).items():
            say(f"{axis}: cost grows with the power {grown['exponent']:.2f}")


if __name__ == "__main__":
    run_app(app)
