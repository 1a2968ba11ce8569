"""`raggd targets --cluster`: shards of the target store made by workers, written by the driver."""

from __future__ import annotations

import platform
import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from raggd.adaptation.targets import TargetStore
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.cluster.workers import ClusterOptions, check_node, settle, workers
from raggd.files import replacing
from raggd.provenance import versions
from raggd.records import RaggdError
from raggd.settings import Settings
from raggd.training.run import Run, target_store
from raggd.training.stages import run_stage


class TargetWorker:
    """Computes shards; draws the same support sets as the driver, from the same settings."""

    def __init__(self, settings: Settings, pool: bool, folder: str, threads: int) -> None:
        """Load nothing yet; `pool`: the support sets are those of the support pools."""
        settle(folder, threads)
        self._parts = Assembly(settings)
        self._pool = pool
        self._scratch = tempfile.TemporaryDirectory(prefix="raggd-worker-")
        self._compiled = ExitStack()

    @cached_property
    def _store(self) -> TargetStore:
        run = Run(self._parts, Path(), (Path(self._scratch.name),), pool=self._pool)
        self._compiled.enter_context(compile_layers(self._parts.backbone))
        return target_store(run)

    def introduce(self) -> dict[str, Any]:
        """Say what this node has, for the driver to compare with its own.

        ``node``, ``versions``, ``identity`` of the store that it would make, and ``problem``: why
        it cannot, if so.
        """
        found: dict[str, Any] = {"node": platform.node(), "versions": versions(), "problem": ""}
        try:
            return found | {"identity": self._store.identity}
        except RaggdError as error:
            return found | {"identity": "", "problem": str(error)}

    def work(self, start: int) -> bytes | RaggdError:
        """Compute the shard that begins with support set `start`, and return the bytes of its file.

        A `RaggdError` is returned, so that it arrives unwrapped.
        """
        try:
            self._store.build(start)
            path = self._store.file(start)
        except RaggdError as error:
            return error
        content = path.read_bytes()
        path.unlink()
        return content


def _distribute(run: Run, options: ClusterOptions) -> int:
    # returns the number of workers that died
    parts, store = run.parts, target_store(run)
    store.open()
    tasks = store.missing()
    if not tasks:
        return 0
    with workers(options, TargetWorker, parts.settings, run.pool) as scheduler:
        parts.say(f"{len(scheduler)} workers are starting")
        for told in scheduler.ask_all("introduce"):
            check_node(told)
            if told["identity"] != store.identity:
                raise RaggdError(
                    f"the worker on node '{told['node']}' would make other targets than this "
                    "machine: give all nodes the same data and weights at the same paths."
                )
        done = 0

        def deliver(start: int, content: bytes | RaggdError) -> None:
            nonlocal done
            if isinstance(content, RaggdError):
                raise content
            with replacing(store.file(start)) as temporary:
                temporary.write_bytes(content)
            done += 1
            run.progress(f"targets ({len(scheduler)} workers)", done, len(tasks))

        scheduler.run(tasks, deliver)
        return scheduler.deaths


def run_targets_on(run: Run, options: ClusterOptions) -> dict[str, Any]:
    """Compute the targets of the training tasks on a cluster; continues where it stopped."""
    _distribute(run, options)
    return run_stage("targets", run)
