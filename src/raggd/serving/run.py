"""Run the application: bind first, load, serve, and stop without losing an answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from raggd.api import Rag
from raggd.backbone.threads import leave_one
from raggd.records import RaggdError
from raggd.serving.app import create_app
from raggd.serving.keys import Keys, is_local
from raggd.serving.service import Service
from raggd.settings import ServingSettings


def bind(settings: ServingSettings) -> socket.socket:
    """Take the address, before anything slow is loaded.

    Returns:
        A bound socket that does not listen yet.

    Raises:
        RaggdError: the address is in use, or is not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((settings.host, settings.port))
    except OSError as error:
        taken.close()
        raise RaggdError(
            f"cannot serve on {settings.host}, port {settings.port}: {error.strerror or error}. "
            "Choose another --port (0 takes a free one) or --host."
        ) from error
    return taken


class _Server(uvicorn.Server):
    # A signal ends the server well: requests in progress are finished, and the exit code is 0.
    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._on_stop()
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("raggd.serving")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.INFO)


def serve(
    rag: Rag, *, keys: Keys | None, ready: Callable[[str], None], quiet: bool = False
) -> None:
    """Serve until a signal comes.

    Args:
        rag: what to serve; its settings say where.
        keys: of those who may ask; None lets everyone in.
        ready: called with the server's address once everything is loaded.
        quiet: whether requests are left out of the log.
    """
    settings = rag.parts.settings.serving
    taken = bind(settings)
    if not quiet:
        _log_to_stderr()
    try:
        service = Service(rag, threads=leave_one())
    except BaseException:
        taken.close()
        raise
    app = create_app(service, keys, local=is_local(settings.host))
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        timeout_graceful_shutdown=int(settings.timeout_s) + 1,
        timeout_keep_alive=30,
    )

    def stop() -> None:
        service.stopping = True

    host, port = taken.getsockname()[:2]
    ready(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    asyncio.run(_serve(_Server(config, stop), taken, service))


async def _serve(server: uvicorn.Server, taken: socket.socket, service: Service) -> None:
    loop, refreshing = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def refresh() -> None:
        refreshing.add(task := asyncio.create_task(service.documents.refresh_or_warn()))
        task.add_done_callback(refreshing.discard)

    if hasattr(signal, "SIGHUP"):
        loop.add_signal_handler(signal.SIGHUP, refresh)
    await server.serve(sockets=[taken])
