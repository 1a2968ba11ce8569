"""One request, from the body that came in to the rows that answer it and the reply: one object.

There are two kinds: a chat, whose last turn is the question, and a list of prompts.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi.responses import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from raggd.data.prompts import Exchange
from raggd.data.shown import is_refusal, named_passages, parsed_json
from raggd.records import Passage
from raggd.serving import openai
from raggd.serving.bodies import Details, Extension, given_passages
from raggd.serving.errors import ApiError, BadRequestError, as_api_error
from raggd.serving.row import Row, Sampling, TextPiece

if TYPE_CHECKING:
    from raggd.serving.service import Service

NO_HIT = "No passage shares a word with the question. (raggd.guess asks the model all the same.)"
GONE = ApiError(499, "client_closed_request", "the client closed the connection.")


def turns_of(messages: list[openai.Message]) -> tuple[str, str, tuple[Exchange, ...]]:
    """Return what system and developer say, the question, and earlier ones with their answers.

    Raises:
        BadRequestError: the last turn is not the user's.
    """
    turns: list[tuple[str, str]] = []
    for message in messages:
        if message.role not in {"user", "assistant"} or (not turns and message.role != "user"):
            continue
        if turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, f"{turns[-1][1]}\n{message.text}")
        else:
            turns.append((message.role, message.text))
    if not turns or turns[-1][0] != "user":
        raise BadRequestError(
            "expected a message with the role 'user' last: the question.", "messages"
        )
    said = "\n".join(m.text for m in messages if m.role in {"system", "developer"})
    texts = [text for _, text in turns]
    return said, texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True))


class Request(Response):
    """What is asked, the rows that answer it, and the reply that is sent; an ASGI response."""

    prefix = asked_in = ""
    part: type[openai.ChatChunk] | type[openai.Completion]  # of a stream

    def __init__(
        self,
        service: Service,
        body: openai.Writing,
        questions: list[str],
        tokens: int | None,
        logprobs: int | None = None,
    ) -> None:
        """Read what chat and prompts have in common.

        An answer has at most so many `tokens`; None takes the server's default. `logprobs` are
        alternatives to report with each token; None reports no probabilities.

        Raises:
            BadRequestError: fields contradict each other or exceed a limit.
        """
        super().__init__()
        wanted, settings = body.raggd or Extension(), service.settings
        most, together = settings.backbone.context_tokens, settings.serving.queue
        if (tokens or 0) > most:
            raise BadRequestError(
                f"max_tokens is {tokens}: question and answer together have at most {most} "
                "(backbone.context_tokens).",
                "max_tokens",
            )
        if len(questions) > together:
            raise BadRequestError(
                f"{len(questions)} prompts: this server takes at most {together} at once "
                "(serving.queue): send fewer in a request.",
                self.asked_in,
                "too_many_prompts",
            )
        if not all(question.strip() for question in questions):
            raise BadRequestError(
                "the question is empty: expected at least one word.", self.asked_in
            )
        self.method, self.support = wanted.method_of(body.model)
        self.demonstrations = wanted.demonstrations or []
        self.passages = None if wanted.passages is None else given_passages(wanted.passages)
        self.questions = questions
        self.earlier: tuple[Exchange, ...] = ()
        self.instruction = wanted.instruction or ""
        self.format: openai.ResponseFormat | None = None  # JSON, where it is wanted
        self.max_tokens = tokens
        self.stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
        self.ignore_end = bool(body.ignore_eos)
        self.sampling = Sampling(
            body.temperature or 0.0, 1.0 if body.top_p is None else body.top_p, body.seed, logprobs
        )
        self.rows: list[Row] = []
        self.evidence: list[tuple[Passage, ...]] = []
        self.timings: dict[str, float] = {}
        self.searched: list[str] = []  # where it is not the question
        self.turns_cut = 0
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self._service, self._body, self._wanted = service, body, wanted
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[Row, TextPiece] | ApiError | None] = asyncio.Queue()
        self._closed = False

    # Its life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: prepare, wait for what the rows write, send it; give up when nobody listens."""
        seconds = self._service.settings.serving.timeout_s
        late = ApiError(
            504, "timeout", f"no answer within {seconds:g} s (serving.timeout_s): ask again later."
        )
        with self._service.admitted(len(self.questions)):
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
        guesses = self._wanted.guess or not self._service.settings.retrieval.top_k
        return not (self.evidence[index] or self.passages is not None or guesses)

    def take(self, row: Row, piece: TextPiece | ApiError) -> None:
        """Take what a row has to say, from any thread."""
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
            async for part in self._parts():
                await send(_event(part.model_dump_json(exclude_unset=True)))
            await send(_event("[DONE]"))
        except ApiError as error:
            await send(_event(json.dumps(error.body)))
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

    # Its reply

    def reply(self) -> BaseModel:
        """Return the body, once every row is finished."""
        raise NotImplementedError

    def opening(self) -> list[BaseModel]:
        """Return the choice with which a stream begins before any text, if it does."""
        return []

    def choice(self, index: int, piece: TextPiece) -> BaseModel:
        """Return the choice of a stream's chunk: more text of a row, or, last, why it ended."""
        raise NotImplementedError

    def tokens(self) -> openai.Usage:
        """Return the number of tokens of all rows."""
        read = sum(len(row.prompt.tokens) for row in self.rows)
        written = sum(row.written for row in self.rows)
        return openai.Usage(
            prompt_tokens=read, completion_tokens=written, total_tokens=read + written
        )

    def details(self, index: int) -> Details:
        """Return how an answer came about; timings are told once it is finished."""
        row, evidence = self.rows[index], self.evidence[index]
        details = Details(
            method=self.method,
            support=self.support,
            adapted=self.support is not None,
            hits=len(evidence),
            passages=None if self._wanted.show_passages is False else evidence,
            passages_cut=row.prompt.passages_cut,
            searched=self.searched or None,
            turns_cut=self.turns_cut,
        )
        if row.done:
            text = row.writer.text
            details.refused = is_refusal(text, row.adapted.refusals)
            details.named = list(named_passages(text, evidence))
            details.valid_json = isinstance(parsed_json(text), dict) if self.format else None
            details.timings, details.batch = {**self.timings, **row.timings}, row.batch
        return details


