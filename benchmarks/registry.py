"""The benches by name. Each is a module with `ABOUT` and `run(setting) -> Measured`."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from benchmarks.measured import Measured
from benchmarks.setting import BenchSetting
from raggd.records import require_known

BENCHES = ("adaptation", "answering", "following", "targets", "training", "growth", "retrieval")
"""In the order in which they run: a file of this folder each."""


class Bench(Protocol):
    """One bench."""

    ABOUT: str
    """What it compares, in a few words."""

    def run(self, setting: BenchSetting) -> Measured:
        """Measure: ratios, times and facts."""


def find_bench(name: str) -> Bench:
    """Load the module of one of `BENCHES`."""
    require_known("bench", name, BENCHES)
    found: Bench = import_module(f"benchmarks.{name}")
    return found
