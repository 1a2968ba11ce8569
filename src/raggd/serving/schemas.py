"""The bodies of requests and answers, as the server's own schema (`/openapi.json`) shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from raggd.serving.fields import Body, Demonstrations, Name, ShortText, Text, Writing


class TextPart(Body):
    """A part of a message; only text can be read."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A turn. The last one of the user is the question; the others are not shown to the model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: ShortText | None = None


class ResponseFormat(Body):
    """Answers are text."""

    type: Literal["text"]


class ChatRequest(Writing):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(Writing):
    """`POST /v1/completions`: every prompt is a question."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=32)]
    best_of: Annotated[int, Field(ge=1, le=1)] | None = None
    echo: Literal[False] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    logprobs: None = None


class SupportRequest(Body):
    """`POST /v1/supports`: demonstrations to adapt to."""

    demonstrations: Demonstrations
    task: Name = "own"
    base: ShortText | None = None
    """Fingerprint of the base adapter that the set is meant for; another one is refused."""


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class PassageView(BaseModel):
    """A passage that was used."""

    id: str
    title: str
    text: str


class Details(BaseModel):
    """The field `raggd` of an answer: how it came about."""

    method: str
    support: str | None
    """Id of the support set that the model was adapted to."""
    adapted: bool
    passages: list[PassageView] | None
    """Evidence, best first; None when the request did not want it."""
    passages_cut: int
    """Passages that were shortened or left out to fit the context."""
    timings: dict[str, float] | None = None
    """Milliseconds: prepare, adapt (0 when the update was there), queue, read, write."""
    batch: int | None = None
    """Most answers that were written together with this one, itself included."""


class Usage(BaseModel):
    """Tokens; the end token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class TokenLogprob(BaseModel):
    """One written token."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[dict[str, Any]]


class Logprobs(BaseModel):
    """The written tokens, without the end token."""

    content: list[TokenLogprob]
    refusal: None = None


class ChatChoice(BaseModel):
    """The only choice."""

    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """An answer in OpenAI's form, with the field `raggd`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    raggd: Details


class CompletionChoice(BaseModel):
    """The answer to one prompt, with how it came about."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]
    raggd: Details


class Completion(BaseModel):
    """Answers in OpenAI's form."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelView(BaseModel):
    """A name to ask for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "raggd"
    description: str


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class DemonstrationView(BaseModel):
    """A demonstration as it is used: with its passages."""

    question: str
    answer: str
    passages: list[PassageView]


class SupportView(BaseModel):
    """A stored support set."""

    id: str
    object: Literal["support"] = "support"
    model: str
    """The name to ask for: ``rag-gd/`` and the id."""
    task: str
    created: int
    base: str
    """Fingerprint of the base adapter that the update starts from."""
    demonstrations: list[DemonstrationView]
    norms: dict[str, list[float]]
    """Frobenius norm of the update's change to the weights, per projection, layer by layer."""
    norm: float
    """The same over all projections and layers."""
    adapt_ms: float
    """Time that the prediction took."""


class SupportList(BaseModel):
    """`GET /v1/supports`."""

    object: Literal["list"] = "list"
    data: list[SupportView]


class Deleted(BaseModel):
    """`DELETE /v1/supports/{id}`."""

    id: str
    object: Literal["support.deleted"] = "support.deleted"
    deleted: Literal[True] = True


class Health(BaseModel):
    """`GET /health`."""

    status: Literal["ok", "stopping"]
    backbone: str
    base: str
    corpus: Literal["embedded", "own"]
    version: str
    waiting: int
    running: int
    supports: int
