"""The two kinds of request: a chat, whose last turn is the question, and a list of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from raggd.data.prompts import Exchange
from raggd.data.shown import parsed_json
from raggd.records import Demonstration
from raggd.serving.bodies import Details
from raggd.serving.errors import BadRequestError
from raggd.serving.openai import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Logprobs,
    Message,
    Reason,
    ResponseFormat,
)
from raggd.serving.request import NO_HIT, Request

if TYPE_CHECKING:
    from raggd.serving.service import Service


def conversation(messages: Sequence[Message]) -> tuple[str, tuple[Exchange, ...], str]:
    """Read a chat.

    Returns:
        The question, the earlier questions with their answers, and the instruction (what system
        and developer say).

    Raises:
        BadRequestError: the last turn is not the user's, or is empty.
    """
    instruction = "\n".join(m.text for m in messages if m.role in {"system", "developer"})
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
    texts = [text for _, text in turns]
    return texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True)), instruction


def shows_json(shown: Sequence[Demonstration], wanted: ResponseFormat) -> bool:
    """Return whether every demonstration answers by an object as it is wanted."""
    schema = (wanted.json_schema.schema_ if wanted.json_schema else None) or {}
    keys = {str(key) for key in schema.get("required") or schema.get("properties") or ()}
    values = [parsed_json(d.answer) for d in shown]
    return bool(values) and all(isinstance(v, dict) and keys <= v.keys() for v in values)


class Chat(Request):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl"

    def __init__(self, service: Service, body: ChatRequest) -> None:
        """Read a chat.

        Raises:
            BadRequestError: there is no question, or fields contradict each other.
        """
        if body.top_logprobs is not None and not body.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
        most, newer = body.max_tokens, body.max_completion_tokens
        if None not in {most, newer} and most != newer:
            raise BadRequestError("max_tokens and max_completion_tokens differ: leave one out.")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        super().__init__(service, body, newer or most, logprobs)
        question, self.earlier, system = conversation(body.messages)
        self.ask([question], "messages")
        self.instruction = "\n".join(filter(None, (system, self.instruction)))
        if body.response_format and body.response_format.type != "text":
            self.format = body.response_format

    def reply(self) -> ChatCompletion:
        """Return the body, once the answer is finished."""
        (row,) = self.rows
        assert row.reason
        told = row.probabilities
        choice = ChatChoice(
            index=0,
            message=ChatMessage(content=row.writer.text, refusal=self._refusal()),
            logprobs=Logprobs(content=told.told) if told else None,
            finish_reason=row.reason,
        )
        return ChatCompletion(
            **self.head, choices=[choice], usage=self.tokens(), raggd=self.details(0)
        )

    def _refusal(self) -> str | None:
        return NO_HIT if self.unfounded(0) else None

    def opening(self) -> Iterable[ChatChunk]:
        """Return the role, and how the answer comes about, before its first word."""
        yield self._chunk(Delta(role="assistant", content=""), details=self.details(0))

    def chunk(
        self,
        index: int,
        text: str | None,
        logprobs: Logprobs | None,
        reason: Reason | None = None,
        details: Details | None = None,
    ) -> ChatChunk:
        """Return a chunk of a stream, see `Request`."""
        delta = Delta() if text is None else Delta(content=text)
        if reason and (refusal := self._refusal()):
            delta = Delta(refusal=refusal)
        return self._chunk(delta, logprobs, reason, details)

    def counted(self) -> ChatChunk:
        """Return the chunk that ends a stream with the number of tokens."""
        return ChatChunk(
            **self.head, object="chat.completion.chunk", choices=[], usage=self.tokens()
        )

    def _chunk(
        self,
        delta: Delta,
        logprobs: Logprobs | None = None,
        reason: Reason | None = None,
        details: Details | None = None,
    ) -> ChatChunk:
        choice = ChunkChoice(index=0, delta=delta, logprobs=logprobs, finish_reason=reason)
        chunk = ChatChunk(**self.head, object="chat.completion.chunk", choices=[choice])
        return self.with_extras(chunk, details)


class Prompts(Request):
    """`/v1/completions`."""

    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        """Read prompts."""
        super().__init__(service, body, body.max_tokens)
        self.ask([body.prompt] if isinstance(body.prompt, str) else body.prompt, "prompt")

    def reply(self) -> Completion:
        """Return the body, once every answer is finished."""
        choices = [
            CompletionChoice(
                index=index,
                text=row.writer.text,
                logprobs=None,
                finish_reason=row.reason,
                raggd=self.details(index),
            )
            for index, row in enumerate(self.rows)
        ]
        return Completion(**self.head, choices=choices, usage=self.tokens())

    def chunk(
        self,
        index: int,
        text: str | None,
        logprobs: Logprobs | None,
        reason: Reason | None = None,
        details: Details | None = None,
    ) -> Completion:
        """Return a chunk of a stream, see `Request`."""
        choice = CompletionChoice(
            index=index, text=text or "", logprobs=logprobs, finish_reason=reason
        )
        chunk = Completion(**self.head, object="text_completion", choices=[choice])
        return self.with_extras(chunk, details)

    def counted(self) -> Completion:
        """Return the chunk that ends a stream with the number of tokens."""
        return Completion(**self.head, object="text_completion", choices=[], usage=self.tokens())
