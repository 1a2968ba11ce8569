"""What commands share: options, what they load, and what they show.

Progress goes to standard error, one JSON object to standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.data.documents import Skipped, summary
from raggd.files import as_json
from raggd.progress import Progress, silent
from raggd.records import RaggdError

if TYPE_CHECKING:  # rich loads when there is something to show, the rest when it is needed
    from rich.console import Console

    from raggd.api import Rag
    from raggd.cluster.workers import ClusterOptions
    from raggd.records import SupportSet


def out_folder(path: Path | None) -> Path | None:
    """Refuse what cannot be a folder of results, before hours of work rather than after."""
    if path is not None:
        whole = path.absolute()
        there = next((each for each in (whole, *whole.parents) if each.exists()), whole.parent)
        lack = "is no folder" if not there.is_dir() else ""
        lack = lack or ("" if os.access(there, os.W_OK | os.X_OK) else "is not writable")
        if lack:
            raise RaggdError(f"cannot write in {path}: {there} {lack}. Choose another --out.")
    return path


def out_file(path: Path | None) -> Path | None:
    """Refuse what cannot be a file of results, as `out_folder` does."""
    if path is not None and path.is_dir():
        raise RaggdError(f"cannot write {path}: it is a folder. Name a file in it.")
    out_folder(path and path.absolute().parent)
    return path


Config = Annotated[
    Path | None, typer.Option("--settings", help="TOML file; unknown keys are refused.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="SECTION.NAME=VALUE, applied last. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Out = Annotated[
    Path,
    typer.Option(
        "--out", callback=out_folder, help="Folder for results; interrupted runs continue."
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option("--cluster", help="Run on a Ray cluster: HOST:PORT, 'auto', or 'local'."),
]
Workers = Annotated[
    int, typer.Option(min=0, help="Workers of the cluster; 0: one per GPU, else one per node.")
]
WorkerThreads = Annotated[
    int, typer.Option(min=0, help="Cores of each worker; 0 shares all of them out.")
]
Corpus = Annotated[  # as text: a Path of an unset variable would be the working directory
    str | None,
    typer.Option(
        metavar="<path>", help="Your documents; without it, the embedded Wikipedia leads."
    ),
]
Demonstrations = Annotated[
    Path | None,
    typer.Option(help='Lines of {"question": ..., "answer": ...} to adapt from; three do.'),
]

Support = Annotated[str | None, typer.Option(help="Id of a stored support set instead.")]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a folder with files that cannot be read.")
]
Update = Annotated[Path | None, typer.Option(help="File of a saved update instead.")]

Source = tuple[Path | None, str | None, Path | None]
"""What a command adapts to: `--demonstrations`, `--support`, `--update`; at most one is given."""


def names_in(text: str) -> list[str]:
    """Return names that are separated by commas; blank ones are left out."""
    return [name.strip() for name in text.split(",") if name.strip()]


def load_rag(
    config: Path | None,
    assignments: list[str] | None,
    corpus: str | None = None,
    bar: Progress = silent,
) -> Rag:
    """Read the settings of a command; everything it needs is loaded on first use."""
    from raggd.api import load
    from raggd.settings import load_settings

    return load(corpus, settings=load_settings(config, assignments), progress=bar)


@contextmanager
def opened(
    config: Path | None, assignments: list[str] | None, corpus: str | None = None
) -> Iterator[Rag]:
    """Give a command what its settings name, and show how far it is."""
    with progress_bar() as bar:
        yield load_rag(config, assignments, corpus, bar)


def support_from(rag: Rag, source: Source, method: str | None = None) -> SupportSet | None:
    """Find the support set that is named; None for an update or nothing; several are refused."""
    demonstrations, name, update = source
    if sum(value is not None for value in source) > 1:
        raise RaggdError("name one of --demonstrations, --support and --update, not several.")
    if update is not None and method is not None:
        raise RaggdError("--update holds what a method made: leave --method out.")
    if name is not None:
        return rag.store.stored(name).support
    return None if demonstrations is None else rag.support(demonstrations)


def refuse_idle(use: str, **options: Any) -> None:
    """Refuse options that are given where a command has no use for them; `use` says which has."""
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value]
    if given:
        raise RaggdError(f"{' and '.join(given)} would change nothing here: {use}.")


def cluster_options(address: str | None, workers: int, threads: int) -> ClusterOptions | None:
    """Return what `--cluster` and its options say; None without it."""
    if address is None:
        refuse_idle("they go with --cluster", workers=workers, worker_threads=threads)
        return None
    from raggd.cluster.workers import ClusterOptions

    return ClusterOptions(address, workers, threads)


def refuse_skipped(corpus: Path, skipped: Sequence[Skipped]) -> None:
    """Refuse a corpus of which files were left out, as ``--strict`` says."""
    if skipped:
        raise RaggdError(f"cannot read all of {corpus}: {summary(skipped)}.")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 passage``, ``3 passages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def emit_json(value: Any) -> None:
    """Write one JSON object and a line break to standard output."""
    text = as_json(value)
    if not (sys.stdout.encoding or "utf").lower().startswith("utf"):
        text = json.dumps(json.loads(text))  # letters that the terminal lacks are escaped
    sys.stdout.write(text + "\n")


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=stderr, soft_wrap=True, highlight=False, emoji=False)


def say(*parts: Any) -> None:
    """Write text or a rich table to standard output."""
    console = _console()
    for part in parts:
        console.print(part, markup=False) if isinstance(part, str) else console.print(part)


def show(result: Mapping[str, Any], as_json: bool, *parts: Any) -> None:
    """Write what a command found: the result itself as JSON, or text and tables that say it."""
    if as_json:
        emit_json(result)
    else:
        say(*parts)


def complain(message: str) -> None:
    """Write an error to standard error, in one line: what it quotes may hold anything."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    with suppress(OSError):  # where nobody can be told, the exit code tells
        _console(stderr=True).print(shown, style="red", markup=False)


def note(message: str) -> None:
    """Write a remark to standard error."""
    _console(stderr=True).print(message, markup=False)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Show one bar on standard error; it disappears when the work is done."""
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        *(rich.BarColumn(), rich.MofNCompleteColumn()),
        *(rich.TimeElapsedColumn(), rich.TimeRemainingColumn()),
    )
    console = Console(stderr=True)
    # where there is no terminal nothing would show but an empty line at the end
    hidden = not console.is_terminal
    with rich.Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda label, done, total: bar.update(
            task, description=label, completed=done, total=total
        )
