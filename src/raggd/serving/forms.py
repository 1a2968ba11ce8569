"""Answers in OpenAI's form: whole bodies, and the chunks of a stream."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from raggd.records import Passage
from raggd.serving.asks import Ask
from raggd.serving.errors import ApiError
from raggd.serving.exchange import Source
from raggd.serving.row import Event, Finished, Piece
from raggd.serving.sampling import Chosen

Json = dict[str, Any]
DONE = "data: [DONE]\n\n"


def event_line(value: Json) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def error_line(error: ApiError) -> str:
    """Return the event of a failure in the middle of a stream."""
    return event_line(error.body)


def passage_views(passages: Sequence[Passage]) -> list[Json]:
    """Return passages as answers carry them."""
    return [{"id": p.id, "title": p.title, "text": p.text} for p in passages]


def token_view(tokenizer: Any, chosen: Chosen) -> Json:
    """Return a written token with its probabilities in OpenAI's form.

    Args:
        tokenizer: names tokens.
        chosen: with log-probabilities.

    Returns:
        ``token``, ``logprob``, ``bytes``, ``top_logprobs``.
    """

    def view(token: int, logprob: float | None) -> Json:
        text = str(tokenizer.decode([token]))
        return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

    top = [view(token, logprob) for token, logprob in chosen.top]
    return {**view(chosen.token, chosen.logprob), "top_logprobs": top}


class Form:
    """What chat and completions have in common. One object per request."""

    kind = ""
    prefix = ""
    chunk_kind = ""

    def __init__(
        self, ask: Ask, sources: Sequence[Source], tokenizer: Any, *, usage: bool = False
    ) -> None:
        """Take what the answer says about itself.

        Args:
            ask: the request.
            sources: of its answers, in order.
            tokenizer: names tokens.
            usage: whether a stream ends with the number of tokens.
        """
        self._ask = ask
        self._sources = sources
        self._tokenizer = tokenizer
        self._usage = usage
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._finished: dict[int, Finished] = {}
        self._chosen: dict[int, list[Chosen]] = {i: [] for i in range(len(sources))}

    @property
    def complete(self) -> bool:
        """Whether every answer is finished."""
        return len(self._finished) == len(self._sources)

    def take(self, index: int, event: Event) -> None:
        """Take an event.

        Args:
            index: of the answer.
            event: what happened to it.
        """
        if isinstance(event, Finished):
            self._finished[index] = event
        elif isinstance(event, Piece) and not event.ends:
            self._chosen[index].append(event.chosen)

    def whole(self) -> Json:
        """Return the body, once everything is complete."""
        answers = [self._finished[i] for i in range(len(self._sources))]
        return {
            **self._head(self.kind),
            "choices": [self._choice(i, answer) for i, answer in enumerate(answers)],
            "usage": self._tokens(),
        }

    def opening(self) -> Iterator[Json]:
        """Yield the chunks that come before any text."""
        yield from ()

    def chunks(self, index: int, event: Event) -> Iterator[Json]:
        """Yield the chunks for an event that `take` has seen.

        Args:
            index: of the answer.
            event: what happened to it.

        Yields:
            Chunks of the stream.
        """
        if isinstance(event, Piece):
            if event.text or self._ask.sampling.top_logprobs is not None:
                yield self._chunk(index, event.text, self._logprobs(event), None)
        elif isinstance(event, Finished):
            last = self._chunk(index, None, None, event.reason)
            yield {**last, "raggd": self.details(index)}

    def closing(self) -> Iterator[Json]:
        """Yield the chunks that come after all text."""
        if self._usage:
            yield {**self._head(self.chunk_kind), "choices": [], "usage": self._tokens()}

    def details(self, index: int) -> Json:
        """Say how an answer came about.

        Args:
            index: of the answer; timings are told once it is finished.

        Returns:
            The field `raggd`.
        """
        source = self._sources[index]
        end = self._finished.get(index)
        shown = passage_views(source.passages) if self._ask.show_passages else None
        return {
            "method": source.method,
            "support": source.support,
            "adapted": source.support is not None,
            "passages": shown,
            "passages_cut": source.passages_cut,
            "timings": {**source.timings, **end.timings} if end else None,
            "batch": end.batch if end else None,
        }

    def _head(self, kind: str) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._ask.model,
        }

    def _tokens(self) -> Json:
        asked = sum(source.prompt_tokens for source in self._sources)
        written = sum(answer.tokens for answer in self._finished.values())
        return {
            "prompt_tokens": asked,
            "completion_tokens": written,
            "total_tokens": asked + written,
        }

    def _logprobs(self, event: Piece) -> Json | None:
        if self._ask.sampling.top_logprobs is None:
            return None
        content = [] if event.ends else [token_view(self._tokenizer, event.chosen)]
        return {"content": content, "refusal": None}

    def _chunk(self, index: int, text: str | None, logprobs: Json | None, end: str | None) -> Json:
        choice = {
            "index": index,
            **self._delta(text),
            "logprobs": logprobs,
            "finish_reason": end,
        }
        usage = {"usage": None} if self._usage else {}
        return {**self._head(self.chunk_kind), "choices": [choice], **usage}

    def _choice(self, index: int, answer: Finished) -> Json:
        raise NotImplementedError

    def _delta(self, text: str | None) -> Json:
        raise NotImplementedError


class ChatForm(Form):
    """`/v1/chat/completions`."""

    kind = "chat.completion"
    prefix = "chatcmpl"
    chunk_kind = "chat.completion.chunk"

    def whole(self) -> Json:
        """Return the body, once the answer is complete."""
        return {**super().whole(), "raggd": self.details(0)}

    def opening(self) -> Iterator[Json]:
        """Yield the role, and how the answer comes about, before its first word."""
        chunk = self._chunk(0, "", None, None)
        chunk["choices"][0]["delta"]["role"] = "assistant"
        yield {**chunk, "raggd": self.details(0)}

    def _choice(self, index: int, answer: Finished) -> Json:
        wanted = self._ask.sampling.top_logprobs is not None
        tokens = [token_view(self._tokenizer, chosen) for chosen in self._chosen[index] if wanted]
        return {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": {"content": tokens, "refusal": None} if wanted else None,
            "finish_reason": answer.reason,
        }

    def _delta(self, text: str | None) -> Json:
        return {"delta": {} if text is None else {"content": text}}


class CompletionForm(Form):
    """`/v1/completions`."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def _choice(self, index: int, answer: Finished) -> Json:
        return {
            "index": index,
            "text": answer.text,
            "logprobs": None,
            "finish_reason": answer.reason,
            "raggd": self.details(index),
        }

    def _delta(self, text: str | None) -> Json:
        return {"text": text or ""}
