"""OpenAI's two kinds of requests, chats and prompts: their shapes, read and written."""

from __future__ import annotations

from itertools import dropwhile, groupby
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from raggd.data.prompts import Exchange
from raggd.serving.bodies import (
    Body,
    Count,
    Details,
    One,
    ResponseFormat,
    ShortText,
    Text,
    Usage,
    Writing,
)
from raggd.serving.errors import ApiError
from raggd.serving.request import Request
from raggd.serving.row import Logprobs, Reason, Row, TextPiece
from raggd.serving.service import Service

Nothing = Annotated[list[Any], Field(max_length=0)]
NO_HIT = "No passage shares a word with the question. (raggd.guess asks the model all the same.)"


class TextPart(Body):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: Text
    cache_control: dict[str, Any] | None = None


class RefusalPart(Body):
    """A part of an assistant's message that refuses."""

    type: Literal["refusal"]
    refusal: Text


class Message(Body):
    """A turn: the last one of the user is the question, the others are shown before it.

    The fields after `name` are what an assistant's turn is sent back with.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart | RefusalPart] | None = None
    name: ShortText | None = None
    refusal: Text | None = None
    annotations: list[Any] | None = None
    tool_calls: Nothing | None = None
    reasoning_content: str | None = None
    parsed: Any = None  # what the client made of the content

    @property
    def text(self) -> str:
        """All its text."""
        if isinstance(self.content, list):
            return "\n".join(p.text if isinstance(p, TextPart) else p.refusal for p in self.content)
        return self.content or self.refusal or ""


class ChatRequest(Writing):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Nothing | None = None
    functions: Nothing | None = None
    tool_choice: Literal["none", "auto"] | None = None
    function_call: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    reasoning_effort: Literal["none", "minimal"] | None = None
    """A block of thinking is closed before the answer."""
    verbosity: Literal["medium"] | None = None


class CompletionRequest(Writing):
    """`POST /v1/completions`: every prompt is a question."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=32)]
    best_of: One | None = None
    echo: Literal[False] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    logprobs: None = None


# --- replies


class ChatMessage(BaseModel):
    """The answer, or why there is none: no passage was found."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: str | None = None


class ChatChoice(BaseModel):
    """The only choice."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Reason


class CompletionChoice(BaseModel):
    """The answer to one prompt, with how it came about."""

    index: int
    text: str
    logprobs: None
    finish_reason: Reason | None
    raggd: Details


class _Reply(BaseModel):
    id: str
    created: int
    model: str


class ChatCompletion(_Reply):
    """An answer in OpenAI's form, with the field `raggd`."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    raggd: Details


class Completion(_Reply):
    """Answers in OpenAI's form."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage
    raggd: None = None  # every choice has its own


# --- requests, read and answered


def turns_of(messages: list[Message]) -> tuple[str, str, tuple[Exchange, ...]]:
    """Return what system and developer say, the user's last turn, and earlier ones with answers."""
    spoken = (message for message in messages if message.role in {"user", "assistant"})
    asked = dropwhile(lambda message: message.role != "user", spoken)
    turns = [
        (role, "\n".join(message.text for message in run))
        for role, run in groupby(asked, key=lambda message: message.role)
    ]
    if not turns or turns[-1][0] != "user":
        raise ApiError("expected a message with the role 'user' last: the question.", "messages")
    said = "\n".join(m.text for m in messages if m.role in {"system", "developer"})
    texts = [text for _, text in turns]
    return said, texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True))


class Chat(Request):
    """`/v1/chat/completions`."""

    prefix, part = "chatcmpl", "chat.completion.chunk"
    opens = True

    def __init__(self, service: Service, body: ChatRequest) -> None:
        if body.top_logprobs and not body.logprobs:
            raise ApiError("top_logprobs needs logprobs to be true.", "top_logprobs")
        most, newer = body.max_tokens, body.max_completion_tokens
        if None not in {most, newer} and most != newer:
            raise ApiError("max_tokens and max_completion_tokens differ: leave one out.")
        said, question, earlier = turns_of(body.messages)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        super().__init__(service, body, [question], "messages", newer or most, logprobs)
        self.earlier = earlier
        self.instruction = "\n".join(filter(None, (said, self.instruction)))
        if body.response_format and body.response_format.type != "text":
            self.format = body.response_format

    def _refusal(self, row: Row) -> str | None:
        return NO_HIT if row.unfounded and not row.adapted.refusals else None

    def _whole(self) -> ChatCompletion:
        (row,) = self.rows
        assert row.reason
        told = row.probabilities
        choice = ChatChoice(
            index=0,
            message=ChatMessage(content=row.text, refusal=self._refusal(row)),
            logprobs=Logprobs(content=told.told) if told else None,
            finish_reason=row.reason,
        )
        more = {"usage": self._tokens(), "raggd": self._details(row)}
        return ChatCompletion(**self.head, choices=[choice], **more)

    def _choice(self, row: Row, piece: TextPiece) -> dict[str, Any]:
        delta = {"content": piece.text}
        if piece == TextPiece(""):
            delta["role"] = "assistant"
        elif piece.reason:
            refusal = self._refusal(row)
            delta = {"refusal": refusal} if refusal else {}
        told = piece.logprobs.model_dump(exclude_unset=True) if piece.logprobs else None
        return {"index": 0, "delta": delta, "logprobs": told, "finish_reason": piece.reason}


class Prompts(Request):
    """`/v1/completions`."""

    prefix, part = "cmpl", "text_completion"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        super().__init__(service, body, prompts, "prompt", body.max_tokens)

    def _whole(self) -> Completion:
        choices = []
        for row in self.rows:
            told = self._choice(row, TextPiece(row.text, reason=row.reason))
            choices.append(CompletionChoice(**told, raggd=self._details(row)))
        return Completion(**self.head, choices=choices, usage=self._tokens())

    def _choice(self, row: Row, piece: TextPiece) -> dict[str, Any]:
        end = {"logprobs": None, "finish_reason": piece.reason}
        return {"index": row.index, "text": piece.text, **end}
