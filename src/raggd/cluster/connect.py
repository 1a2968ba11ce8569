"""Starting or joining a Ray cluster, in clear words, and how much of it each worker gets."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raggd.provenance import versions
from raggd.records import RaggdError

LOCAL = "local"
"""The address that stands for a cluster of this machine alone, started and stopped here."""
_MISSING = "a cluster needs Ray, which is not installed: `pip install 'raggd[cluster]'`."
SECONDS = 5.0
"""How long a cluster may take to accept a connection."""


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise RaggdError(_MISSING) from error
    return ray


def check_address(address: str) -> None:
    """Refuse what `connected` cannot connect to, without connecting.

    Raises:
        RaggdError: it is no address, or Ray is not installed.
    """
    _, colon, port = address.rpartition(":")
    if address not in {LOCAL, "auto"} and not (colon and port.isdigit()):
        raise RaggdError(
            f"--cluster '{address}': expected 'local', 'auto' or HOST:PORT of a Ray head node."
        )
    if importlib.util.find_spec("ray") is None:
        raise RaggdError(_MISSING)


def _check_reachable(address: str) -> None:
    # Ray itself tries for minutes before it gives up
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS).close()
    except OSError as error:
        raise RaggdError(
            f"no Ray cluster answers at {address} ({error.strerror or error}): start one with "
            "`ray start --head --port=6379`, or use --cluster local."
        ) from error


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Use a cluster inside a ``with`` block, as the module ray, connected.

    The address is ``local``, ``auto`` (the cluster that runs on this machine), or HOST:PORT.

    Raises:
        RaggdError: there is no cluster at the address, or it runs other versions of Ray or Python,
            or Ray is not installed.
    """
    check_address(address)
    ray = _ray()
    if address != LOCAL:
        _check_reachable(address)
    if ray.is_initialized():  # the caller's own connection stays
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == LOCAL:
        options |= {"include_dashboard": False}
    else:
        options |= {"address": address}
    try:
        ray.init(**options)
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RaggdError(
            f"cannot use the Ray cluster '{address}': {reason} All nodes need the same versions of "
            "Python and Ray."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class ClusterOptions:
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


def shares(ray: Any, options: ClusterOptions, single: bool = False) -> Share:
    """Share a cluster out; a `single` worker uses one core and no GPU.

    Raises:
        RaggdError: more processor cores are asked for than the cluster has.
    """
    there = ray.cluster_resources()
    gpus, cores = 0 if single else int(there.get("GPU", 0)), int(there.get("CPU", 1))
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    count = options.workers or gpus or nodes
    if gpus:
        return Share(count, {"num_gpus": min(1.0, gpus / count)}, options.threads)
    threads = 1 if single else options.threads or max(1, cores // count)
    if count * threads > cores:
        raise RaggdError(
            f"{count} workers of {threads} cores each: the cluster has {cores} processor cores. "
            "Ask for less by --workers or --worker-threads."
        )
    return Share(count, {"num_cpus": threads}, threads)


def check_node(told: Mapping[str, Any]) -> None:
    """Refuse a worker that cannot do its part, or has other versions than this machine.

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
    """Make this process a worker with so many processor threads; 0 leaves the number as it is.

    Relative paths start in `folder`, the driver's, if it is there.
    """
    if folder and Path(folder).is_dir():
        os.chdir(folder)
    if threads:
        import torch

        torch.set_num_threads(threads)
