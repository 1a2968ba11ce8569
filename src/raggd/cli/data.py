"""`raggd data` (benchmarks, a file for training), `raggd demonstrations`, `raggd cache`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Config,
    Corpus,
    Json,
    Out,
    load_rag,
    names_in,
    opened,
    out_file,
    show,
)
from raggd.records import RaggdError, require_known

if TYPE_CHECKING:
    from raggd.assembly import Assembly
    from raggd.data.drafts import Draft

data_app = typer.Typer(help="List, fetch and prepare data.", no_args_is_help=True)
demonstrations_app = typer.Typer(
    help="Demonstrations from your passages, when you have no answered questions.",
    no_args_is_help=True,
)


@data_app.command("list")
def data_list(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """List the benchmarks and what is there of each; fetches nothing."""
    result = listed(load_rag(config, assignments).parts)
    absent, lines = "on the hub" if result["source"] == "hub" else "not there", []
    for entry in result["benchmarks"]:
        held = ", held out from training" if entry["held_out"] else ""
        splits = ", ".join(entry["splits"]) or absent
        lines.append(f"{entry['name']:<18} {entry['title']:<10} {splits}{held}")
    show(result, as_json, *lines)


def listed(parts: Assembly) -> dict[str, Any]:
    """Return ``source`` and ``benchmarks``: name, title, held_out, splits (none of the hub)."""
    from raggd.assembly import POCKET
    from raggd.data.benchmarks import BENCHMARKS, HELD_OUT, HUB, files_in
    from raggd.data.pocket import POCKET_NAMES, POCKET_SPLITS

    folder = parts.settings.data.folder
    splits: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    source = HUB if folder == POCKET else folder
    splits |= {name: list(files) for name, files in files_in(source).items()}
    if folder == POCKET:
        splits |= {name: list(POCKET_SPLITS) for name in POCKET_NAMES}
    entries = [
        {
            "name": name,
            "title": BENCHMARKS.get(name, name),
            "held_out": name in HELD_OUT,
            "splits": found,
        }
        for name, found in splits.items()
    ]
    return {"source": folder, "benchmarks": entries}


@data_app.command("fetch")
def data_fetch(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """Fetch the data that the settings name (embedded by default) and say what it holds."""
    with opened(config, assignments) as rag:
        result = fetched(rag.parts)
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
    chosen = POCKET_NAMES if pocket else settings.evaluation.benchmarks
    names = known_benchmarks(chosen, parts.source)
    sizes = {"pool": support_pool, "scored": scored_questions}
    counts = {name: {k: len(of(parts.source, name)) for k, of in sizes.items()} for name in names}
    return {"source": parts.source, "benchmarks": counts}


@data_app.command("prepare")
def data_prepare(
    out: Annotated[
        Path, typer.Option(callback=out_file, help="File to write, e.g. train.jsonl.gz.")
    ],
    split: Annotated[str, typer.Option(help="train, or test: the scored questions.")] = "train",
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write questions with their passages into one file, for training without an index."""
    from raggd.training.run import run_prepare

    require_known("split", split, ["train", "test"])
    with opened(config, assignments) as rag:
        result = run_prepare(rag.parts, out, split)
    lines = [
        f"{name}: {n['questions']} questions, {n['answerable']} with an answer in their passages"
        for name, n in result["benchmarks"].items()
    ]
    show(result, as_json, *lines, f"{result['bytes'] / 1e6:.1f} MB: {out}")


