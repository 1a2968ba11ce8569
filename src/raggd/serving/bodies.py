"""What a request may hold, whatever it asks for, and how its parts are checked.

Null means unset, for known and unknown fields alike: clients send back what they were given, nulls
included. What cannot be honoured is refused by its name, never ignored.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from raggd.data.shown import parsed_json
from raggd.data.text import normal_text
from raggd.records import Passage, unknown_name
from raggd.serving.errors import ApiError

MOST_PASSAGES = 16
LONGEST_EVIDENCE = 32_768  # characters of all passages that a client brings along for one question
AUTO = "raggd"  # adapts when there is something to adapt to, and is the base adapter otherwise
MODELS = {
    AUTO: "adapted with a support set or demonstrations, else base",
    "vanilla-rag": "the bare backbone with the passages in its prompt",
    "base": "the base adapter (the shared interface), not adapted",
    "adapted": "adapted in one forward pass to the support set or demonstrations of the request",
}


class Body(BaseModel):
    """A part of a request: nothing is converted, unknown keys are refused unless they are null."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"type": "null"}},
    )

    @model_validator(mode="before")
    @classmethod
    def _without_unknown_nulls(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: v for k, v in value.items() if v is not None or k in cls.model_fields}


def _clean(text: str) -> str:
    for at, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r":
            raise ValueError(
                f"holds the control character U+{ord(character):04X} at position {at}: remove it"
            )
    return normal_text(text)


def filled(text: str) -> str:
    """Return a text in the normal form; one of white space alone is refused."""
    text = _clean(text)
    if not text.strip():
        raise ValueError("is empty: expected at least one word")
    return text


Text = Annotated[str, AfterValidator(_clean)]
"""A text in the normal form, without control characters and halves of surrogate pairs."""
ShortText = Annotated[str, Field(max_length=200), AfterValidator(_clean)]


class PassageFields(Body):
    """A passage that the client brings along."""

    text: Annotated[str, Field(min_length=1, max_length=LONGEST_EVIDENCE), AfterValidator(filled)]
    title: ShortText | None = None
    id: ShortText | None = None
    source: ShortText | None = None


def _bounded(passages: list[PassageFields]) -> list[PassageFields]:
    # far more than any context holds would take seconds to cut
    size = sum(len(passage.text) for passage in passages)
    if size > LONGEST_EVIDENCE:
        raise ValueError(f"hold {size} characters: at most {LONGEST_EVIDENCE} are taken")
    return passages


def given_passages(fields: Iterable[PassageFields]) -> tuple[Passage, ...]:
    """Return passages of a request; those without an id are numbered."""
    return tuple(
        Passage(p.id or f"given-{number}", p.text, p.title or "", p.source or "")
        for number, p in enumerate(fields, start=1)
    )


Passages = Annotated[list[PassageFields], Field(max_length=MOST_PASSAGES), AfterValidator(_bounded)]


class QuestionFields(Body):
    """An answered question."""

    question: Annotated[str, Field(min_length=1, max_length=8_000), AfterValidator(filled)]
    answer: Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(filled)]


class DemonstrationFields(QuestionFields):
    """An answered question to be shown; its passages are retrieved unless they are given."""

    passages: Passages | None = None
    id: ShortText | None = None


Demonstrations = Annotated[list[DemonstrationFields], Field(min_length=1, max_length=16)]


