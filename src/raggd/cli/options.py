"""Options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raggd.data.documents import Skipped, summary
from raggd.progress import Progress, silent
from raggd.records import RaggdError

if TYPE_CHECKING:
    from raggd.api import Rag
    from raggd.assembly import Assembly
    from raggd.records import SupportSet

Config = Annotated[
    Path | None, typer.Option("--settings", help="TOML file; unknown keys are refused.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="SECTION.NAME=VALUE, applied last. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for results; interrupted runs continue.")]
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
Corpus = Annotated[
    Path | None, typer.Option(help="Your documents; without it, the embedded Wikipedia leads.")
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


def with_corpus(corpus: Path | None, assignments: list[str] | None) -> list[str]:
    """Say `--corpus` as a setting, beside the single changes given by `--set`."""
    named = [] if corpus is None else [f"data.corpus={json.dumps(str(corpus), ensure_ascii=False)}"]
    return [*(assignments or []), *named]


def load_parts(
    config: Path | None, assignments: list[str] | None, bar: Progress = silent
) -> Assembly:
    """Read the settings of a command; everything it needs is loaded on first use.

    `bar` is told about downloads, conversions and indexing.
    """
    from raggd.assembly import Assembly
    from raggd.settings import load_settings

    return Assembly(load_settings(config, assignments), bar)


def load_rag(config: Path | None, assignments: list[str] | None, bar: Progress = silent) -> Rag:
    """Return what adapts and answers by the settings of a command: `load_parts`, as a `Rag`."""
    from raggd.api import Rag

    return Rag(load_parts(config, assignments, bar))


def support_from(rag: Rag, source: Source, method: str | None = None) -> SupportSet | None:
    """Find the support set that a command names; None where an update is named, or nothing.

    Raises:
        RaggdError: several are named, or a method beside an update.
    """
    demonstrations, name, update = source
    if sum(value is not None for value in source) > 1:
        raise RaggdError("name one of --demonstrations, --support and --update, not several.")
    if update is not None and method is not None:
        raise RaggdError("--update holds what a method made: leave --method out.")
    if name is not None:
        return rag.store.stored(name).support
    return None if demonstrations is None else rag.support(demonstrations)


def refuse_skipped(corpus: Path, skipped: Sequence[Skipped]) -> None:
    """Do as ``--strict`` says.

    Raises:
        RaggdError: files of a corpus were left out.
    """
    if skipped:
        raise RaggdError(f"cannot read all of {corpus}: {summary(skipped)}.")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 passage``, ``3 passages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
