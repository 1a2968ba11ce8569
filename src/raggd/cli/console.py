"""What the command line shows: progress on standard error, one JSON object on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # rich loads when there is something to show
    from rich.console import Console
    from rich.progress import Progress


def emit_json(value: Any) -> None:
    """Write one JSON object and a line break to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")


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
    _console(stderr=True).print(shown, style="red", markup=False)


def note(message: str) -> None:
    """Write a remark to standard error."""
    _console(stderr=True).print(message, markup=False)


class Bar:
    """One progress bar on standard error."""

    def __init__(self, bar: Progress) -> None:
        """Add the bar's only line."""
        self._bar = bar
        self._task = bar.add_task("starting", total=None)

    def __call__(self, label: str, done: int, total: int | None) -> None:
        """Show how far something is."""
        self._bar.update(self._task, description=label, completed=done, total=total)

    def say(self, label: str) -> None:
        """Show what is going on, without a count."""
        self._bar.update(self._task, description=label, total=None)

    def hide(self) -> None:
        """Remove the bar, for good."""
        self._bar.stop()


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Show one bar on standard error; it disappears when the work is done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # where there is no terminal nothing would show but an empty line at the end
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        yield Bar(bar)
