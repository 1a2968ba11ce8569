"""The command line: a file per group of commands, each a thin call; what is heavy loads in it."""

from __future__ import annotations

import errno
import sys
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raggd import __version__
from raggd.cli.ask import ask, index, serve
from raggd.cli.data import cache_app, data_app, demonstrations_app
from raggd.cli.evaluate import audit, bench, demo, evaluate, replay, report, study
from raggd.cli.export import export, supports_app
from raggd.cli.linear import boundary, verify
from raggd.cli.shared import complain
from raggd.cli.train import targets, train_app
from raggd.data.documents import shown_name
from raggd.files import is_unwritable, reason_of
from raggd.records import RaggdError


class _InterruptedError(Exception):
    """Ctrl-C under a name that typer, which ends silently on the usual one, lets through."""


class _Commands(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _InterruptedError from error


app = typer.Typer(
    name="raggd",
    cls=_Commands,
    help="Answer questions from passages with a frozen language model that adapts to a task in one "
    "forward pass.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
app.add_typer(supports_app, name="supports")
app.add_typer(demonstrations_app, name="demonstrations")
ANSWERING = (serve, ask, index, export, demo)
STUDYING = (evaluate, audit, study, replay, report, targets, bench, verify, boundary)
for command in (*ANSWERING, *STUDYING):
    app.command()(command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"raggd {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _told(error: Exception) -> str:
    # what a user can mend, in words; of a fault of the program, nothing
    if isinstance(error, RaggdError):
        return str(error)
    if isinstance(error, OSError) and is_unwritable(error):  # of most files told where it arises
        where = shown_name(Path(error.filename)) if error.filename else "the output"
        return f"cannot use {where}: {reason_of(error)}."
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"the name '{str(error.filename)[:40]}...' is too long for this system."
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded for it
        return (
            "the graphics card's memory ran out. Lower the batch (--set evaluation.batch=..., "
            "serving.rows=... or the training's own), shorten prompts (--set "
            "backbone.context_tokens=...), or hold the weights in 4 bits (--set "
            "backbone.dtype='nf4'). What was finished is kept."
        )
    return ""


def main() -> None:
    """Run the command line; what a user can mend is one message and exit code 2, Ctrl-C 130."""
    warnings.formatwarning = lambda message, *_, **__: f"raggd: {message}\n"  # no source lines
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # letters that a terminal lacks
    try:
        app(prog_name="raggd")
    except (_InterruptedError, KeyboardInterrupt):
        complain("raggd: interrupted. What was finished is kept; the same command continues.")
        sys.exit(130)
    except Exception as error:
        if not (message := _told(error)):
            raise
        complain(f"raggd: {message}")
        sys.exit(2)
