"""The application: its routes, and running it: bind first, load, serve, stop without losing any."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import metadata, resources
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeAlias

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response
from prometheus_client import generate_latest
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from raggd.api import Rag
from raggd.backbone.device import leave_one
from raggd.records import RaggdError
from raggd.serving import openai
from raggd.serving.bodies import MODELS
from raggd.serving.errors import HANDLERS, LOG, ApiError, ErrorBody
from raggd.serving.gate import Keys, RequestGate, is_local
from raggd.serving.service import Service
from raggd.serving.supports import Evaluations, ListOf, Supports, SupportView
from raggd.settings import ServingSettings

PAGE = Path(str(resources.files("raggd"))) / "serving" / "static"
PAGE_FILES = ("page.css", "page.js", "marks.js", "ready.js")
Responses: TypeAlias = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    "4XX": {"model": ErrorBody, "description": "The request is refused."},
    "5XX": {"model": ErrorBody, "description": "The server stops, is too slow, or failed."},
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM: Responses = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}
"""With ``"stream": true``: events whose data is a chunk in OpenAI's form, the last ``[DONE]``."""
KNOWN: Responses = {200: {"model": SupportView, "description": "It was there already."}}
PAGE_HEADERS = {
    # the page may load and reach nothing but this server
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


class ModelView(BaseModel):
    """A name to ask for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "raggd"
    description: str


class Health(BaseModel):
    """`GET /health`."""

    status: Literal["ok", "stopping"]
    backbone: str
    base: str
    corpus: Literal["embedded", "own"]
    passages: int
    version: str
    waiting: int
    running: int
    supports: int


def _openai_routes(app: FastAPI, service: Service, supports: Supports) -> None:
    @app.post("/v1/chat/completions", response_model=openai.ChatCompletion, responses=STREAM)
    async def chat(body: openai.ChatRequest) -> Response:
        """Answer the last question of a chat from retrieved passages."""
        return openai.Chat(service, body)

    @app.post("/v1/completions", response_model=openai.Completion, responses=STREAM)
    async def completions(body: openai.CompletionRequest) -> Response:
        """Answer one or several questions from retrieved passages."""
        return openai.Prompts(service, body)

    started = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> ListOf[ModelView]:
        """List what a request may name as its model."""
        sets = await service.aside(supports.views)
        there = [(name, started, description) for name, description in MODELS.items()]
        there += [(v.model, v.created, f"adapted to the set '{v.task}'") for v in sets]
        return ListOf(data=[ModelView(id=n, created=c, description=d) for n, c, d in there])

    @app.get("/v1/models/{model:path}", summary="Look a model up")
    async def get_model(model: str) -> ModelView:
        for known in (await list_models()).data:
            if known.id == model:
                return known
        raise ApiError("there is no model of that name.", "model", "model_not_found", 404)


def _own_routes(app: FastAPI, service: Service, supports: Supports) -> None:
    evaluations, documents = Evaluations(service), service.documents
    app.post("/v1/supports", status_code=201, responses=KNOWN)(supports.add_support)
    app.get("/v1/supports")(supports.list_supports)
    app.get("/v1/supports/{support}")(supports.get_support)
    app.delete("/v1/supports/{support}")(supports.delete_support)
    app.post("/v1/evaluations", status_code=202)(evaluations.start_evaluation)
    app.get("/v1/evaluations/{evaluation}")(evaluations.get_evaluation)
    app.delete("/v1/evaluations/{evaluation}")(evaluations.end_evaluation)
    app.get("/v1/index")(documents.get_index)
    app.post("/v1/index")(documents.refresh_index)

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """Say whether the server takes requests; 503 while it stops."""
        fit = service.scheduler.alive and not service.stopping
        response.status_code = 200 if fit else 503
        return Health(
            status="ok" if fit else "stopping",
            backbone=service.backbone.name,
            base=service.base.fingerprint,
            corpus=service.documents.corpus,
            passages=len(service.documents),
            version=metadata.version("raggd"),
            waiting=service.scheduler.waiting,
            running=service.scheduler.running,
            supports=len(service.store.names()),
        )

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Show counters and timings for Prometheus."""
        return PlainTextResponse(generate_latest(service.metrics.registry))

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    @app.get("/static/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in PAGE_FILES:
            raise ApiError("there is no such file.", code="not_found", status=404)
        return FileResponse(PAGE / name, headers=PAGE_HEADERS)


def create_app(service: Service, keys: Keys | None = None, *, local: bool = True) -> ASGIApp:
    """Build the ASGI application; it closes the service when it shuts down.

    Without `keys` everyone is let in; `local` says whether it is served on this machine only.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        interval = service.settings.serving.watch_s
        watching = asyncio.create_task(service.documents.watch(interval))
        yield
        watching.cancel()
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="raggd",
        summary="Answers from passages by a frozen language model, adapted per request.",
        version=metadata.version("raggd"),
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
        exception_handlers=HANDLERS,
    )
    supports = Supports(service)
    _openai_routes(app, service, supports)
    _own_routes(app, service, supports)
    gate = RequestGate(app, service.metrics, keys=keys or {}, local=local)
    origins = service.settings.serving.origins
    # around the gate: a browser asks beforehand without a key, and its page is to read refusals
    if not origins:
        return gate
    methods = ("GET", "POST", "DELETE")
    return CORSMiddleware(gate, origins, methods, ("*",), expose_headers=("Retry-After",))


# Running it


def bind(settings: ServingSettings) -> socket.socket:
    """Take the address before anything slow is loaded: a bound socket that does not listen yet."""
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
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:  # it listens now: whoever is told may connect
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # A signal ends it well: requests in progress are finished, and the exit code is 0.
        self._service.stopping = True
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        if hasattr(signal, "SIGHUP"):
            documents, loop = self._service.documents, asyncio.get_running_loop()
            again = partial(documents.look, at_once=True)
            loop.add_signal_handler(signal.SIGHUP, documents.aside, again)
        await super().serve(sockets)


def serve(rag: Rag, *, keys: Keys | None, ready: Callable[[str], None]) -> None:
    """Serve until a signal comes; the settings of `rag` say where.

    Without `keys` everyone is let in; `ready` is told the address once it listens there.
    """
    settings = rag.parts.settings.serving
    with bind(settings) as taken:
        if hasattr(signal, "SIGHUP"):  # while it loads, there is nothing to be indexed anew
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOG.handlers[:], LOG.propagate = [handler], False
        LOG.setLevel(logging.INFO)
        service = Service(rag, threads=leave_one())
        config = uvicorn.Config(
            create_app(service, keys, local=is_local(settings.host)),
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_graceful_shutdown=int(settings.timeout_s) + 1,
            timeout_keep_alive=30,
        )
        host, port = taken.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        asyncio.run(_Server(config, service, lambda: ready(url)).serve([taken]))
