"""The reply to a request, from its rows to the socket: whole, or a stream in OpenAI's form."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from raggd.data.shown import is_refusal, named_passages
from raggd.serving import openai
from raggd.serving.bodies import Details
from raggd.serving.errors import ApiError, as_api_error
from raggd.serving.request import Request
from raggd.serving.row import Row, TextPiece
from raggd.serving.service import Service, milliseconds_since

NO_HIT = "No passage shares a word with the question. (raggd.guess asks the model all the same.)"
GONE = ApiError(499, "client_closed_request", "the client closed the connection.")


class Reply(Response):
    """What is sent for a request; an ASGI response. Its kinds differ in OpenAI's shapes."""

    prefix = ""
    part: type[openai.ChatChunk] | type[openai.Completion]  # of a stream

    def __init__(self, service: Service, request: Request, body: openai.Writing) -> None:
        super().__init__()
        self.request = request
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self._service, self._streams = service, bool(body.stream)
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self._shows = request.wanted.show_passages is not False
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[Row, TextPiece] | ApiError | None] = asyncio.Queue()
        self._closed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: prepare, wait for what the rows write, send it; give up when nobody listens."""
        seconds = self._service.settings.serving.timeout_s
        late = ApiError(
            504, "timeout", f"no answer within {seconds:g} s (serving.timeout_s): ask again later."
        )
        with self._service.admitted(len(self.request.questions)):
            clock = self._loop.call_later(seconds, self._news.put_nowait, late)
            tasks = [
                asyncio.create_task(self._prepare()),
                asyncio.create_task(self._hang_up(receive)),
            ]
            try:
                async with asyncio.timeout(2 * seconds):
                    await self._answer(scope, receive, send)
            except OSError:
                pass  # the client is gone, or does not read what it is sent (TimeoutError)
            finally:
                self._closed = True
                clock.cancel()
                for task in tasks:
                    task.cancel()
                self._service.scheduler.cancel(self.request.rows)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._next()
        if self._streams:
            await self._stream(send)
            return
        async for _ in self._pieces():
            pass
        whole = self.whole().model_dump_json()
        await Response(whole, media_type="application/json")(scope, receive, send)

    async def _prepare(self) -> None:
        request, service = self.request, self._service
        try:
            adapted = await request.adapt()
            with service.scheduler.expecting():
                started = time.perf_counter()
                await service.aside(lambda: request.make_rows(adapted, self._take))
                request.timings["prepare"] = milliseconds_since(started)
                self._news.put_nowait(None)
                asked = [row for at, row in enumerate(request.rows) if not request.unfounded(at)]
                service.scheduler.submit(asked)
            for row in request.rows:
                if row not in asked:
                    row.skip()
        except Exception as error:
            self._news.put_nowait(as_api_error(error))

    async def _hang_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._news.put_nowait(GONE)

    def _take(self, row: Row, piece: TextPiece | ApiError) -> None:
        # from any thread
        if not self._closed:
            news = piece if isinstance(piece, ApiError) else (row, piece)
            with suppress(RuntimeError):  # the loop has ended: nobody listens any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def _next(self) -> tuple[Row, TextPiece] | None:
        news = await self._news.get()
        if isinstance(news, ApiError):
            raise news
        return news

    async def _pieces(self) -> AsyncIterator[tuple[int, TextPiece]]:
        left = len(self.request.rows)
        while left:
            news = await self._next()
            assert news is not None, "a request is opened once"
            row, piece = news
            left -= piece.reason is not None
            yield self.request.rows.index(row), piece

    async def _stream(self, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async for part in self._parts():
                await send(_event(part.model_dump_json(exclude_unset=True)))
            await send(_event("[DONE]"))
        except ApiError as error:
            await send(_event(error.body.model_dump_json()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self) -> AsyncIterator[BaseModel]:
        for choice in self.opening():
            yield self._part([choice], self.details(0))
        async for index, piece in self._pieces():
            if piece.text or (piece.logprobs and piece.logprobs.content):
                yield self._part([self.choice(index, TextPiece(piece.text, piece.logprobs))])
            if piece.reason:
                last = self.choice(index, TextPiece("", None, piece.reason))
                yield self._part([last], self.details(index))
        if self._usage:
            yield self._part([])

    def _part(self, choices: list[BaseModel], details: Details | None = None) -> BaseModel:
        extras: dict[str, BaseModel | None] = {"raggd": details} if details else {}
        if self._usage:
            extras["usage"] = None if choices else self.tokens()
        kind = self.part.model_fields["object"].default
        return self.part(**self.head, object=kind, choices=choices, **extras)

    def whole(self) -> BaseModel:
        """Return the body, once every row is finished."""
        raise NotImplementedError

    def opening(self) -> list[BaseModel]:
        """Return the choice with which a stream begins before any text, if it does."""
        return []

    def choice(self, index: int, piece: TextPiece) -> BaseModel:
        """Return the choice of a stream's chunk: more text of a row, or, last, why it ended."""
        raise NotImplementedError

    def tokens(self) -> openai.Usage:
        """Return the number of tokens of all rows; none where the model was not asked."""
        read = sum(len(row.prompt.tokens) for row in self.request.rows if row.written)
        written = sum(row.written for row in self.request.rows)
        return openai.Usage(
            prompt_tokens=read, completion_tokens=written, total_tokens=read + written
        )

    def details(self, index: int) -> Details:
        """Return how an answer came about; timings are told once it is finished."""
        request = self.request
        row, evidence = request.rows[index], request.evidence[index]
        details = Details(
            method=request.method,
            support=request.support,
            adapted=request.support is not None,
            hits=len(evidence),
            passages=evidence if self._shows else None,
            passages_cut=row.prompt.passages_cut,
            searched=request.searched or None,
            remarks=request.remarks or None,
            turns_cut=request.turns_cut,
        )
        if row.done:
            text = row.writer.text
            details.refused = is_refusal(text, row.adapted.refusals_to(row.prompt.asked))
            details.named = list(named_passages(text, evidence))
            details.valid_json = request.format.fits(text) if request.format else None
            details.timings, details.batch = {**request.timings, **row.timings}, row.batch
        return details


