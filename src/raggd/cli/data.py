"""`raggd data`: benchmarks, a prepared file for training, and a corpus of any size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.options import Assignments, Config, Corpus, Json, load_parts, with_corpus
from raggd.records import RaggdError, require_known

if TYPE_CHECKING:
    from raggd.assembly import Assembly

data_app = typer.Typer(help="List, fetch and prepare data.", no_args_is_help=True)


@data_app.command("list")
def data_list(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """List the benchmarks and what is there of each; fetches nothing."""
    from raggd.cli.console import show

    result = listed(load_parts(config, assignments, None))
    absent, lines = "on the hub" if result["source"] == "hub" else "not there", []
    for entry in result["benchmarks"]:
        held = ", held out from training" if entry["held_out"] else ""
        splits = ", ".join(entry["splits"]) or absent
        lines.append(f"{entry['name']:<18} {entry['title']:<10} {splits}{held}")
    show(result, as_json, *lines)


def listed(parts: Assembly) -> dict[str, Any]:
    """Return ``source`` and ``benchmarks``: name, title, held_out, splits.

    The hub is not asked: its splits are empty.

    Raises:
        RaggdError: the source is a folder that does not exist.
    """
    from raggd.assembly import POCKET
    from raggd.data.benchmarks import BENCHMARKS, HUB, available
    from raggd.data.pocket import POCKET_NAMES, POCKET_SPLITS

    folder = parts.settings.data.folder
    splits: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    if folder == POCKET:
        splits |= {name: list(POCKET_SPLITS) for name in POCKET_NAMES}
    elif folder != HUB:
        if not Path(folder).is_dir():
            raise RaggdError(f"no data folder at {folder}: give a folder in FlashRAG's layout.")
        for benchmark, split, _ in available(folder):
            splits[benchmark.name].append(split)
    entries = [
        {"name": b.name, "title": b.title, "held_out": b.held_out, "splits": splits[b.name]}
        for b in BENCHMARKS.values()
    ]
    return {"source": folder, "benchmarks": entries}


@data_app.command("fetch")
def data_fetch(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """Fetch the data that the settings name (embedded by default) and say what it holds."""
    from raggd.cli.console import progress_bar, show

    with progress_bar() as bar:
        result = fetched(load_parts(config, assignments, bar))
    lines = (
        f"{name}: {counts['pool']} support questions, {counts['scored']} scored questions"
        for name, counts in result["benchmarks"].items()
    )
    show(result, as_json, *lines, f"data: {result['source']}")


def fetched(parts: Assembly) -> dict[str, Any]:
    """Return ``source`` and, by benchmark, the sizes of support pool and scored set."""
    from raggd.assembly import POCKET
    from raggd.data.benchmarks import known_benchmarks, scored_questions, support_pool
    from raggd.data.pocket import POCKET_NAMES

    settings = parts.settings
    pocket = settings.data.folder == POCKET
    names = list(POCKET_NAMES) if pocket else known_benchmarks(settings.evaluation.benchmarks)
    sizes = {"pool": support_pool, "scored": scored_questions}
    counts = {name: {k: len(of(parts.source, name)) for k, of in sizes.items()} for name in names}
    return {"source": parts.source, "benchmarks": counts}


@data_app.command("prepare")
def data_prepare(
    out: Annotated[Path, typer.Option(help="File to write, e.g. train.jsonl.gz.")],
    split: Annotated[str, typer.Option(help="train, or test: the scored questions.")] = "train",
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write questions with their passages into one file, for training without an index."""
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
    from raggd.data.documents import read_passages
    from raggd.data.resample import write_resampled
    from raggd.retrieval.base import show_size

    with progress_bar() as bar:
        parts = load_parts(config, with_corpus(corpus, assignments), bar)
        bar.say(f"putting sentences together to {passages} passages")
        size = write_resampled(read_passages(parts.corpus), passages, out, seed)
    result = {"passages": passages, "bytes": size, "seed": seed, "file": str(out)}
    show(result, as_json, f"{passages} passages, {show_size(size)}: {out}")