class Extension(Body):
    """The field `raggd` of a request: how to answer. All of it may be left out."""

    method: Literal["vanilla-rag", "base", "adapted"] | None = None
    # id of a stored support set
    support: Annotated[ShortText, Field(min_length=1)] | None = None
    demonstrations: Demonstrations | None = None  # a support set of this request's own
    # evidence to use instead of what would be retrieved; an empty list gives none
    passages: Passages | None = None
    # how to answer; in a chat the system message says it
    instruction: Annotated[str, Field(max_length=8_000), AfterValidator(_clean)] | None = None
    guess: bool | None = None  # ask the model even where no passage was found
    show_passages: bool | None = None  # whether the answer carries those that were used (default)

    def method_of(self, model: str) -> tuple[str, str | None]:
        """Return method and id of the stored set that a request for a model names, or refuse it."""
        name, slash, tail = model.partition("/")
        if name not in MODELS or (slash and (name != "adapted" or not tail)):
            told = str(unknown_name("model", model, [*MODELS, "adapted/<support id>"]))
            raise ApiError(told, "model", "model_not_found", 404)
        given = {tail, self.support, "demonstrations" if self.demonstrations else None}
        sets = sorted(filter(None, given))
        adapts = bool(sets)
        method = (self.method or ("adapted" if adapts else "base")) if name == AUTO else name
        problem, code = "", "invalid_value"
        either = f"leave it out, or use model '{AUTO}'."
        if len(sets) > 1:
            problem = f"several support sets were given ({' and '.join(sets)}): leave one out."
        elif self.method not in {None, method}:
            told = f"model '{model}' answers by {method}, but raggd.method is '{self.method}'"
            problem = f"{told}: {either}"
        elif method != "adapted" and adapts:
            problem = f"{method} does not adapt, but a support set was given: {either}"
        elif method == "adapted" and not adapts:
            code = "support_missing"
            problem = (
                "adapted adapts to answered questions: name a stored set (model "
                "'adapted/<support id>' or raggd.support) or give raggd.demonstrations."
            )
        if problem:
            raise ApiError(problem, "raggd", code)
        return method, tail or self.support


# --- JSON, where it is wanted


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
        named: dict[str, Schema | bool] = {"": True, "#": self}
        named |= {f"#/$defs/{name}": part for name, part in self.named.items()}

        def inside(value: Any, part: Schema | bool) -> bool:
            if isinstance(part, bool):
                return part
            key = id(value), id(part)
            if key not in known:  # looked at once: schemas that refer to each other never end
                known[key] = False
                meant = inside(value, named.get(part.ref, False))
                known[key] = meant and part._holds(value, inside)
            return known[key]

        return inside(value, self)

    def _holds(self, value: Any, inside: Callable[[Any, Schema | bool], bool]) -> bool:
        # whether JSON is as this part says; `inside` tells it of what lies in it
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


_KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "null": (type(None),),
    "number": (int, float),
    "integer": (int,),
}


def _is_a(value: Any, kind: str) -> bool:
    if isinstance(value, bool):  # True is no 1
        return kind == "boolean"
    whole = isinstance(value, float) and value.is_integer()
    return isinstance(value, _KINDS.get(kind, ())) or (kind == "integer" and whole)


def _is_same(value: Any, other: Any) -> bool:
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


# --- how an answer is written

Stop = Annotated[str, Field(min_length=1, max_length=100)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
Count = Annotated[int, Field(ge=1)]


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Writing(Body):
    """What chat and completions have in common: how the answer is written.

    Parameters of OpenAI that this server has no use for are either taken and ignored (they change
    no answer) or only taken at their neutral value.
    """

    model: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_clean)]
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


# --- what is told of answers


class Usage(BaseModel):
    """Tokens; the end token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Details(BaseModel):
    """The field `raggd` of an answer: how it came about."""

    method: str
    support: str | None  # id of the set that the model was adapted to
    adapted: bool
    hits: int  # passages found; with 0 the model is asked only where the request says `guess`
    passages: tuple[Passage, ...] | None  # best first; None when the request did not want them
    passages_cut: int  # shortened or left out to fit the context
    searched: list[str] | None = None  # instead of a follow-up: that made self-contained
    remarks: list[str] | None = None  # what is odd about the demonstrations that it carried
    turns_cut: int = 0  # earlier turns that were left out to fit the context, the oldest
    # once the answer is finished:
    refused: bool | None = None  # whether it is a refusal that the demonstrations show
    named: list[int] | None = None  # numbers, from 1, of the passages that it names
    valid_json: bool | None = None  # whether it is JSON as the request wanted it
    # milliseconds: prepare, adapt (0 when the update was there), queue, read, write
    timings: dict[str, float] | None = None
    batch: int | None = None  # most answers written together with this one, itself included
