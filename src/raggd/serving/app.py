"""The routes: OpenAI's, support sets, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from raggd.serving.asks import MODELS, Ask, read_chat, read_completion
from raggd.serving.errors import ApiError, install_handlers
from raggd.serving.exchange import Exchange, Opened
from raggd.serving.forms import DONE, ChatForm, CompletionForm, Form, error_line, event_line
from raggd.serving.gate import Gate
from raggd.serving.schemas import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Deleted,
    ErrorBody,
    Health,
    ModelList,
    ModelView,
    SupportList,
    SupportRequest,
    SupportView,
)
from raggd.serving.service import Service
from raggd.serving.supports import OtherBaseError
from raggd.serving.views import support_view

PAGE = Path(str(resources.files("raggd"))) / "serving" / "static"
PAGE_FILES = {"page.css": "text/css", "page.js": "text/javascript", "marks.js": "text/javascript"}
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is refused."},
    "5XX": {"model": ErrorBody, "description": "The server is stopping, too slow, or failed."},
}
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": EVENT}}}
}
"""With ``"stream": true``: events whose data is a chunk in OpenAI's form, the last ``[DONE]``."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may load and reach nothing but this server."""


class EventStream(Response):
    """A stream of server-sent events; it owns the exchange from here on."""

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, form: Form) -> None:
        super().__init__()
        self._exchange = exchange
        self._form = form
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events as they come.

        Args:
            scope: of ASGI.
            receive: of ASGI; the exchange itself watches the connection.
            send: of ASGI.
        """
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for line in self._lines():
                await send({"type": "http.response.body", "body": line.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the client is gone
        finally:
            self._exchange.close()

    async def _lines(self) -> AsyncIterator[str]:
        form = self._form
        for chunk in form.opening():
            yield event_line(chunk)
        try:
            while not form.complete:
                index, event = await self._exchange.next()
                assert not isinstance(event, Opened)
                form.take(index, event)
                for chunk in form.chunks(index, event):
                    yield event_line(chunk)
        except ApiError as error:
            yield error_line(error)
            return
        for chunk in form.closing():
            yield event_line(chunk)
        yield DONE


async def _answer(
    service: Service,
    request: Request,
    body: ChatRequest | CompletionRequest,
    ask: Ask,
    make: type[Form],
) -> Response:
    usage = bool(body.stream_options and body.stream_options.include_usage)
    exchange = service.begin(ask, request.receive)
    handed = False
    try:
        _, opened = await exchange.next()
        assert isinstance(opened, Opened)
        form = make(ask, opened.sources, service.backbone.tokenizer, usage=usage)
        if body.stream:
            handed = True
            return EventStream(exchange, form)
        while not form.complete:
            index, event = await exchange.next()
            assert not isinstance(event, Opened)
            form.take(index, event)
        return JSONResponse(form.whole())
    finally:
        if not handed:
            exchange.close()


def _openai_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**ERRORS, **STREAM},
        tags=["OpenAI"],
        summary="Answer the last question of a chat from retrieved passages",
    )
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await _answer(service, request, body, read_chat(body, service.settings), ChatForm)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={**ERRORS, **STREAM},
        tags=["OpenAI"],
        summary="Answer one or several questions from retrieved passages",
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        ask = read_completion(body, service.settings)
        return await _answer(service, request, body, ask, CompletionForm)

    def models() -> list[ModelView]:
        fixed = [ModelView(id=n, created=started, description=d) for n, d in MODELS.items()]
        return fixed + [
            ModelView(
                id=f"rag-gd/{stored.support.id}",
                created=stored.created,
                description=f"adapted to the support set '{stored.support.task}'",
            )
            for stored in service.supports.list()
        ]

    started = int(time.time())

    @app.get(
        "/v1/models",
        responses=ERRORS,
        tags=["OpenAI"],
        summary="List what a request may name as its model",
    )
    async def list_models() -> ModelList:
        return ModelList(data=models())

    @app.get(
        "/v1/models/{model:path}", responses=ERRORS, tags=["OpenAI"], summary="Look a model up"
    )
    async def get_model(model: str) -> ModelView:
        for known in models():
            if known.id == model:
                return known
        raise ApiError(404, "model_not_found", "there is no model of that name.", param="model")


def _support_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/supports",
        status_code=201,
        responses={**ERRORS, 200: {"model": SupportView, "description": "It was there already."}},
        tags=["support sets"],
        summary="Store demonstrations and predict the update that they ask for",
    )
    async def add_support(body: SupportRequest, response: Response) -> SupportView:
        in_use = service.base.fingerprint
        if body.base not in {None, in_use}:
            raise OtherBaseError(str(body.base), in_use)
        stored, new = await service.store(body.task, body.demonstrations)
        response.status_code = 201 if new else 200
        return support_view(stored)

    @app.get(
        "/v1/supports",
        responses=ERRORS,
        tags=["support sets"],
        summary="List the support sets of the base adapter in use, newest first",
    )
    async def list_supports() -> SupportList:
        return SupportList(data=[support_view(stored) for stored in service.supports.list()])

    @app.get(
        "/v1/supports/{support}",
        responses=ERRORS,
        tags=["support sets"],
        summary="Show a support set",
    )
    async def get_support(support: str) -> SupportView:
        return support_view(service.supports.get(support))

    @app.delete(
        "/v1/supports/{support}",
        responses=ERRORS,
        tags=["support sets"],
        summary="Delete a support set and its update",
    )
    async def delete_support(support: str) -> Deleted:
        await service.forget(support)
        return Deleted(id=support)


def _own_routes(app: FastAPI, service: Service) -> None:
    @app.get(
        "/health",
        responses={**ERRORS, 503: {"model": Health}},
        tags=["operation"],
        summary="Say whether the server takes requests; 503 while it stops",
    )
    async def health(response: Response) -> Health:
        named = (service.settings.data.folder, service.settings.data.corpus)
        fit = service.engine.alive and not service.stopping
        response.status_code = 200 if fit else 503
        return Health(
            status="ok" if fit else "stopping",
            backbone=service.backbone.name,
            base=service.base.fingerprint,
            corpus="own" if named != ("pocket", "") else "embedded",
            version=metadata.version("raggd"),
            waiting=service.engine.waiting,
            running=service.engine.running,
            supports=len(service.supports.list()),
        )

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=ERRORS,
        tags=["operation"],
        summary="Show counters and timings for Prometheus",
    )
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics.text())

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff"}
        return FileResponse(PAGE / "index.html", media_type="text/html", headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in PAGE_FILES:
            raise ApiError(404, "not_found", "there is no such file.")
        headers = {"x-content-type-options": "nosniff", "cache-control": "no-cache"}
        return FileResponse(PAGE / name, media_type=PAGE_FILES[name], headers=headers)


def create_app(service: Service, *, key: str | None = None, local: bool = True) -> Gate:
    """Build the application.

    Args:
        service: what answers; it is closed when the application shuts down.
        key: the API key; None lets everyone in.
        local: whether it is served on this machine only.

    Returns:
        An ASGI application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="raggd",
        summary="Answers from passages by a frozen language model, adapted per request.",
        version=metadata.version("raggd"),
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    install_handlers(app)
    _openai_routes(app, service)
    _support_routes(app, service)
    _own_routes(app, service)
    limit = service.settings.serving.body_kb * 1024
    return Gate(app, service.metrics, key=key, most=limit, local=local)
