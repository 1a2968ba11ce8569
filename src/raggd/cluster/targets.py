"""`raggd targets --cluster`: shards of the target store made by workers, written by the driver."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

from raggd.adaptation.targets import TargetStore
from raggd.assembly import Assembly
from raggd.backbone.load import compile_layers
from raggd.cluster.workers import ClusterOptions, Worker, check_worker, workers
from raggd.files import replacing
from raggd.records import RaggdError
from raggd.settings import Settings
from raggd.training.run import Run, target_store
from raggd.training.stages import run_stage

STORE = "the store of targets"


class TargetWorker(Worker[int, bytes]):
    """Computes shards; draws the same support sets as the driver, from the same settings."""

    def __init__(self, settings: Settings, pool: bool, folder: str, threads: int) -> None:
        """Load nothing yet; `pool`: the support sets are those of the support pools."""
        super().__init__(folder, threads)
        self._parts = Assembly(settings)
        self._pool = pool
        self._compiled = ExitStack()

    @cached_property
    def _store(self) -> TargetStore:
        run = Run(self._parts, Path(), (self.scratch,), pool=self._pool)
        self._compiled.enter_context(compile_layers(self._parts.backbone))
        return target_store(run)

    def identities(self) -> dict[str, str]:
        """Return the identity of the store that it would make."""
        return {STORE: self._store.identity}

    def result(self, task: int) -> bytes:
        """Compute the shard that begins with this support set, and return the bytes of its file."""
        self._store.build(task)
        path = self._store.file(task)
        content = path.read_bytes()
        path.unlink()
        return content


def run_targets_on(run: Run, options: ClusterOptions) -> dict[str, Any]:
    """Compute the targets of the training tasks on a cluster; continues where it stopped."""
    store = target_store(run)
    store.open()
    if tasks := store.missing():
        _distribute(run, store, tasks, options)
    return run_stage("targets", run)


def _distribute(run: Run, store: TargetStore, tasks: list[int], options: ClusterOptions) -> None:
    settings, done = run.parts.settings, 0
    with workers(options, run.progress, TargetWorker, settings, run.pool) as scheduler:
        for told in scheduler.introductions():
            check_worker(told, {STORE: store.identity})

        def deliver(start: int, content: bytes | RaggdError) -> None:
            nonlocal done
            if isinstance(content, RaggdError):
                raise content
            with replacing(store.file(start)) as temporary:
                temporary.write_bytes(content)
            done += 1
            run.progress(f"targets ({len(scheduler)} workers)", done, len(tasks))

        scheduler.run(tasks, deliver)
