"""What a bench measured: ratios, times and facts, as its record holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from raggd.evaluation.timing import Ratio, Times


@dataclass(frozen=True, slots=True)
class Measured:
    """What one bench measured."""

    ratios: Mapping[str, Ratio] = field(default_factory=dict)  # paired comparisons, by name
    times: Times = field(default_factory=dict)  # milliseconds of each round, by what was done
    # sizes, checks and fits that the record keeps
    facts: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Return what the JSON record holds of it: medians with ranges beside the facts."""
        return {
            "ratios": {name: asdict(ratio) for name, ratio in self.ratios.items()},
            "ms": {
                name: {"median": median(ms), "low": min(ms), "high": max(ms), "rounds": len(ms)}
                for name, ms in self.times.items()
            },
            **self.facts,
        }
