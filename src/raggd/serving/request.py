"""A request, from what is asked to what is sent: one object, and an ASGI response.

What it sends comes from its rows, which the scheduler writes together with those of others.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from raggd.data.prompts import Exchange, build_prompt
from raggd.data.shown import is_refusal, named_passages
from raggd.files import as_json
from raggd.methods.answering import extract_of, render
from raggd.methods.base import Adapted
from raggd.records import RaggdError
from raggd.serving.bodies import Details, Extension, ResponseFormat, Usage, Writing, given_passages
from raggd.serving.errors import ApiError, as_api_error
from raggd.serving.row import AnswerText, Probabilities, Row, Sampler, TextPiece
from raggd.serving.service import Service, milliseconds_since, passages_for, searches_for

RESERVE = 8
"""Passages give way to an answer of this part of the context; a longer one takes what is left."""
NO_JSON = (
    "response_format: JSON is written where demonstrations show it: give raggd.demonstrations, or "
    "a support set, whose every answer is a JSON object as you want it, with the keys and kinds of "
    "values of your schema."
)


def _too_long(reason: str) -> ApiError:
    told = f"what is asked does not fit the context: {reason}"
    return ApiError(told, "messages", "context_length_exceeded")


class Request(Response):
    """What is asked, the rows that answer it, and the reply; kinds differ in OpenAI's shapes."""

    prefix = ""  # of its id
    part = ""  # what a chunk of its stream is
    opens = False  # whether a stream begins with an empty piece

    def __init__(
        self,
        service: Service,
        body: Writing,
        questions: list[str],
        asked_in: str,
        most: int | None,
        logprobs: int | None = None,
    ) -> None:
        """Read what all kinds have in common; the questions stand in the field `asked_in`.

        An answer has at most so many tokens (`most`); None takes the server's default. `logprobs`
        are alternatives to report with each token; None reports no probabilities.

        Raises:
            ApiError: fields contradict each other or exceed a limit.
        """
        super().__init__()
        settings, wanted = service.settings, body.raggd or Extension()
        context, together = settings.backbone.context_tokens, settings.serving.queue
        if (most or 0) > context:
            raise ApiError(
                f"max_tokens is {most}: question and answer together have at most {context} "
                "(backbone.context_tokens).",
                "max_tokens",
            )
        if len(questions) > together:
            raise ApiError(
                f"{len(questions)} prompts: this server takes at most {together} at once "
                "(serving.queue): send fewer in a request.",
                asked_in,
                "too_many_prompts",
            )
        if not all(question.strip() for question in questions):
            raise ApiError("the question is empty: expected at least one word.", asked_in)
        self.method, self.support = wanted.method_of(body.model)
        self.head = {
            "id": f"{self.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": body.model,
        }
        self.questions, self.wanted = questions, wanted
        self.earlier: tuple[Exchange, ...] = ()
        self.instruction = wanted.instruction or ""
        self.format: ResponseFormat | None = None  # JSON, where it is wanted
        self.rows: list[Row] = []
        self.timings = {"prepare": 0.0, "adapt": 0.0}  # milliseconds
        self.searched: list[str] | None = None  # where it is not the question
        self.remarks: list[str] | None = None  # on its own demonstrations, if there are any
        self.turns_cut = 0
        self._service, self._body = service, body
        self._most, self._logprobs = most, logprobs
        self._usage = bool(body.stream_options and body.stream_options.include_usage)
        self._retriever = service.documents.retriever  # one for the whole request
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[Row, TextPiece] | ApiError] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer: prepare, wait for what the rows write, send it; give up when nobody listens."""
        seconds = self._service.settings.serving.timeout_s
        told = f"no answer within {seconds:g} s (serving.timeout_s): ask again later."
        late = ApiError(told, code="timeout", status=504)
        with self._service.admitted(len(self.questions)):
            clock = self._loop.call_later(seconds, self._news.put_nowait, late)
            beside = (self._prepare(), self._hung_up(receive))
            tasks = [self._loop.create_task(each) for each in beside]
            try:
                async with asyncio.timeout(2 * seconds):
                    pieces = self._pieces()
                    await anext(pieces)  # the rows are there
                    if self._body.stream:
                        # for proxies: neither kept nor gathered
                        fresh = {"cache-control": "no-cache", "x-accel-buffering": "no"}
                        kind, events = "text/event-stream", self._events(pieces)
                        stream = StreamingResponse(events, media_type=kind, headers=fresh)
                        await stream.stream_response(send)
                    else:
                        async for _ in pieces:
                            pass
                        whole = self._whole().model_dump_json()
                        await Response(whole, media_type="application/json")(scope, receive, send)
            except OSError:
                pass  # the client is gone, or does not read what it is sent (TimeoutError)
            finally:
                clock.cancel()
                for task in tasks:
                    task.cancel()
                self._service.scheduler.cancel(self.rows)

    async def _hung_up(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        told = "the client closed the connection."
        self._news.put_nowait(ApiError(told, code="client_closed_request", status=499))

    # In: to the rows

    async def _prepare(self) -> None:
        service = self._service
        try:
            for text in (self.instruction, *self.questions):
                if self._is_vast(text):
                    raise _too_long(f"one text of it has {len(text)} characters.")
            adapted = await self._adapted()
            with service.scheduler.expecting():
                started = time.perf_counter()
                asked = enumerate(self.questions)
                self.rows = await service.aside(lambda: [self._row(adapted, *q) for q in asked])
                self.timings["prepare"] = milliseconds_since(started)
                self._news.put_nowait((self.rows[0], TextPiece("")))
                service.scheduler.submit([row for row in self.rows if not row.unfounded])
            for row in self.rows:
                if row.unfounded:
                    row.skip()
        except Exception as error:
            self._news.put_nowait(as_api_error(error))

    async def _adapted(self) -> Adapted:
        # adapted now, looked up, or the model as it is
        service = self._service
        if self.method != "adapted":
            if self.format:
                raise ApiError(NO_JSON, "response_format")
            return Adapted(service.base if self.method == "base" else None)
        if self.support:
            support = service.stored(self.support).support
        else:
            shown = self.wanted.demonstrations or []
            support = await service.aside(lambda: service.support_of(shown, self._retriever))
            self.remarks = await service.aside(lambda: service.rag.remarks(support))
        if self.format and not all(self.format.fits(d.answer) for d in support.demonstrations):
            raise ApiError(NO_JSON, "response_format")
        self.support = support.id
        adapted, self.timings["adapt"] = await service.adapted_to(support, self.instruction)
        return adapted

    def _row(self, adapted: Adapted, index: int, question: str) -> Row:
        # finds passages and renders the prompt, which blocks
        service, body, given = self._service, self._body, self.wanted.passages
        backbone, settings = service.backbone, service.settings
        limit, k = settings.backbone.context_tokens, settings.retrieval.top_k
        earlier = self._fitting_turns()
        if given is not None:
            found = given_passages(given)
        else:
            if self.earlier:
                self.searched = searches_for(question, self.earlier)
            found = passages_for(self.searched or [question], self._retriever, k)
        usual = max(settings.evaluation.max_answer_tokens, adapted.most)
        most = self._most or usual
        try:
            prompt = render(
                backbone,
                adapted,
                question,
                found,
                limit=limit,
                reserve=min(most, max(limit // RESERVE, usual)),
                instruction=self.instruction or settings.serving.instruction,
                earlier=earlier,
            )
        except RaggdError as error:
            raise _too_long(str(error)) from error
        top_p = 1.0 if body.top_p is None else body.top_p
        rewrites = adapted.template is not None and adapted.template.rewrites
        others = self._logprobs
        asked = found or given is not None or self.wanted.guess or not k
        return Row(
            index=index,
            prompt=prompt,
            adapted=adapted,
            sampler=Sampler(body.temperature or 0.0, top_p, body.seed),
            writer=AnswerText(
                lambda tokens: str(backbone.tokenizer.decode(tokens, skip_special_tokens=True)),
                [body.stop] if isinstance(body.stop, str) else list(body.stop or ()),
                lines=adapted.lines,
                written=partial(adapted.written, prompt=prompt) if rewrites else None,
            ),
            probabilities=None if others is None else Probabilities(service.bytes_of, others),
            max_tokens=min(most, limit - len(prompt.tokens)),
            emit=self._take,
            extract=extract_of(backbone, adapted, prompt),
            ignore_end=bool(body.ignore_eos),
            found=found,
            unfounded=adapted.needs_passages and not asked,
        )

    def _is_vast(self, text: str) -> bool:
        # far beyond any context: not worth a search, nor to be counted in tokens
        return len(text) > 32 * self._service.settings.backbone.context_tokens

    def _fitting_turns(self) -> tuple[Exchange, ...]:
        # earlier turns, as they are shown, may take a quarter of the context: the oldest go first
        def size(*turns: Exchange) -> int:
            tokenizer = self._service.backbone.tokenizer
            return len(build_prompt(tokenizer, "?", limit=sys.maxsize, earlier=turns).tokens)

        room, bare, kept = self._service.settings.backbone.context_tokens // 4, size(), 0
        for turn in reversed(self.earlier):
            if self._is_vast("".join(turn)):
                break
            room -= size(turn) - bare
            if room < 0:
                break
            kept += 1
        self.turns_cut = len(self.earlier) - kept
        return self.earlier[self.turns_cut :]

    # Out: from the rows

    def _take(self, row: Row, piece: TextPiece | ApiError) -> None:
        # from any thread
        news = piece if isinstance(piece, ApiError) else (row, piece)
        with suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)

    async def _pieces(self) -> AsyncIterator[tuple[Row, TextPiece]]:
        # first an empty one, when the rows are there
        ended = 0
        while not self.rows or ended < len(self.rows):
            news = await self._news.get()
            if isinstance(news, ApiError):
                raise news
            ended += news[1].reason is not None
            yield news

    async def _events(self, pieces: AsyncIterator[tuple[Row, TextPiece]]) -> AsyncIterator[str]:
        try:
            if self.opens:
                first = self._choice(self.rows[0], TextPiece(""))
                yield self._chunk([first], self._details(self.rows[0]))
            async for row, piece in pieces:
                if piece.text or (piece.logprobs and piece.logprobs.content):
                    yield self._chunk([self._choice(row, replace(piece, reason=None))])
                if piece.reason:
                    last = self._choice(row, TextPiece("", reason=piece.reason))
                    yield self._chunk([last], self._details(row))
            if self._usage:
                yield self._chunk([])
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield f"data: {error.body.model_dump_json()}\n\n"

    def _chunk(self, choices: list[dict[str, Any]], details: Details | None = None) -> str:
        told: dict[str, Any] = {**self.head, "object": self.part, "choices": choices}
        if details:
            told["raggd"] = details.model_dump(exclude_unset=True)
        if self._usage:
            told["usage"] = None if choices else self._tokens().model_dump()
        return f"data: {as_json(told)}\n\n"

    def _whole(self) -> BaseModel:
        # once every row is finished
        raise NotImplementedError

    def _choice(self, row: Row, piece: TextPiece) -> dict[str, Any]:
        # of a stream's chunk: more text of a row, nothing yet, or, last, why it ended
        raise NotImplementedError

    def _tokens(self) -> Usage:
        # none where the model was not asked
        read = sum(len(row.prompt.tokens) for row in self.rows if row.written)
        written = sum(row.written for row in self.rows)
        total = read + written
        return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=total)

    def _details(self, row: Row) -> Details:
        # how an answer came about; timings are told once it is finished
        told = Details(
            method=self.method,
            support=self.support,
            adapted=self.support is not None,
            hits=len(row.found),
            passages=None if self.wanted.show_passages is False else row.found,
            passages_cut=row.prompt.passages_cut,
            searched=self.searched,
            remarks=self.remarks or None,
            turns_cut=self.turns_cut,
        )
        if row.done:
            told.refused = is_refusal(row.text, row.adapted.refusals_to(row.prompt.asked))
            told.named = list(named_passages(row.text, row.found))
            told.valid_json = self.format.fits(row.text) if self.format else None
            told.timings, told.batch = {**self.timings, **row.timings}, row.batch
        return told
