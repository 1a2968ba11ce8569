"""The one way in which long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Told what is running, how much of it is done, and how much there is (None: not known)."""


def silent(label: str, done: int, total: int | None) -> None:
    """Say nothing."""