def _event(data: str) -> dict[str, object]:
    return {"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True}


class Chat(Request):
    """`/v1/chat/completions`."""

    prefix, asked_in, part = "chatcmpl", "messages", openai.ChatChunk

    def __init__(self, service: Service, body: openai.ChatRequest) -> None:
        if body.top_logprobs and not body.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
        most, newer = body.max_tokens, body.max_completion_tokens
        if None not in {most, newer} and most != newer:
            raise BadRequestError("max_tokens and max_completion_tokens differ: leave one out.")
        said, question, earlier = turns_of(body.messages)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        super().__init__(service, body, [question], newer or most, logprobs)
        self.earlier = earlier
        self.instruction = "\n".join(filter(None, (said, self.instruction)))
        if body.response_format and body.response_format.type != "text":
            self.format = body.response_format

    def _refusal(self) -> str | None:
        shown = self.rows and self.rows[0].adapted.refusals  # then that is the answer
        return NO_HIT if self.unfounded(0) and not shown else None

    def reply(self) -> openai.ChatCompletion:
        """Return the body, once the answer is finished."""
        (row,) = self.rows
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
        """Return the choice of a chunk, see `Request`."""
        delta = openai.Delta() if piece.reason else openai.Delta(content=piece.text)
        if piece.reason and (refusal := self._refusal()):
            delta = openai.Delta(refusal=refusal)
        return openai.ChunkChoice(
            index=index, delta=delta, logprobs=piece.logprobs, finish_reason=piece.reason
        )


class Prompts(Request):
    """`/v1/completions`."""

    prefix, asked_in, part = "cmpl", "prompt", openai.Completion

    def __init__(self, service: Service, body: openai.CompletionRequest) -> None:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        super().__init__(service, body, prompts, body.max_tokens)

    def reply(self) -> openai.Completion:
        """Return the body, once every answer is finished."""
        choices = [
            openai.CompletionChoice(
                index=index,
                text=row.writer.text,
                logprobs=None,
                finish_reason=row.reason,
                raggd=self.details(index),
            )
            for index, row in enumerate(self.rows)
        ]
        return openai.Completion(**self.head, choices=choices, usage=self.tokens())

    def choice(self, index: int, piece: TextPiece) -> openai.CompletionChoice:
        """Return the choice of a chunk, see `Request`."""
        reason = piece.reason
        return openai.CompletionChoice(
            index=index, text=piece.text, logprobs=None, finish_reason=reason
        )
