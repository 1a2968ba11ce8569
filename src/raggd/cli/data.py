"""`raggd data`: benchmarks, and a corpus of any size."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raggd.cli.options import Assignments, Config, Corpus, Json, load_parts, with_corpus
from raggd.records import require_known

data_app = typer.Typer(help="List and fetch benchmarks.", no_args_is_help=True)


@data_app.command("resample")
def data_resample(
    passages: Annotated[int, typer.Option(min=1, help="Passages to generate.")],
    out: Annotated[Path, typer.Option(help="JSON Lines file to write.")],
    corpus: Corpus = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write a large corpus of real sentences put together anew."""
    from raggd.cli.console import progress_bar, show
    from raggd.retrieval.memory import show_size
    from raggd.workflows.data import run_data_resample

    with progress_bar() as bar:
        parts = load_parts(config, with_corpus(corpus, assignments), bar)
        result = run_data_resample(parts, passages, out, seed)
    size = show_size(result["bytes"])
    show(result, as_json, f"{result['passages']} passages, {size}: {result['file']}")


@data_app.command("prepare")
def data_prepare(
    out: Annotated[Path, typer.Option(help="File to write, e.g. train.jsonl.gz.")],
    split: Annotated[str, typer.Option(help="train, or test: the scored questions.")] = "train",
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write questions with their passages into one file: all that `train examples` reads."""
    from raggd.cli.console import progress_bar, show
    from raggd.study.contracts import run_prepare

    require_known("split", split, ["train", "test"])
    with progress_bar() as bar:
        result = run_prepare(load_parts(config, assignments, bar), out, split)
    lines = [
        f"{name}: {n['questions']} questions, {n['answerable']} with an answer in their passages"
        for name, n in result["benchmarks"].items()
    ]
    show(result, as_json, *lines, f"{result['bytes'] / 1e6:.1f} MB: {out}")


@data_app.command("list")
def data_list(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """List the benchmarks and what is there of each."""
    from raggd.cli.console import progress_bar, show
    from raggd.workflows.data import run_data_list

    with progress_bar() as bar:
        result = run_data_list(load_parts(config, assignments, bar))
    absent, lines = "on the hub" if result["source"] == "hub" else "not there", []
    for entry in result["benchmarks"]:
        held = ", held out from training" if entry["held_out"] else ""
        splits = ", ".join(entry["splits"]) or absent
        lines.append(f"{entry['name']:<18} {entry['title']:<10} {splits}{held}")
    show(result, as_json, *lines)


@data_app.command("fetch")
def data_fetch(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """Fetch the data that the settings name (embedded by default) and say what it holds."""
    from raggd.cli.console import progress_bar, show
    from raggd.workflows.data import run_data_fetch

    with progress_bar() as bar:
        result = run_data_fetch(load_parts(config, assignments, bar))
    lines = (
        f"{name}: {counts['pool']} support questions, {counts['scored']} scored questions"
        for name, counts in result["benchmarks"].items()
    )
    show(result, as_json, *lines, f"data: {result['source']}")
