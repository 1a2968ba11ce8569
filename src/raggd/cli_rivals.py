"""`raggd train prompt`, `hyper`, `task-mean`: weights of what RAG-GD is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli_options import Assignments, Config, Json, Out, Store
from raggd.cli_options import load_parts as _parts


def _report(result: dict[str, Any], line: str, as_json: bool) -> None:
    from raggd.console import emit_json, say

    if as_json:
        emit_json({k: v for k, v in result.items() if k != "loss"})
    else:
        say(line)


def train_prompt(
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train the soft prefix of prompt tuning, on the base adapter's examples."""
    from raggd.console import progress_bar
    from raggd.workflows.rivals import run_train_prompt

    with progress_bar() as bar:
        result = run_train_prompt(
            _parts(config, assignments, bar),
            out,
            lambda step, steps, loss: bar(f"soft prefix, loss {loss:.3f}", step, steps),
        )
    _report(result, f"soft prefix {result['fingerprint']} in {out}", as_json)


def train_hyper(
    store: Store = Path("runs/targets"),
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train HyperTuning: the same predictor, through the answer loss of other questions."""
    from raggd.console import progress_bar
    from raggd.workflows.rivals import run_train_hyper

    with progress_bar() as bar:
        result = run_train_hyper(
            _parts(config, assignments, bar),
            store,
            out,
            lambda step, steps, loss: bar(f"HyperTuning, loss {loss:.3f}", step, steps),
        )
    _report(result, f"HyperTuning's predictor in {out}", as_json)


def train_task_mean(
    targets: Annotated[
        list[Path], typer.Option(help="Folder that `raggd targets` wrote. Repeatable.")
    ],
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Average the targets of each task, a control that knows the task alone."""
    from raggd.console import progress_bar
    from raggd.workflows.rivals import run_train_task_mean

    with progress_bar() as bar:
        result = run_train_task_mean(_parts(config, assignments, bar), targets, out)
    counts = ", ".join(f"{task} ({count})" for task, count in result["sets"].items())
    _report(result, f"mean updates of {counts} in {out}", as_json)


def register(train_app: typer.Typer) -> None:
    """Add the commands to ``raggd train``."""
    train_app.command("prompt")(train_prompt)
    train_app.command("hyper")(train_hyper)
    train_app.command("task-mean")(train_task_mean)
