"""Commands of the exact regime: `raggd verify` and `raggd boundary ...`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

boundary_app = typer.Typer(
    help="Make the figures of the boundary of the exact regime.", no_args_is_help=True
)
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Folder; an interrupted run continues.")]
FIGURES = {
    "fig1": "Both interfaces, one layer: loss, predictions and sensitivities over training.",
    "fig2": "An MLP before the attention, four tables, over training.",
    "fig5": "Documents 2 to 25 and input range 0.5 to 2: trained, constructed, half-way weights.",
    "fig6": "Dot-product, depth 2 and 5, documents 2 to 25.",
    "fig7": "Four tables under four input normalisations, after training.",
    "fig8": "Projection, depth 2 and 5, documents 2 to 15.",
    "statistics": "Which statistic of a table predicts its alignment (runs of fig2 and fig7).",
    "departures": "Softmax, uneven feature scales, irrelevant documents: what each costs.",
}


def verify(as_json: Json = False) -> None:
    """Hold Lemma 1's attention layer against the closed form and autograd, in seconds."""
    from raggd.cli.console import emit_json, say
    from raggd.linear.verify import summary
    from raggd.linear.verify import verify as run

    lines = run()
    found = summary(lines)
    if as_json:
        emit_json(found)
    else:
        from rich.table import Table

        table = Table("case", "cases", "vs closed form", "vs autograd", "expected", "")
        for line in lines:
            expected = "> 1e-2 (must differ)" if line.must_differ else "<= 1e-12"
            numbers = (f"{line.closed_form:.1e}", f"{line.autograd:.1e}")
            verdict = "yes" if line.holds else "NO"
            table.add_row(line.label, str(line.cases), *numbers, expected, verdict)
        say(
            table,
            "Largest deviation per line (smallest where it must differ), relative, float64.",
            f"One attention layer is one gradient step: {'yes' if found['holds'] else 'no'}",
        )
    if not found["holds"]:
        sys.exit(1)


def _figure_command(name: str) -> Callable[..., None]:
    def command(
        out: Out = Path("results/linear"),
        quick: Annotated[bool, typer.Option("--quick", help="Same shape, under a minute.")] = False,
        seed: Annotated[int, typer.Option(help="First seed.")] = 0,
        tables: Annotated[
            Path | None, typer.Option(help="Folder of the tables; default: found or fetched.")
        ] = None,
        as_json: Json = False,
    ) -> None:
        from raggd.cli.console import progress_bar, show
        from raggd.workflows.linear import run_boundary

        with progress_bar() as bar:
            record: dict[str, Any] = run_boundary(
                name, out, bar, quick=quick, seed=seed, tables=tables
            )
        made = f"{out / name}.png, .svg, .csv, .json ({record['seconds']:.0f} s of training)"
        show(record, as_json, made)

    command.__doc__ = FIGURES[name]
    return command


def speed(
    out: Out = Path("results/linear"),
    steps: Annotated[int, typer.Option(min=1, help="Steps per measurement.")] = 200,
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of measurements.")] = 5,
    as_json: Json = False,
) -> None:
    """Steps per second of the training loop against a plain loop, in one run."""
    from raggd.cli.console import emit_json, progress_bar, say
    from raggd.workflows.linear import run_speed

    with progress_bar() as bar:
        record = run_speed(out, bar, steps=steps, rounds=rounds)
    if as_json:
        emit_json(record)
        return
    for interface in ("projection", "dot-product"):
        found = record["summary"][interface]
        mean, low, high = found["ratio"]
        say(
            f"{interface}: {found['batched_steps_per_second']} steps/s, plain loop "
            f"{found['plain_steps_per_second']}; ratio {mean:.1f} ({low:.1f} to {high:.1f})"
        )


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: the program's commands.
    """
    app.command()(verify)
    for name, text in FIGURES.items():
        boundary_app.command(name, help=text)(_figure_command(name))
    boundary_app.command()(speed)
    app.add_typer(boundary_app, name="boundary")
