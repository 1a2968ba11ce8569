"""How much of a study is done, and how long the rest will take at the speed measured so far."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from raggd.files import read_json
from raggd.progress import Progress

_PART = re.compile(r"^(?P<benchmark>.+)-(?P<draw>\d{3})-(?P<method>.+)\.json$")
Pair = tuple[str, str]
"""Label of a backbone and name of a method."""


def duration_text(seconds: float) -> str:
    """Return a duration in words.

    >>> [duration_text(value) for value in (8, 95, 4000, 90000)]
    ['8 s', '1 min 35 s', '1 h 6 min', '25 h 0 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@dataclass
class Speed:
    """Seconds and questions of the parts that were answered, by backbone and method."""

    spent: dict[Pair, float] = field(default_factory=dict)
    answered: dict[Pair, int] = field(default_factory=dict)

    def add(self, pair: Pair, questions: int, seconds: float) -> None:
        """File what a part took, adaptation and loss included."""
        self.spent[pair] = self.spent.get(pair, 0.0) + seconds
        self.answered[pair] = self.answered.get(pair, 0) + questions

    def per_question(self, pair: Pair) -> float | None:
        """Return the seconds of a question; the backbone's mean, else that of all, if need be."""
        own = [key for key in self.spent if key == pair]
        near = own or [key for key in self.spent if key[0] == pair[0]] or list(self.spent)
        if not near:
            return None
        return sum(self.spent[k] for k in near) / sum(self.answered[k] for k in near)

    def left(self, waiting: dict[Pair, int]) -> float | None:
        """Return the seconds that waiting questions will take; None before any was measured."""
        if not self.spent:
            return None
        return sum(n * (self.per_question(pair) or 0.0) for pair, n in waiting.items())


@dataclass
class Watch:
    """Counts what is done and tells the user, batch by batch."""

    show: Progress
    waiting: dict[Pair, int]
    total: int = 0
    done: int = 0
    speed: Speed = field(default_factory=Speed)

    def __post_init__(self) -> None:
        self.total = sum(self.waiting.values())

    def advance(self, label: str, questions: int) -> None:
        """Report questions that were answered or found answered."""
        self.done += questions
        left = self.speed.left(self.waiting)
        text = f"{label}, about {duration_text(left)} left" if left is not None else label
        self.show(text, self.done, self.total)

    def dropped(self, pair: Pair) -> None:
        """Stop counting on a method's questions, some of which cannot be answered."""
        self.waiting.pop(pair, None)

    def part_done(self, pair: Pair, questions: int, seconds: float | None) -> None:
        """File a finished part and the seconds that it took, where they are known."""
        self.waiting[pair] = max(0, self.waiting.get(pair, 0) - questions)
        if seconds is not None:
            self.speed.add(pair, questions, seconds)


def measured_speed(out: Path) -> Speed:
    """Return what the questions of a study took, from the part files in its folder."""
    speed = Speed()
    for path in sorted(out.glob("*/*/seed-*/parts/*.json")):
        found = _PART.match(path.name)
        part = read_json(path, what="part file") if found else {}
        if found and part.get("seconds") is not None:
            backbone = path.relative_to(out).parts[0]
            speed.add((backbone, found["method"]), len(part["predictions"]), part["seconds"])
    return speed
