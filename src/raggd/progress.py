"""The one way in which long work says how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Told what is running, how much of it is done, and how much there is (None: not known)."""


def silent(label: str, done: int, total: int | None) -> None:
    """Say nothing."""


def on_stderr(label: str, done: int, total: int | None) -> None:
    """Write what is running on standard error, a line each."""
    sys.stderr.write(f"{label}\n")
