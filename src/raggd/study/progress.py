"""How much of a study is done, and how long the rest will take at the speed measured so far."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from raggd.files import read_json

Show = Callable[[str, int, int], None]
"""Told a label, questions answered, and questions in all."""
_PART = re.compile(r"^(?P<benchmark>.+)-(?P<draw>\d{3})-(?P<method>.+)\.json$")


def duration_text(seconds: float) -> str:
    """Write a duration with its two largest units.

    Args:
        seconds: the duration.

    Returns:
        The text.

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
    """Seconds per question by backbone and method, and how much is left of each."""

    spent: dict[tuple[str, str], float] = field(default_factory=dict)
    parts: dict[tuple[str, str], int] = field(default_factory=dict)
    answered: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, backbone: str, method: str, questions: int, seconds: float) -> None:
        """File what a part took.

        Args:
            backbone: label.
            method: name.
            questions: that it answered.
            seconds: that it took, adaptation and loss included.
        """
        key = (backbone, method)
        self.spent[key] = self.spent.get(key, 0.0) + seconds
        self.answered[key] = self.answered.get(key, 0) + questions
        self.parts[key] = self.parts.get(key, 0) + 1

    def per_question(self, backbone: str, method: str) -> float | None:
        """Return the seconds of a question; the backbone's mean, else that of all, if need be."""
        return self._mean(self.answered, backbone, method)

    def per_part(self, backbone: str, method: str) -> float | None:
        """Return the seconds of a draw; means as in `per_question`."""
        return self._mean(self.parts, backbone, method)

    def _mean(self, units: dict[tuple[str, str], int], backbone: str, method: str) -> float | None:
        for fits in (
            lambda key: key == (backbone, method),
            lambda key: key[0] == backbone,
            lambda key: True,
        ):
            keys = [key for key in self.spent if fits(key)]
            if keys:
                return sum(map(self.spent.__getitem__, keys)) / sum(map(units.__getitem__, keys))
        return None

    def left(self, waiting: dict[tuple[str, str], int]) -> float | None:
        """Estimate the time for what is waiting.

        Args:
            waiting: questions by (backbone, method).

        Returns:
            Seconds; None before anything was measured.
        """
        total = 0.0
        for (backbone, method), questions in waiting.items():
            per_question = self.per_question(backbone, method)
            if per_question is None:
                return None
            total += questions * per_question
        return total


@dataclass
class Watch:
    """Counts what is done and tells the user, batch by batch."""

    show: Show
    total: int
    waiting: dict[tuple[str, str], int]
    speed: Speed = field(default_factory=Speed)
    done: int = 0

    def advance(self, label: str, questions: int) -> None:
        """Report questions that were answered or found answered.

        Args:
            label: what is running.
            questions: how many.
        """
        self.done += questions
        left = self.speed.left({k: n for k, n in self.waiting.items() if n})
        text = f"{label}, about {duration_text(left)} left" if left is not None else label
        self.show(text, self.done, self.total)

    def dropped(self, backbone: str, method: str) -> None:
        """Stop counting on a method's questions, some of which cannot be answered.

        Args:
            backbone: label.
            method: name.
        """
        self.waiting.pop((backbone, method), None)

    def part_done(self, backbone: str, method: str, questions: int, seconds: float | None) -> None:
        """File a finished part.

        Args:
            backbone: label.
            method: name.
            questions: of the part.
            seconds: that it took; None if that is not known.
        """
        key = (backbone, method)
        self.waiting[key] = max(0, self.waiting.get(key, 0) - questions)
        if seconds is not None:
            self.speed.add(backbone, method, questions, seconds)


def timer() -> Callable[[], float]:
    """Return a function that tells the seconds since now."""
    started = time.monotonic()
    return lambda: time.monotonic() - started


def measured_speed(out: Path) -> Speed:
    """Read from the part files of a study what its questions took.

    Args:
        out: the study's folder.

    Returns:
        Seconds and questions by backbone and method.
    """
    speed = Speed()
    for path in sorted(out.glob("*/*/seed-*/parts/*.json")):
        found = _PART.match(path.name)
        part = read_json(path, what="part file") if found else {}
        if found and part.get("seconds") is not None:
            backbone = path.relative_to(out).parts[0]
            speed.add(backbone, found["method"], len(part["predictions"]), part["seconds"])
    return speed
