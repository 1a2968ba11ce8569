"""OpenAI's shapes: the bodies of requests and replies, as they are read and as they are sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

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


class Schema(BaseModel):
    """The parts of a JSON Schema that JSON is held to; others are taken for remarks."""

    type: str | list[str] = []
    enum: list[Any] | None = None
    const: Any = None
    properties: dict[str, Schema | bool] = {}
    required: list[str] = []
    others: Schema | bool = Field(default=True, alias="additionalProperties")
    items: Schema | bool = True
    any_of: list[Schema | bool] = Field(default=[], alias="anyOf")
    named: dict[str, Schema | bool] = Field(default={}, alias="$defs")
    ref: str = Field(default="", alias="$ref", pattern=r"^#(/\$defs/.+)?$")

    def fits(self, value: Any) -> bool:
        """Return whether JSON is as this whole schema says."""
        known: dict[tuple[int, int], bool] = {}

        def inside(value: Any, part: Schema | bool) -> bool:
            if isinstance(part, bool):
                return part
            key = id(value), id(part)
            if key not in known:  # looked at once: schemas that refer to each other never end
                known[key] = False
                known[key] = inside(value, self._named(part.ref)) and part.holds(value, inside)
            return known[key]

        return inside(value, self)

    def _named(self, ref: str) -> Schema | bool:
        if ref in {"", "#"}:
            return self if ref else True
        return self.named.get(ref.removeprefix("#/$defs/"), False)

    def holds(self, value: Any, inside: Callable[[Any, Schema | bool], bool]) -> bool:
        """Return whether JSON is as this part says; `inside` tells it of what lies in it."""
        kinds = [self.type] if isinstance(self.type, str) else self.type
        inner: list[tuple[Any, Schema | bool]] = []
        if isinstance(value, dict):
            inner += [(v, self.properties.get(key, self.others)) for key, v in value.items()]
        elif isinstance(value, list):
            inner += [(each, self.items) for each in value]
        return (
            (not kinds or any(_is_a(value, kind) for kind in kinds))
            and (self.enum is None or any(_is_same(value, one) for one in self.enum))
            and ("const" not in self.model_fields_set or _is_same(value, self.const))
            and (not isinstance(value, dict) or value.keys() >= set(self.required))
            and (not self.any_of or any(inside(value, one) for one in self.any_of))
            and all(inside(each, part) for each, part in inner)
        )


_KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def _is_a(value: Any, kind: str) -> bool:
    if kind in _KINDS:
        return isinstance(value, _KINDS[kind])
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = isinstance(value, int) or (number and value.is_integer())
    return number and (kind == "number" or (kind == "integer" and whole))


def _is_same(value: Any, other: Any) -> bool:
    # True is no 1
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


class JsonSchema(Body):
    """The object that an answer is to be."""

    name: ShortText | None = None
    description: Text | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """Text, or JSON where the demonstrations show it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("the type 'json_schema', and no other, takes 'json_schema'")
        return self

    def fits(self, answer: str) -> bool:
        """Return whether an answer is an object as it is wanted."""
        value, wanted = parsed_json(answer), self.json_schema and self.json_schema.schema_
        if not isinstance(value, dict) or not wanted:
            return isinstance(value, dict)
        try:
            keyed = bool(wanted.required) or wanted.properties.keys() <= value.keys()
            return keyed and wanted.fits(value)
        except RecursionError:  # nested too deep
            return False

    def shown_by(self, demonstrations: Sequence[Demonstration]) -> bool:
        """Return whether every demonstration answers as it is wanted."""
        return bool(demonstrations) and all(self.fits(d.answer) for d in demonstrations)


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
