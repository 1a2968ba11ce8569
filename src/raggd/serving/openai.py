"""OpenAI's shapes: the bodies of requests and replies, as they are read and as they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from raggd.data.shown import parsed_json
from raggd.records import Demonstration
from raggd.serving.bodies import Body, Details, Extension, ModelName, ShortText, Text

Stop = Annotated[str, Field(min_length=1, max_length=100)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
Count = Annotated[int, Field(ge=1)]
Nothing = Annotated[list[Any], Field(max_length=0)]


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(Body):
    """The object that an answer is to be."""

    name: ShortText | None = None
    description: Text | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """Text, or JSON where the demonstrations show it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def shown_by(self, demonstrations: Sequence[Demonstration]) -> bool:
        """Return whether every demonstration answers by an object as it is wanted."""
        schema = (self.json_schema.schema_ if self.json_schema else None) or {}
        keys = {str(key) for key in schema.get("required") or schema.get("properties") or ()}
        values = [parsed_json(d.answer) for d in demonstrations]
        return bool(values) and all(isinstance(v, dict) and keys <= v.keys() for v in values)


class Writing(Body):
    """What chat and completions have in common: how the answer is written.

    Parameters of OpenAI that this server has no use for are either taken and ignored (they change
    no answer) or only taken at their neutral value.
    """

    model: ModelName
    max_tokens: Count | None = None  # at most the context (`backbone.context_tokens`)
    # 0 (the default here) takes the likeliest token
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    ignore_eos: bool | None = None  # write exactly `max_tokens`, as vLLM does; for measurements
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    top_k: Annotated[int, Field(ge=-1, le=0)] | None = None
    min_p: Zero | None = None
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] | None = None
    raggd: Extension | None = None


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


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens; the end token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """A token that might have been written. Bytes are its own, even of half a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A written token, cut to what the answer shows: the bytes of all, joined, are the answer."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The tokens that the answer's text is made of."""

    content: list[TokenLogprob]
    refusal: None = None


Reason = Literal["stop", "length"]


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


class Delta(BaseModel):
    """More of the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    refusal: str | None = None


class ChunkChoice(BaseModel):
    """More of the only choice."""

    index: int
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: Reason | None


class CompletionChoice(BaseModel):
    """The answer to one prompt, or more of it, with how it came about."""

    index: int
    text: str
    logprobs: None
    finish_reason: Reason | None
    raggd: Details | None = None


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


class ChatChunk(_Reply):
    """A part of an answer in a stream; the field `raggd` comes first and last."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]
    usage: Usage | None = None
    raggd: Details | None = None


class Completion(_Reply):
    """Answers in OpenAI's form, or a part of one in a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = None
    raggd: Details | None = None


class ModelView(BaseModel):
    """A name to ask for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "raggd"
    description: str
