"""Workers of an index build: passages come as lines, vectors or sorted words go back. No Ray here.

Nothing heavy is imported before it is needed: a bound on memory holds for the whole process.
"""

from __future__ import annotations

import io
import platform
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from raggd.cluster.crew import settle
from raggd.provenance import versions
from raggd.records import RaggdError
from raggd.retrieval.memory import Budget, held_memory, peak_memory
from raggd.retrieval.ranges import LEAST_MEMORY, sort_range
from raggd.retrieval.store import passages_in
from raggd.retrieval.tokenizer import tokenizer_fingerprint

if TYPE_CHECKING:
    from raggd.retrieval.encoder import Encoder


@dataclass(frozen=True)
class Lines:
    """Passages of a store, to be worked on.

    Attributes:
        start: row of the first.
        content: their lines.
    """

    start: int
    content: bytes


@dataclass(frozen=True)
class Made:
    """What a worker returns.

    Attributes:
        value: vectors, shape (passages, width), or a `SortedRange`.
        memory: the most that the worker has held so far, bytes.
    """

    value: Any
    memory: int


def _introduction() -> dict[str, Any]:
    return {"node": platform.node(), "versions": versions(), "problem": "", "identity": ""}


class EncodingWorker:
    """Holds an encoder."""

    def __init__(self, name: str, precision: str, folder: str, threads: int) -> None:
        """Load nothing yet.

        Args:
            name: of the encoder.
            precision: of the passages, ``float32`` or ``bfloat16``.
            folder: working folder of the driver; relative paths start there.
            threads: processor threads to use; 0 leaves the number as it is.
        """
        settle(folder, threads)
        self._name = name
        self._precision = precision

    @cached_property
    def _encoder(self) -> Encoder:
        from raggd.retrieval.encoder import load_encoder

        return load_encoder(self._name, precision=self._precision)

    def introduce(self) -> dict[str, Any]:
        """Say what this node has.

        Returns:
            ``node``, ``versions``, ``identity`` of the encoder, and ``problem``: why it cannot
            encode, if so.
        """
        found = _introduction()
        try:
            return found | {"identity": self._encoder.fingerprint}
        except RaggdError as error:
            return found | {"problem": str(error)}

    def work(self, task: Lines) -> Made | RaggdError:
        """Encode a shard.

        Args:
            task: its passages.

        Returns:
            Their vectors; a `RaggdError` is returned, not raised, so that it arrives unwrapped.
        """
        try:
            passages = list(passages_in(io.BytesIO(task.content)))
            return Made(self._encoder.encode_passages(passages), peak_memory())
        except RaggdError as error:
            return error


class SortingWorker:
    """Sorts the words of passages within a bound on its own memory."""

    def __init__(self, bound: int) -> None:
        """Take the bound.

        Args:
            bound: the most that this process may hold, bytes.
        """
        self._budget = Budget(bound)

    def introduce(self) -> dict[str, Any]:
        """Say what this node has.

        Returns:
            ``node``, ``versions``, ``identity`` of the tokenizer, ``left``: bytes that may be used,
            and ``problem``: why it cannot sort, if so.
        """
        left = self._budget.left() - LEAST_MEMORY
        found = _introduction() | {"identity": tokenizer_fingerprint(), "left": left}
        try:
            self._budget.require(LEAST_MEMORY, "a worker that sorts words")
        except RaggdError as error:
            found["problem"] = str(error)
        return found

    def work(self, task: Lines) -> Made | RaggdError:
        """Sort a range, or as much from its start as the bound allows.

        Args:
            task: its passages.

        Returns:
            The `SortedRange`; a `RaggdError` is returned, not raised, so that it arrives unwrapped.
        """
        try:
            self._budget.require(LEAST_MEMORY, f"sorting a range ({held_memory()} bytes are held)")
        except RaggdError as error:
            return error
        room = self._budget.left() - LEAST_MEMORY // 2
        lines = io.BytesIO(task.content)
        return Made(sort_range(passages_in(lines), task.start, room), peak_memory())