@demonstrations_app.command("make")
def make(
    corpus: Corpus = None,
    out: Annotated[Path, typer.Option(callback=out_file, help="JSON Lines file to write.")] = Path(
        "demonstrations.jsonl"
    ),
    count: Annotated[int, typer.Option(min=1, help="Demonstrations wanted.")] = 6,
    review: Annotated[
        bool, typer.Option("--review", help="Show each one: yes, no, edit, or stop.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed tries other passages.")] = 0,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Propose questions and answers from passages; keep those that the model can answer."""
    from raggd.study.made import run_make

    if review:  # a moving bar would write over the questions to the reviewer
        parts = load_rag(config, assignments, corpus).parts
        result = run_make(parts, out, count, seed, _reviewed)
    else:
        with opened(config, assignments, corpus) as rag:
            result = run_make(rag.parts, out, count, seed)
    tried = result["yield"]
    show(
        result,
        as_json,
        f"{result['made']} demonstrations in {result['out']} "
        f"({tried['passages']} passages, {tried['drafts']} questions drafted)",
        "Read them before you use them: raggd ask ... --demonstrations " + result["out"],
    )


def _reviewed(proposals: Iterator[Draft]) -> Iterator[Draft]:
    from raggd.study.made import edited

    for proposal in proposals:
        passage = proposal.passage
        for line in ("", f"[{passage.title}] {passage.text}", "", f"Question: {proposal.question}"):
            typer.echo(line, err=True)
        typer.echo(f"Answer:   {proposal.answer}", err=True)
        choice = ""
        while choice not in {"y", "n", "e", "s"}:
            choice = typer.prompt("Keep it? y(es), n(o), e(dit), s(top)", "y", err=True)[:1].lower()
        if choice == "s":
            return
        if choice == "e":
            question = typer.prompt("Question", proposal.question, err=True)
            yield edited(proposal, question, typer.prompt("Answer", proposal.answer, err=True))
        elif choice == "y":
            yield proposal


@demonstrations_app.command("compare")
def compare(
    benchmarks: Annotated[
        str,
        typer.Option(
            help="Tasks, separated by commas. Default: popqa and bamboogle, which no weights have "
            "seen; of the embedded data, nq and triviaqa."
        ),
    ] = "",
    out: Out = Path("runs/made"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Measure updates from made demonstrations against gold ones and none."""
    from raggd.assembly import POCKET
    from raggd.data.pocket import POCKET_NAMES
    from raggd.study.made import run_compare

    with opened(config, assignments) as rag:
        embedded = rag.parts.settings.data.folder == POCKET
        usual = POCKET_NAMES if embedded else ("popqa", "bamboogle")
        result, tables = run_compare(rag.parts, names_in(benchmarks) or usual, out)
    show(result, as_json, *(f"{table.to_text()}\n" for table in tables))


cache_app = typer.Typer(help="See and prune what is kept on disk.", no_args_is_help=True)


def _views(entries: list[Any]) -> list[dict[str, Any]]:
    return [{**asdict(entry), "path": str(entry.path)} for entry in entries]


def _lines(entries: list[Any]) -> list[str]:
    from raggd.retrieval.base import show_size

    now = time.time()
    return [
        f"{show_size(e.bytes):>10}  {(now - e.last_used) / 86400:6.1f} days  {e.kind}: {e.what}"
        for e in entries
    ]


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List what is kept, the longest unused first."""
    from raggd.files import cache_folder
    from raggd.retrieval.base import show_size
    from raggd.retrieval.cache import list_cache

    entries = list_cache()
    held = sum(entry.bytes for entry in entries)
    result = {"folder": str(cache_folder()), "bytes": held, "entries": _views(entries)}
    show(result, as_json, *_lines(entries), f"{show_size(held)} in {cache_folder()}")


@cache_app.command("prune")
def cache_prune(
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Delete what was not used for so many days.")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="Delete the longest unused until the rest fits, e.g. 2GB.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete what is made again when it is needed; downloads and support sets stay."""
    from raggd.retrieval.base import parse_size, show_size
    from raggd.retrieval.cache import prune_cache

    if older_than is None and keep is None:
        raise RaggdError("say what may go: --older-than DAYS, --keep SIZE, or both.")
    gone = prune_cache(older_than, parse_size(keep) if keep else None)
    freed = sum(entry.bytes for entry in gone)
    result = {"bytes": freed, "removed": _views(gone)}
    show(result, as_json, *_lines(gone), f"{show_size(freed)} freed")
