"""Commands of the study: `raggd study FILE`, `raggd replay RECORD`, `raggd report DIR`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Cluster,
    Json,
    Workers,
    WorkerThreads,
    cluster_options,
    names_in,
    out_folder,
    progress_bar,
    refuse_idle,
    show,
)
from raggd.records import RaggdError

Names = Annotated[str, typer.Option(help="Only these, separated by commas. Default: all.")]


def _dry_run(settings: Any, folder: Path, part: Any, timed: bool, as_json: bool) -> None:
    from raggd.study.dry_run import dry_run, in_words, time_one_draw

    with progress_bar() as bar:
        if timed:
            time_one_draw(settings, folder, part, bar)
        found = dry_run(settings, folder, part, bar)
    show(found, as_json, *in_words(found))


def _status(settings: Any, folder: Path, part: Any, as_json: bool) -> None:
    from raggd.study.run import status_of

    found = status_of(settings, folder, part)
    lines = [
        f"{name:<24} {one['complete']} of {one['cells']} cells, {one['questions']} answers"
        for name, one in [*found["backbones"].items(), ("all", found)]
    ]
    left = "" if found["hours_left"] is None else f", about {found['hours_left']} h left"
    draws = f"{found['parts']} of {found['parts_planned']} draws are there{left}"
    show(found, as_json, *lines, draws)


def study(
    file: Annotated[Path, typer.Argument(help="A study file, e.g. studies/small.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=out_folder, help="Folder of the study; default runs/study-NAME."
        ),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Count what is there; no run.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Check everything; no run.")] = False,
    time_one_draw: Annotated[
        bool, typer.Option("--time-one-draw", help="As --dry-run, after one draw of each method.")
    ] = False,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Compare predicted with true updates; no run.")
    ] = False,
    backbones: Names = "",
    retrievers: Names = "",
    benchmarks: Names = "",
    methods: Names = "",
    cluster: Cluster = None,
    workers: Workers = 0,
    worker_threads: WorkerThreads = 0,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Run a study: backbones x retrievers x benchmarks x methods x seeds; again: continue it."""
    from raggd.study.plan import Part, load_study

    settings = load_study(file, assignments)
    folder = out or Path("runs") / f"study-{file.stem}"
    looks = {"status": status, "dry-run": dry or time_one_draw, "alignment": alignment}
    chosen = [f"--{name}" for name, given in looks.items() if given]
    if len(chosen) > 1:
        raise RaggdError(f"{' and '.join(chosen)} were both given: leave one out.")
    on_cluster = {"cluster": cluster, "workers": workers, "worker_threads": worker_threads}
    if chosen:
        refuse_idle(f"{chosen[0]} runs nothing on a cluster", **on_cluster)
    options = cluster_options(cluster, workers, worker_threads)
    part = Part(*(tuple(names_in(n)) for n in (backbones, retrievers, benchmarks, methods)))
    if status:
        _status(settings, folder, part, as_json)
        return
    if dry or time_one_draw:
        _dry_run(settings, folder, part, time_one_draw, as_json)
        return
    if alignment:
        from raggd.study.alignment import run_alignment

        with progress_bar() as bar:
            found = run_alignment(settings, folder, part, bar)
        lines = (
            f"{name}, {kind}, {method}: cosine {entry['cosine']:.3f}"
            for name, kinds in found.items()
            for kind, by_method in kinds.items()
            for method, entry in by_method.items()
        )
        show(found, as_json, *lines)
        return
    from raggd.study.run import run_study

    with progress_bar() as bar:
        if options:
            from raggd.cluster.runs import run_study_on

            result = run_study_on(settings, folder, part, options, bar)
        else:
            result = run_study(settings, folder, part, bar)
    done = f"{result['complete']} of {result['cells']} cells in {folder}; {result['now']} new."
    show(result | {"out": str(folder)}, as_json, done)


def replay(
    record: Annotated[Path, typer.Argument(help="A run record (JSON) of a study or evaluation.")],
    as_json: Json = False,
) -> None:
    """Compute one run record again from its settings and compare the answers one by one."""
    from raggd.study.run import read_record
    from raggd.study.run import replay as run

    stored = read_record(record)
    with progress_bar() as bar:
        result = run(stored, record, bar)
    lines = [
        f"{entry['question']}: '{entry['record']}' in the record, '{entry['now']}' now"
        for entry in result["different"]
    ]
    lines += [f"changed {line}" for line in result["changed"]]
    same = f"{result['same']} of {result['questions']} answers are the same."
    show(result, as_json, *lines, same)
    if result["different"]:
        sys.exit(1)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=out_folder, help="Folder for the report; default FOLDER/report."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Make tables, figures and one page of a study, from its records alone."""
    from raggd.report.build import write_report

    to = out or folder / "report"
    with progress_bar() as bar:
        result = write_report(folder, to, resamples, bar)
    line = f"{result['complete']} of {result['cells']} cells; the page: {to / 'study.html'}"
    show(result, as_json, line)
