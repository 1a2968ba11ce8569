"""The routes: OpenAI's, support sets, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, PlainTextResponse, Response

from raggd.serving.bodies import (
    Deleted,
    Health,
    IndexView,
    SupportList,
    SupportRequest,
    SupportView,
)
from raggd.serving.chat import Chat, Prompts
from raggd.serving.errors import ApiError, install_handlers
from raggd.serving.keys import Gate, Keys
from raggd.serving.openai import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorBody,
    ModelList,
    ModelView,
)
from raggd.serving.request import MODELS
from raggd.serving.service import Service

PAGE = Path(str(resources.files("raggd"))) / "serving" / "static"
PAGE_FILES = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "marks.js": "text/javascript",
    "ready.js": "text/javascript",
}
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


def _openai_routes(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/chat/completions",
        response_model=ChatCompletion,
        responses={**ERRORS, **STREAM},
        tags=["OpenAI"],
        summary="Answer the last question of a chat from retrieved passages",
    )
    async def chat(body: ChatRequest) -> Response:
        return Chat(service, body)

    @app.post(
        "/v1/completions",
        response_model=Completion,
        responses={**ERRORS, **STREAM},
        tags=["OpenAI"],
        summary="Answer one or several questions from retrieved passages",
    )
    async def completions(body: CompletionRequest) -> Response:
        return Prompts(service, body)

    def models() -> list[ModelView]:
        fixed = [ModelView(id=n, created=started, description=d) for n, d in MODELS.items()]
        return fixed + [
            ModelView(
                id=view.model, created=view.created, description=f"adapted to the set '{view.task}'"
            )
            for view in service.supports.views()
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
            raise ApiError(
                409,
                "support_of_another_base",
                f"this support set is meant for base adapter '{body.base}', this server runs "
                f"'{in_use}': leave 'base' out.",
                param="base",
            )
        view, new = await service.store(body)
        response.status_code = 201 if new else 200
        return view

    @app.get(
        "/v1/supports",
        responses=ERRORS,
        tags=["support sets"],
        summary="List the support sets, newest first",
    )
    async def list_supports() -> SupportList:
        return SupportList(data=service.supports.views())

    @app.get(
        "/v1/supports/{support}",
        responses=ERRORS,
        tags=["support sets"],
        summary="Show a support set",
    )
    async def get_support(support: str) -> SupportView:
        return service.supports.view(support)

    @app.delete(
        "/v1/supports/{support}",
        responses=ERRORS,
        tags=["support sets"],
        summary="Delete a support set and its update",
    )
    async def delete_support(support: str) -> Deleted:
        await asyncio.to_thread(service.supports.remove, support)
        return Deleted(id=support)


def _own_routes(app: FastAPI, service: Service) -> None:
    @app.get(
        "/v1/index",
        responses=ERRORS,
        tags=["operation"],
        summary="Show which index is searched",
    )
    async def get_index() -> IndexView:
        return service.documents.view()

    @app.post(
        "/v1/index",
        responses=ERRORS,
        tags=["operation"],
        summary="Index the documents that changed, and search them from now on",
    )
    async def refresh_index() -> IndexView:
        return await asyncio.to_thread(service.documents.refresh)

    @app.get(
        "/health",
        responses={**ERRORS, 503: {"model": Health}},
        tags=["operation"],
        summary="Say whether the server takes requests; 503 while it stops",
    )
    async def health(response: Response) -> Health:
        fit = service.scheduler.alive and not service.stopping
        response.status_code = 200 if fit else 503
        return Health(
            status="ok" if fit else "stopping",
            backbone=service.backbone.name,
            base=service.base.fingerprint,
            corpus="own" if service.documents.own else "embedded",
            passages=len(service.documents),
            version=metadata.version("raggd"),
            waiting=service.scheduler.waiting,
            running=service.scheduler.running,
            supports=len(service.supports),
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


def create_app(service: Service, keys: Keys | None = None, *, local: bool = True) -> Gate:
    """Build the application.

    Args:
        service: what answers; it is closed when the application shuts down.
        keys: of those who may ask; None lets everyone in.
        local: whether it is served on this machine only.

    Returns:
        An ASGI application.
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
    )
    install_handlers(app)
    _openai_routes(app, service)
    _support_routes(app, service)
    _own_routes(app, service)
    limit = service.settings.serving.body_kb * 1024
    return Gate(app, service.metrics, keys=keys or {}, most=limit, local=local)
