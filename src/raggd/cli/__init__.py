"""The command line: a file per group of commands, each a thin call of what it is about."""

from raggd.cli.main import app, main

__all__ = ["app", "main"]
