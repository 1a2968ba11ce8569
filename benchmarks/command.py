"""How the commands of this folder end."""

from __future__ import annotations

import sys

import typer

from raggd.cli.shared import complain
from raggd.records import RaggdError


def run_app(app: typer.Typer) -> None:
    """Run commands; bad input becomes one message and exit code 2."""
    try:
        app()
    except RaggdError as error:
        complain(f"benchmarks: {error}")
        sys.exit(2)
