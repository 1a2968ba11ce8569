"""`raggd targets` and `raggd train`: base adapter, predictor, gate, and rivals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli.options import (
    Assignments,
    Cluster,
    Config,
    Json,
    Out,
    Store,
    Workers,
    WorkerThreads,
    load_parts,
)

train_app = typer.Typer(help="Train a base adapter, a predictor, or a rival.", no_args_is_help=True)


def _trained(
    run: Callable[..., dict[str, Any]],
    what: str,
    options: tuple[Path | None, list[str] | None],
    *where: Path,
    digits: int = 3,
) -> dict[str, Any]:
    from raggd.cli.console import progress_bar

    with progress_bar() as bar:
        return run(
            load_parts(*options, bar),
            *where,
            lambda step, steps, loss: bar(f"{what}, loss {loss:.{digits}f}", step, steps),
        )


@train_app.command("prompt")
def train_prompt(
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train the soft prefix of prompt tuning, on the base adapter's examples."""
    from raggd.cli.console import show_training
    from raggd.workflows.rivals import run_train_prompt

    result = _trained(run_train_prompt, "soft prefix", (config, assignments), out)
    show_training(result, as_json, f"soft prefix {result['fingerprint']} in {out}")


@train_app.command("hyper")
def train_hyper(
    store: Store = Path("runs/targets"),
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train HyperTuning: the same predictor, through the answer loss of other questions."""
    from raggd.cli.console import show_training
    from raggd.workflows.rivals import run_train_hyper

    result = _trained(run_train_hyper, "HyperTuning", (config, assignments), store, out)
    show_training(result, as_json, f"HyperTuning's predictor in {out}")


@train_app.command("ridge")
def train_ridge(
    store: Store = Path("runs/targets"),
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Fit the predictor in closed form to stored targets, in a minute."""
    from raggd.cli.console import progress_bar, show
    from raggd.workflows.ridge import run_train_ridge

    with progress_bar() as bar:
        result = run_train_ridge(load_parts(config, assignments, bar), store, out)
    lines = [
        f"{name:<14} cosine to denoised targets, held out: {found['cosine']:.3f}"
        for name, found in result["held_out_denoised"].items()
    ]
    show(result, as_json, *lines, f"ridge predictor in {out}")


@train_app.command("task-mean")
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
    from raggd.cli.console import progress_bar, show_training
    from raggd.workflows.rivals import run_train_task_mean

    with progress_bar() as bar:
        result = run_train_task_mean(load_parts(config, assignments, bar), targets, out)
    counts = ", ".join(f"{task} ({count})" for task, count in result["sets"].items())
    show_training(result, as_json, f"mean updates of {counts} in {out}")


@train_app.command("gate")
def train_gate(
    predictor: Annotated[
        str, typer.Option(help="Predictor of the weights folder that the gate is for.")
    ] = "tuned.safetensors",
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Measure what predicted updates gain on training questions, and fit the gate to it."""
    from raggd.cli.console import progress_bar, show
    from raggd.workflows.gate import run_train_gate

    with progress_bar() as bar:
        parts = load_parts(config, assignments, bar)
        result = run_train_gate(
            parts, predictor, out, lambda done, total: bar("trials", done, total)
        )
    lines = []
    for label, gains in {**result["gain_by_task"], **result["gain_by_noise"]}.items():
        cells = "  ".join(f"x{s}: {g:+.3f}" for s, g in zip(result["scales"], gains, strict=True))
        lines.append(f"{label:<18} {cells}")
    show(result, as_json, *lines)


@train_app.command("base")
def train_base(
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train the base adapter W0 (the shared interface)."""
    from raggd.cli.console import show_training
    from raggd.workflows.train import run_train_base

    result = _trained(run_train_base, "base adapter", (config, assignments), out)
    show_training(result, as_json, f"base adapter {result['fingerprint']} in {out}")


@train_app.command("predictor")
def train_predictor(
    store: Store = Path("runs/targets"),
    out: Out = Path("runs/weights"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Train the predictor, and its control the mean update, on stored targets."""
    from raggd.cli.console import show_training
    from raggd.workflows.train import run_train_predictor

    result = _trained(run_train_predictor, "predictor", (config, assignments), store, out, digits=4)
    lines = (
        f"{name}: mean cosine to the true update on held-out supports {found['cosine']:.3f}"
        for name, found in result["held_out"].items()
    )
    show_training(result, as_json, *lines)


def targets(
    out: Out = Path("runs/targets"),
    pool: Annotated[
        bool, typer.Option("--pool", help="Of the support pools, held-out tasks too; for controls.")
    ] = False,
    cluster: Cluster = None,
    workers: Workers = 0,
    worker_threads: WorkerThreads = 0,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Compute the K-step SGD targets that a predictor learns from."""
    from raggd.cli.console import progress_bar, show

    with progress_bar() as bar:
        parts = load_parts(config, assignments, bar)
        if cluster:
            from raggd.cluster.crew import Crew
            from raggd.cluster.targets import run_targets_on

            crew = Crew(cluster, workers, worker_threads)
            result = run_targets_on(parts, out, crew, bar, pool)
        else:
            from raggd.workflows.train import run_targets

            result = run_targets(parts, out, lambda done, total: bar("targets", done, total), pool)
    show(result, as_json, f"{result['sets']} targets in {out}")
