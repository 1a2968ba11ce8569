"""`raggd train gate`: scale or withhold what a predictor emits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raggd.cli_options import Assignments, Config, Json, Out
from raggd.cli_options import load_parts as _parts


def train_gate(
    predictor: Annotated[
        str, typer.Option(help="Predictor of the weights folder that the gate is for.")
    ] = "predictor.safetensors",
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Measure what predicted updates gain on training questions, and fit the gate to it."""
    from raggd.console import emit_json, progress_bar, say
    from raggd.workflows.gate import run_train_gate

    with progress_bar() as bar:
        parts = _parts(config, assignments, bar)
        result = run_train_gate(
            parts, predictor, out, lambda done, total: bar("trials", done, total)
        )
    if as_json:
        emit_json(result)
        return
    for label, gains in {**result["gain_by_task"], **result["gain_by_noise"]}.items():
        cells = "  ".join(f"x{s}: {g:+.3f}" for s, g in zip(result["scales"], gains, strict=True))
        say(f"{label:<18} {cells}")


def register(train_app: typer.Typer) -> None:
    """Add the command to ``raggd train``."""
    train_app.command("gate")(train_gate)
