"""`raggd targets` and `raggd train`: a command for every stage, and all of them in order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Cluster,
    Config,
    Json,
    Out,
    Workers,
    WorkerThreads,
    cluster_options,
    names_in,
    note,
    opened,
    refuse_idle,
    show,
)

train_app = typer.Typer(help="Train weights: all of them, or one stage.", no_args_is_help=True)
STAGES = {
    "base": "Train the base adapter W0 (the shared interface).",
    "predictor": "Train the predictor, and its control the mean update, on stored targets.",
    "predictor-k1": "The same on targets of one step, which target.keep has to name.",
    "predictor-k10": "The same on targets of ten steps.",
    "tuned": "Train the predictor on, through the answer loss of other questions.",
    "mean-tuned": "Train its control: one update for all support sets.",
    "examples": "Train the step that follows examples, on contracts drawn from a prepared file.",
    "refusals": "Fit what decides whether to refuse, where examples show a refusal, to that step.",
    "examples-constant": "Train its control: the same lessons, without the examples.",
    "examples-update": "Train its rival: the examples read for an update, none in the prompt.",
    "examples-both": "Train the prefix and a predicted update beside it, together.",
    "examples-whole": "Train its rival MetaICL: the examples shown with their passages.",
    "hyper": "Train HyperTuning: the same predictor, through the answer loss of other questions.",
    "ridge": "Fit the predictor in closed form to stored targets, in a minute.",
    "task-mean": "Average the targets of each task, a control that knows the task alone.",
    "prompt": "Train the soft prefix of prompt tuning, on the base adapter's examples.",
    "gate": "Measure what tuned updates gain on training questions, and fit the gate to it.",
}
"""What each stage does; `raggd.training.stages` has the table, and torch with it."""
OF_TARGETS = {"predictor", "predictor-k1", "predictor-k10", "tuned", "mean-tuned", "hyper", "ridge"}
Stores = Annotated[
    list[Path] | None,
    typer.Option("--store", help="Folder of `raggd targets`. Default: runs/targets. Repeatable."),
]


def _lines(name: str, record: dict[str, Any], out: Path) -> list[str]:
    lines = [
        f"{label}: mean cosine to the true update on held-out supports {found['cosine']:.3f}"
        for label, found in record.get("held_out", {}).items()
    ]
    if name == "task-mean":
        lines += [f"{task}: {count} targets" for task, count in record["sets"].items()]
    gains = {**record.get("gain_by_task", {}), **record.get("gain_by_noise", {})}
    for label, row in gains.items():
        cells = "  ".join(f"x{s}: {g:+.3f}" for s, g in zip(record["scales"], row, strict=True))
        lines.append(f"{label:<18} {cells}")
    made = f" {record['fingerprint']}" if "fingerprint" in record else ""
    return [*lines, f"{name}{made} in {out} ({record['seconds']:.0f} s)"]


def _command(name: str) -> Callable[..., None]:
    def command(
        stores: Stores = None,
        out: Out = Path("runs/weights"),
        config: Config = None,
        assignments: Assignments = None,
        as_json: Json = False,
    ) -> None:
        from raggd.training.run import Run
        from raggd.training.stages import run_stage

        if name in OF_TARGETS:
            refuse_idle(f"{name} reads one folder of targets", store=stores and stores[1:])
        elif name != "task-mean":
            refuse_idle(f"{name} reads no targets", store=stores)
        folders = tuple(stores or [Path("runs/targets")])
        with opened(config, assignments) as rag:
            record = run_stage(name, Run(rag.parts, out, folders))
        record.pop("loss", None)  # that of every step stays in the record on disk
        show(record, as_json, *_lines(name, record, out))

    return command


for stage, text in STAGES.items():
    train_app.command(stage, help=text)(_command(stage))


@train_app.command("average")
def average(
    files: Annotated[list[Path], typer.Argument(help="Steps that were trained apart, by file.")],
    times: Annotated[
        float,
        typer.Option(help="Factor of the mean: less than one where few lessons overshot."),
    ] = 1.0,
    out: Out = Path("runs/weights"),
    as_json: Json = False,
) -> None:
    """Average steps that follow examples: better than each on questions that none saw."""
    from raggd.training.stages import average as run

    record = run(files, out, times)
    show(record, as_json, f"the mean of {len(files)} steps, times {times:g}, in {out}")


@train_app.command("all")
def train_all(
    out: Out = Path("runs/weights"),
    stages: Annotated[
        str, typer.Option(help="Names, separated by commas. Default: those of shipped weights.")
    ] = "",
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """From nothing to weights: base, targets, predictor, controls. Again: continues."""
    from raggd.training.stages import USUAL
    from raggd.training.stages import train_all as run

    with opened(config, assignments) as rag:
        result = run(rag.parts, out, names_in(stages) or USUAL, note)
    lines = [f"{name:<12} {made['seconds']:>8.0f} s" for name, made in result["stages"].items()]
    show(result, as_json, *lines, f"weights in {out}: --set adapter.weights={out}")


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
    from raggd.training.run import Run
    from raggd.training.stages import run_stage

    options = cluster_options(cluster, workers, worker_threads)
    with opened(config, assignments) as rag:
        run = Run(rag.parts, out, (out,), pool)
        if options:
            from raggd.cluster.runs import run_targets_on

            result = run_targets_on(run, options)
        else:
            result = run_stage("targets", run)
    show(result, as_json, f"{result['sets']} targets in {out}")
