"""One request, from the body that came in to the rows that answer it and the reply: one object."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from raggd.data.prompts import Exchange
from raggd.data.shown import is_refusal, named_passages, parsed_json
from raggd.records import Passage, unknown_name
from raggd.serving.bodies import Details, Extension, PassageView
from raggd.serving.documents import given_passages
from raggd.serving.errors import ApiError, BadRequestError, as_api_error
from raggd.serving.openai import (
    ChatChunk,
    Completion,
    Logprobs,
    Reason,
    ResponseFormat,
    Usage,
    Writing,
)
from raggd.serving.row import Piece, Row, Sampling

if TYPE_CHECKING:
    from raggd.serving.service import Service

AUTO = "raggd"
"""The model that adapts when there is something to adapt to, and is the base adapter otherwise."""
MODELS = {
    AUTO: "adapted with a support set or demonstrations, else base",
    "vanilla-rag": "the bare backbone with the passages in its prompt",
    "base": "the base adapter (the shared interface), not adapted",
    "adapted": "adapted in one forward pass to the support set or demonstrations of the request",
}
C = TypeVar("C", ChatChunk, Completion)
NO_HIT = "No passage shares a word with the question. (raggd.guess asks the model all the same.)"
GONE = ApiError(499, "client_closed_request", "the client closed the connection.")


def choose_method(model: str, wanted: Extension) -> tuple[str, str | None]:
    """Settle the method and the stored support set that a request names.

    Returns:
        The method, and the id of the support set, if any.

    Raises:
        ApiError: the model is unknown.
        BadRequestError: fields contradict each other.
    """
    name, slash, tail = model.partition("/")
    if name not in MODELS or (slash and (name != "adapted" or not tail)):
        known = [*MODELS, "adapted/<support id>"]
        raise ApiError(
            404, "model_not_found", str(unknown_name("model", model, known)), param="model"
        )
    support = tail or wanted.support
    adapts = bool(support or wanted.demonstrations)
    method = (wanted.method or ("adapted" if adapts else "base")) if name == AUTO else name
    problem = ""
    either = f"leave it out, or use model '{AUTO}'."
    if tail and wanted.support not in {None, tail}:
        problem = (
            f"model '{model}' and raggd.support '{wanted.support}' name different sets: leave one "
            "out."
        )
    elif support and wanted.demonstrations:
        problem = f"support set '{support}' and demonstrations were both given: leave one out."
    elif wanted.method not in {None, method}:
        problem = (
            f"model '{model}' answers by {method}, but raggd.method is '{wanted.method}': {either}"
        )
    elif method != "adapted" and adapts:
        problem = f"{method} does not adapt, but a support set was given: {either}"
    if problem:
        raise BadRequestError(problem, "raggd")
    if method == "adapted" and not adapts:
        raise BadRequestError(
            "adapted adapts to answered questions: name a stored set (model "
            "'adapted/<support id>' or raggd.support) or give raggd.demonstrations.",
            "raggd",
            "support_missing",
        )
    return method, support


class Request(Response):
    """What is asked, the rows that answer it, and the reply that is sent; an ASGI response."""

    prefix = ""

    def __init__(
        self, service: Service, body: Writing, tokens: int | None, logprobs: int | None = None
    ) -> None:
        """Read what chat and completions have in common.

        Args:
            service: answers it.
            body: of the request.
            tokens: most tokens of an answer; None takes the server's default.
            logprobs: alternatives to report with each token; None reports no probabilities.

        Raises:
            BadRequestError: fields contradict each other or exceed a limit.
        """
        super().__init__()
        wanted = body.raggd or Extension()
        most = service.settings.backbone.context_tokens
        if (tokens or 0) > most:
            raise BadRequestError(
                f"max_tokens is {tokens}: question and answer together have at most {most} "
                "(backbone.context_tokens).",
                "max_tokens",
            )
        self.method, self.support = choose_method(body.model, wanted)
        self.demonstrations = wanted.demonstrations or []
        self.passages = None if wanted.passages is None else given_passages(wanted.passages)
        self.questions: list[str] = []
        self.earlier: tuple[Exchange, ...] = ()
        self.instruction = wanted.instruction or ""
        self.format: ResponseFormat | None = None
        self.max_tokens = tokens
        self._asks_anyway = bool(wanted.guess) or not service.settings.retrieval.top_k
        self.stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
        self.ignore_end = bool(body.ignore_eos)
        self.sampling = Sampling(
            body.temperature or 0.0, 1.0 if body.top_p is None else body.top_p, body.seed, logprobs
        )
        self._service, self._body = service, body
        self._show_passages = wanted.show_passages is not False
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[Row, Piece] | ApiError | None] = asyncio.Queue()
        self._closed = False
        self.rows: list[Row] = []
        self.evidence: list[tuple[Passage, ...]] = []
        self.timings: dict[str, float] = {}
        self.searched: list[str] = []
        """What is searched for where it is not the question."""
        self.turns_cut = 0

    def ask(self, questions: list[str], param: str) -> None:
        """Take the questions.

        Raises:
            BadRequestError: one is empty, or there are more than the server ever takes.
        """
        most = self._service.settings.serving.queue
        if len(questions) > most:
            raise BadRequestError(
                f"{len(questions)} prompts: this server takes at most {most} at once "
                "(serving.queue): send fewer in a request.",
                param,
                "too_many_prompts",
            )
        if not all(question.strip() for question in questions):
            raise BadRequestError("the question is empty: expected at least one word.", param)
        self.questions = questions

    # Its life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: prepare, wait for what the rows write, send it; give up when nobody listens."""
        release = self._service.admit(len(self.questions))
        seconds = self._service.settings.serving.timeout_s
        late = ApiError(
            504, "timeout", f"no answer within {seconds:g} s (serving.timeout_s): ask again later."
        )
        clock = self._loop.call_later(seconds, self._news.put_nowait, late)
        preparing = asyncio.create_task(self._service.prepare(self))
        preparing.add_done_callback(self._prepared)
        tasks = [preparing, asyncio.create_task(self._hang_up(receive))]
        try:
            await self._next()
            if self._body.stream:
                await self._stream(send)
                return
            async for _ in self._pieces():
                pass
            whole = self.reply().model_dump_json()
            await Response(whole, media_type="application/json")(scope, receive, send)
        except OSError:
            pass  # the client is gone
        finally:
            self._closed = True
            clock.cancel()
            for task in tasks:
                task.cancel()
            self._service.scheduler.cancel(self.rows)
            release()

    async def _hang_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._news.put_nowait(GONE)

    def _prepared(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._news.put_nowait(as_api_error(error))

    def opened(
        self, rows: list[Row], evidence: list[tuple[Passage, ...]], timings: dict[str, float]
    ) -> None:
        """Take what was prepared; the rows are submitted next."""
        self.rows, self.evidence, self.timings = rows, evidence, timings
        self._news.put_nowait(None)

    def unfounded(self, index: int) -> bool:
        """Return whether nothing was found for a question, so that the model is not asked."""
        found = self.evidence[index] or self.passages is not None
        return not (found or self._asks_anyway)

    def take(self, row: Row, piece: Piece | ApiError) -> None:
        """Take what a row has to say, from any thread."""
        if not self._closed:
            news = piece if isinstance(piece, ApiError) else (row, piece)
            with suppress(RuntimeError):  # the loop has ended: nobody listens any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def _next(self) -> tuple[Row, Piece] | None:
        news = await self._news.get()
        if isinstance(news, ApiError):
            raise news
        return news

    async def _pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        left = len(self.rows)
        while left:
            news = await self._next()
            assert news is not None, "a request is opened once"
            row, piece = news
            left -= piece.reason is not None
            yield self.rows.index(row), piece

    async def _stream(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for chunk in self._chunks():
                data = chunk.model_dump_json(exclude_unset=True)
                await send(_event(data))
            await send(_event("[DONE]"))
        except ApiError as error:
            await send(_event(json.dumps(error.body)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _chunks(self) -> AsyncIterator[BaseModel]:
        for chunk in self.opening():
            yield chunk
        async for index, piece in self._pieces():
            if piece.text or (piece.logprobs and piece.logprobs.content):
                yield self.chunk(index, piece.text, piece.logprobs)
            if piece.reason:
                yield self.chunk(index, None, None, piece.reason, self.details(index))
        if self._usage:
            yield self.counted()

    # Its reply

    def reply(self) -> BaseModel:
        """Return the body, once every row is finished."""
        raise NotImplementedError

    def opening(self) -> Iterable[BaseModel]:
        """Return the chunks of a stream that come before any text."""
        return ()

    def chunk(
        self,
        index: int,
        text: str | None,
        logprobs: Logprobs | None,
        reason: Reason | None = None,
        details: Details | None = None,
    ) -> BaseModel:
        """Return a chunk of a stream.

        Args:
            index: of the row.
            text: more of its answer; None in the last chunk.
            logprobs: of the tokens whose text is shown with it.
            reason: why it ended, in the last chunk.
            details: how it came about, in the last chunk.
        """
        raise NotImplementedError

    def counted(self) -> BaseModel:
        """Return the chunk that ends a stream with the number of tokens."""
        raise NotImplementedError

    def with_extras(self, chunk: C, details: Details | None) -> C:
        """Return the chunk with what only some carry."""
        if details is not None:
            chunk.raggd = details
        if self._usage:
            chunk.usage = None
        return chunk

    def tokens(self) -> Usage:
        """Return the number of tokens of all rows."""
        read = sum(len(row.prompt.tokens) for row in self.rows)
        written = sum(row.written for row in self.rows)
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)

    def details(self, index: int) -> Details:
        """Return how an answer came about; timings are told once it is finished."""
        row = self.rows[index]
        shown = [PassageView.model_validate(p) for p in self.evidence[index]]
        return Details(
            method=self.method,
            support=self.support,
            adapted=self.support is not None,
            hits=len(shown),
            passages=shown if self._show_passages else None,
            passages_cut=row.prompt.passages_cut,
            searched=self.searched or None,
            turns_cut=self.turns_cut,
            refused=is_refusal(row.writer.text, row.adapted.refusals) if row.done else None,
            named=list(named_passages(row.writer.text, self.evidence[index])) if row.done else None,
            valid_json=isinstance(parsed_json(row.writer.text), dict)
            if self.format and row.done
            else None,
            timings={**self.timings, **row.timings} if row.done else None,
            batch=row.batch if row.done else None,
        )


def _event(data: str) -> dict[str, object]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}
