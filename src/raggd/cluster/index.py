"""`raggd index --cluster`: passages encoded, or their words sorted, by workers.

The driver reads the corpus, sends passages with the tasks, and writes what comes back; so workers
need no corpus, and a driver that was stopped goes on from the shards and ranges that are there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.cluster.connect import connected
from raggd.cluster.crew import Crew, Share, check_node, shares
from raggd.cluster.fleet import Fleet
from raggd.cluster.index_worker import EncodingWorker, Lines, Made, SortingWorker
from raggd.records import RaggdError
from raggd.retrieval.base import Progress
from raggd.retrieval.encoder import Encoder
from raggd.retrieval.memory import Budget
from raggd.retrieval.ranges import Span, finished_spans, missing_ranges, save_range
from raggd.retrieval.shards import VectorShards
from raggd.retrieval.store import offsets_of, read_lines_of
from raggd.retrieval.tokenizer import tokenizer_fingerprint
from raggd.workflows.ask import run_index

BYTES_PER_BYTE = 8
"""Memory that sorting takes per byte of passages, at most: they themselves and their words."""


def even_rows(passages: int, rows: int, workers: int) -> int:
    """Cut a corpus so that all workers have as much to do.

    Args:
        passages: of the corpus.
        rows: most passages of a range.
        workers: number of workers.

    Returns:
        Passages of a range.

    >>> even_rows(1_000_000, 262_144, 3)
    166667
    """
    rounds = -(-passages // (rows * workers))
    return -(-passages // (rounds * workers))


class FleetWorkers:
    """The workers of a cluster, started when there is something to do; an `IndexWorkers`."""

    def __init__(self, crew: Crew, stack: ExitStack, say: Callable[[str], None]) -> None:
        """Connect to nothing yet.

        Args:
            crew: cluster and number of workers.
            stack: ends the connection.
            say: told what is going on.
        """
        self._crew = crew
        self._stack = stack
        self._say = say
        self._ray: Any = None
        self.told: dict[str, Any] = {
            "workers": 0, "tasks": 0, "deaths": 0, "seconds": 0.0, "worker_memory": 0
        }  # fmt: skip

    def _share(self, single: bool) -> Share:
        if self._ray is None:
            self._say(f"connecting to cluster {self._crew.address}")
            self._ray = self._stack.enter_context(connected(self._crew.address))
        return shares(self._ray, self._crew, single)

    def speed(self, of: str) -> float:
        """Say how many times as fast the workers are as this process alone.

        Args:
            of: ``bm25`` or ``dense``.

        Returns:
            The factor, if each of their cores (or GPUs) is as fast as one here.
        """
        share = self._share(single=of == "bm25")
        if of == "bm25" or "num_gpus" in share.reserved:
            return share.count
        import torch

        return share.count * share.threads / torch.get_num_threads()

    def sort_ranges(
        self, folder: Path, passages: int, budget: Budget, progress: Progress | None, rows: int
    ) -> None:
        """Make all ranges of a store that are missing, as `raggd.retrieval.ranges` does.

        Args:
            folder: a folder with a store.
            passages: number of its passages.
            budget: what each worker may hold.
            progress: called with the passages done and all of them.
            rows: most passages of a range.
        """

        def missing(most: int) -> list[Span]:
            there = finished_spans(folder)
            return missing_ranges(there, passages, rows, offsets_of(folder), most)

        def deliver(_: Span, made: Any) -> int:
            save_range(folder, made)
            return int(made.end - made.start)

        if not missing(0):
            return
        share = self._share(single=True)
        rows = even_rows(passages, rows, share.count)
        actor = self._ray.remote(**share.reserved)(SortingWorker)
        with self._fleet(lambda: actor.remote(budget.bound), share) as fleet:
            told = _introduced(fleet, tokenizer_fingerprint(), "another tokenizer")
            most = max(1, min(node["left"] for node in told) // BYTES_PER_BYTE)
            while todo := missing(most):  # again where a worker had to end a range early
                self._run(fleet, folder, todo, passages, deliver, progress)

    def encode_shards(
        self, shards: VectorShards, encoder: Encoder, progress: Progress | None
    ) -> None:
        """Make all shards of vectors that are missing.

        Args:
            shards: takes them.
            encoder: the encoder to use, by name and precision.
            progress: called with the passages done and all of them.
        """

        def deliver(rows: Span, vectors: Any) -> int:
            shards.put(rows[0], vectors)
            return len(vectors)

        todo = shards.missing()
        if not todo:
            return
        share = self._share(single=False)
        actor = self._ray.remote(**share.reserved)(EncodingWorker)
        given = (encoder.name, encoder.precision, str(Path.cwd()), share.threads)
        with self._fleet(lambda: actor.remote(*given), share) as fleet:
            _introduced(fleet, encoder.fingerprint, f"another encoder '{encoder.name}'")
            self._run(fleet, shards.folder, todo, shards.count, deliver, progress)

    @contextmanager
    def _fleet(self, start: Callable[[], Any], share: Share) -> Iterator[Fleet[Span]]:
        self._say(f"{share.count} workers are starting")
        fleet = Fleet[Span](self._ray, start, share.count)
        try:
            yield fleet
        finally:
            fleet.stop()
            self.told |= {"workers": share.count, "deaths": fleet.deaths}

    def _run(
        self, fleet: Fleet[Span], folder: Path, todo: Sequence[Span], passages: int,
        deliver: Callable[[Span, Any], int], progress: Progress | None,
    ) -> None:  # fmt: skip
        done, started = passages - sum(end - start for start, end in todo), time.monotonic()

        def take(rows: Span, made: Made | RaggdError) -> None:
            nonlocal done
            if isinstance(made, RaggdError):
                raise made
            done += deliver(rows, made.value)
            self.told["tasks"] += 1
            self.told["worker_memory"] = max(self.told["worker_memory"], made.memory)
            if progress is not None:
                progress(done, passages)

        fleet.run(todo, take, load=lambda rows: Lines(rows[0], read_lines_of(folder, *rows)))
        # a small range is sorted in milliseconds
        self.told["seconds"] = round(self.told["seconds"] + time.monotonic() - started, 4)


def _introduced(fleet: Fleet[Span], identity: str, other: str) -> list[dict[str, Any]]:
    told = fleet.ask_all("introduce")
    for node in told:
        check_node(node)
        if node["identity"] != identity:
            raise RaggdError(
                f"the worker on node '{node['node']}' has {other} than this machine: give all "
                "nodes the same files at the same paths, and the same raggd."
            )
    return told


def run_index_on(
    parts: Assembly,
    path: Path,
    crew: Crew,
    progress: Any,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Index a corpus on a cluster, once; continues where it stopped.

    Args:
        parts: settings of the retriever; its memory bound holds for each worker.
        path: the corpus.
        crew: cluster and number of workers.
        progress: the bar.
        announce: told in one line what a long build will take, before it starts.

    Returns:
        As `run_index`, and ``cluster``: ``workers`` (0 where nothing was to do), ``tasks``,
        ``deaths`` of workers, ``seconds`` that the tasks took once all workers stood, and
        ``worker_memory``, the most that a worker held, in bytes.

    Raises:
        RaggdError: the index would be kept in a database, or was made by FlashRAG.
    """
    retrieval = parts.settings.retrieval
    if retrieval.index_path or retrieval.retriever not in {"bm25", "dense"}:
        kind = "an index of FlashRAG" if retrieval.index_path else retrieval.retriever
        raise RaggdError(
            f"--cluster builds indexes of kind bm25 and dense, not {kind}: leave --cluster out."
        )
    with ExitStack() as stack:
        workers = FleetWorkers(crew, stack, progress.say)
        found = run_index(parts, path, announce, workers)
        return {**found, "cluster": workers.told}