def _event(data: str) -> dict[str, object]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


class ChatReply(Reply):
    """`/v1/chat/completions`."""

    prefix, part = "chatcmpl", openai.ChatChunk

    def _refusal(self) -> str | None:
        shown = self.request.rows and self.request.rows[0].adapted.refusals  # the answer, then
        return NO_HIT if self.request.unfounded(0) and not shown else None

    def whole(self) -> openai.ChatCompletion:
        """Return the body, once the answer is finished."""
        (row,) = self.request.rows
        assert row.reason
        told = row.probabilities
        choice = openai.ChatChoice(
            index=0,
            message=openai.ChatMessage(content=row.writer.text, refusal=self._refusal()),
            logprobs=openai.Logprobs(content=told.told) if told else None,
            finish_reason=row.reason,
        )
        details = self.details(0)
        return openai.ChatCompletion(
            **self.head, choices=[choice], usage=self.tokens(), raggd=details
        )

    def opening(self) -> list[BaseModel]:
        """Return the role, before the first word."""
        start = openai.Delta(role="assistant", content="")
        return [openai.ChunkChoice(index=0, delta=start, logprobs=None, finish_reason=None)]

    def choice(self, index: int, piece: TextPiece) -> openai.ChunkChoice:
        """Return the choice of a chunk, see `Reply`."""
        delta = openai.Delta() if piece.reason else openai.Delta(content=piece.text)
        if piece.reason and (refusal := self._refusal()):
            delta = openai.Delta(refusal=refusal)
        return openai.ChunkChoice(
            index=index, delta=delta, logprobs=piece.logprobs, finish_reason=piece.reason
        )


class PromptsReply(Reply):
    """`/v1/completions`."""

    prefix, part = "cmpl", openai.Completion

    def whole(self) -> openai.Completion:
        """Return the body, once every answer is finished."""
        choices = [
            openai.CompletionChoice(
                index=index,
                text=row.writer.text,
                logprobs=None,
                finish_reason=row.reason,
                raggd=self.details(index),
            )
            for index, row in enumerate(self.request.rows)
        ]
        return openai.Completion(**self.head, choices=choices, usage=self.tokens())

    def choice(self, index: int, piece: TextPiece) -> openai.CompletionChoice:
        """Return the choice of a chunk, see `Reply`."""
        reason = piece.reason
        return openai.CompletionChoice(
            index=index, text=piece.text, logprobs=None, finish_reason=reason
        )
