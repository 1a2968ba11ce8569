"""Starting or joining a Ray cluster, with clear words for what can go wrong."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    """Refuse what cannot be connected to, without connecting.

    Args:
        address: as `connected` takes it.

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
    """Use a cluster inside a ``with`` block.

    Args:
        address: ``local``, ``auto`` (the cluster that runs on this machine), or HOST:PORT.

    Yields:
        The module ray, connected.

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
