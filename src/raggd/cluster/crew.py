"""Who works: how many workers, on which cluster, with how much of it each."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raggd.cluster.connect import check_address
from raggd.provenance import versions
from raggd.records import RaggdError


@dataclass(frozen=True)
class Crew:
    """The workers of a run.

    Attributes:
        address: of the cluster, as `connected` takes it.
        workers: how many; 0 takes one per GPU, or one per node where there is none.
        threads: processor cores of each worker; 0 shares all of them out.
    """

    address: str
    workers: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        """Refuse an address that is none, or a missing Ray, before any work."""
        check_address(self.address)


@dataclass(frozen=True)
class Share:
    """What one worker gets.

    Attributes:
        count: number of workers.
        reserved: what each reserves, as Ray's `remote` takes it.
        threads: of each on a processor; 0 leaves the number as it is.
    """

    count: int
    reserved: dict[str, Any]
    threads: int


def shares(ray: Any, crew: Crew, single: bool = False) -> Share:
    """Share a cluster out.

    Args:
        ray: the module, connected.
        crew: what was asked for.
        single: the work uses one core and no GPU.

    Returns:
        Number and size of the workers.

    Raises:
        RaggdError: more processor cores are asked for than the cluster has.
    """
    there = ray.cluster_resources()
    gpus, cores = 0 if single else int(there.get("GPU", 0)), int(there.get("CPU", 1))
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    count = crew.workers or gpus or nodes
    if gpus:
        return Share(count, {"num_gpus": min(1.0, gpus / count)}, crew.threads)
    threads = 1 if single else crew.threads or max(1, cores // count)
    if count * threads > cores:
        raise RaggdError(
            f"{count} workers of {threads} cores each: the cluster has {cores} processor cores. "
            "Ask for less by --workers or --worker-threads."
        )
    return Share(count, {"num_cpus": threads}, threads)


def check_node(told: Mapping[str, Any]) -> None:
    """Refuse a worker that cannot do its part, or has other versions than this machine.

    Args:
        told: ``node``, ``problem`` and ``versions`` of the worker.

    Raises:
        RaggdError: it cannot; the node and the reason are named.
    """
    node = told["node"]
    if told["problem"]:
        raise RaggdError(f"the worker on node '{node}' cannot do its part: {told['problem']}")
    for name, version in versions().items():
        there = told["versions"].get(name)
        if there != version:
            raise RaggdError(
                f"the worker on node '{node}' has {name} {there}, this machine {version}: results "
                "could differ. Install the same versions on all nodes."
            )


def settle(folder: str, threads: int) -> None:
    """Make this process a worker: where relative paths start, and its share of the processor.

    Args:
        folder: working folder of the driver; left as it is where there is no such folder.
        threads: processor threads to use; 0 leaves the number as it is.
    """
    if folder and Path(folder).is_dir():
        os.chdir(folder)
    if threads:
        import torch

        torch.set_num_threads(threads)
