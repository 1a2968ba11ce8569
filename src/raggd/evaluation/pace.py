"""How fast this machine answers and adapts, by a look of some seconds, and what that allows."""

from __future__ import annotations

import time
from dataclasses import dataclass

from raggd.backbone.generate import decode, read_prompts
from raggd.backbone.load import Backbone
from raggd.backbone.shapes import without_text
from raggd.evaluation.price import random_prompts

ROWS, PROMPT, ANSWER = 3, 464, 7
"""A batch as the demo's: three prompts of that many tokens, answers of some six and their end."""
STEP = 2.4
"""A step of SGD, forwards and backwards, in forward passes over the same tokens."""
CHOICES = (24, 40, 60, 90, 120)
"""Numbers of questions that a demo may have: few, so that a second look chooses the same one."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of work on one machine.

    Attributes:
        answer: one question with three passages.
        encode: one forward pass over a support set of three demonstrations.
    """

    answer: float
    encode: float

    def seconds(
        self, questions: int, sets: int, *, methods: int, encoded: int, sgd_steps: int
    ) -> float:
        """Estimate a comparison of methods.

        Args:
            questions: answered by every method.
            sets: support sets that each method adapts to.
            methods: in all.
            encoded: of them, those that read the support set for a predictor.
            sgd_steps: gradient steps per support set, of all methods together.

        Returns:
            Seconds.
        """
        adapting = sets * self.encode * (encoded + STEP * sgd_steps)
        return methods * questions * self.answer + adapting


def look(backbone: Backbone) -> Pace:
    """Time one small batch of random tokens, as long as real prompts.

    Args:
        backbone: the frozen model; a few seconds of it.

    Returns:
        The pace.
    """
    silent = without_text(backbone)
    decode(silent, read_prompts(silent, random_prompts(silent, 1, 32, 0)), 2)  # warm
    started = time.perf_counter()
    reading = read_prompts(silent, random_prompts(silent, ROWS, PROMPT, 0))
    encode = time.perf_counter() - started
    decode(silent, reading, ANSWER)
    return Pace((time.perf_counter() - started) / ROWS, encode)


def questions_for(
    seconds: float, pace: Pace, *, methods: int, encoded: int, sgd_steps: int
) -> tuple[int, int]:
    """Choose how much a comparison can do within some time.

    Args:
        seconds: that it may take.
        pace: of the machine.
        methods: that answer every question.
        encoded: of them, those that read the support set for a predictor.
        sgd_steps: gradient steps per support set, of all methods together.

    Returns:
        Questions in all, and support sets per benchmark (of two): three where there is time.
    """
    best = (CHOICES[0], 1)
    for draws in (1, 3):
        for questions in CHOICES if draws == 1 else CHOICES[2:]:
            needed = pace.seconds(
                questions, 2 * draws, methods=methods, encoded=encoded, sgd_steps=sgd_steps
            )
            if needed <= seconds:
                best = (questions, draws)
    return best
