"""One answer in the making, and the events that tell about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from raggd.data.prompts import Prompt
from raggd.methods.base import Adapted
from raggd.serving.errors import ApiError
from raggd.serving.sampling import Chosen, Sampler
from raggd.serving.text import AnswerText


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the answer: text that may be empty, and the token that it came with.

    `ends` says that the token is an end token, which has no text.
    """

    text: str
    chosen: Chosen
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is complete.

    Attributes:
        text: the whole answer.
        reason: ``stop`` or ``length``.
        tokens: written, the end token included.
        timings: milliseconds of ``queue``, ``read`` (the prompt) and ``write`` (the answer).
        batch: most answers that were written together with this one, itself included.
    """

    text: str
    reason: str
    tokens: int
    timings: dict[str, float]
    batch: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer cannot be written."""

    error: ApiError


Event = Piece | Finished | Failed


@dataclass(eq=False)
class Row:
    """One answer: what it is written from, how, and how far it is.

    Attributes:
        prompt: without an answer.
        adapted: what answers it.
        sampler: chooses its tokens.
        writer: turns them into text.
        max_tokens: most tokens.
        emit: takes its events; called from the engine's thread.
        ignore_end: write exactly `max_tokens` tokens, for measurements.
    """

    prompt: Prompt
    adapted: Adapted
    sampler: Sampler
    writer: AnswerText
    max_tokens: int
    emit: Callable[[Event], None]
    ignore_end: bool = False
    cancelled: bool = False
    done: bool = False
    last: int = 0
    batch: int = 1
    _written: int = 0
    _queued: float = field(default_factory=time.perf_counter)
    _started: float = 0.0
    _read: float = 0.0

    @property
    def base(self) -> str:
        """Fingerprint of its base adapter, empty for none: only rows of one base share a batch."""
        return self.adapted.base.fingerprint if self.adapted.base else ""

    def begin(self) -> None:
        """Say that its prompt is being read now."""
        self._started = time.perf_counter()

    def take(self, logits: Tensor, stops: frozenset[int]) -> None:
        """Choose the next token, and tell what it adds or that the answer is complete.

        Args:
            logits: (vocabulary,).
            stops: tokens that end an answer.
        """
        chosen = self.sampler.choose(logits)
        self._read = self._read or time.perf_counter()
        self._written += 1
        self.last = chosen.token
        text, reason = self._write(chosen.token, stops)
        self.emit(Piece(text, chosen, chosen.token in stops))
        if reason:
            self.done = True
            timings = self._timings()
            self.emit(Finished(self.writer.text, reason, self._written, timings, self.batch))

    def _write(self, token: int, stops: frozenset[int]) -> tuple[str, str]:
        if token in stops and not self.ignore_end:
            return self.writer.finish(), "stop"
        text = self.writer.push(token)
        if self.writer.ended and not self.ignore_end:
            return text, "stop"
        if self._written == self.max_tokens:
            return text + self.writer.finish(), "length"
        return text, ""

    def _timings(self) -> dict[str, float]:
        now = time.perf_counter()
        spans = {
            "queue": self._started - self._queued,
            "read": self._read - self._started,
            "write": now - self._read,
        }
        return {name: round(1000 * seconds, 1) for name, seconds in spans.items()}

    def fail(self, error: ApiError) -> None:
        """Say that the answer cannot be written.

        Args:
            error: what the client is told.
        """
        self.done = True
        self.emit(Failed(error))
