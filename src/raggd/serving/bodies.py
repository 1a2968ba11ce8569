"""What this server adds to OpenAI's shapes: the field `raggd`, support sets, index, health.

Null means unset, for known and unknown fields alike: clients send back what they were given, nulls
included. What cannot be honoured is refused by its name, never ignored.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MOST_PASSAGES = 16
LONGEST_EVIDENCE = 32_768
"""Characters of all passages that a client brings along for one question."""
Served = Literal["vanilla-rag", "base", "adapted"]
"""The methods that are served; `adapted` needs a support set."""


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


def clean_text(text: str) -> str:
    """Refuse control characters other than tab and line breaks, and half surrogate pairs.

    Returns:
        The same text.

    Raises:
        ValueError: it holds one; its place is named.
    """
    for at, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r":
            raise ValueError(
                f"holds the control character U+{ord(character):04X} at position {at}: remove it"
            )
    return text


def filled_text(text: str) -> str:
    """Refuse text without a word.

    Returns:
        The same text.

    Raises:
        ValueError: it is blank, or holds a control character.
    """
    if not text.strip():
        raise ValueError("is empty: expected at least one word")
    return clean_text(text)


Text = Annotated[str, AfterValidator(clean_text)]
ShortText = Annotated[str, AfterValidator(clean_text), Field(max_length=200)]
Name = Annotated[str, AfterValidator(filled_text), Field(min_length=1, max_length=64)]


class PassageFields(Body):
    """A passage that the client brings along."""

    text: Annotated[
        str, AfterValidator(filled_text), Field(min_length=1, max_length=LONGEST_EVIDENCE)
    ]
    title: ShortText = ""
    id: ShortText = ""


def bounded_passages(passages: list[PassageFields]) -> list[PassageFields]:
    """Refuse far more evidence than any context holds: cutting it to fit would take seconds.

    Returns:
        The same passages.

    Raises:
        ValueError: they are too long.
    """
    size = sum(len(passage.text) for passage in passages)
    if size > LONGEST_EVIDENCE:
        raise ValueError(f"hold {size} characters: at most {LONGEST_EVIDENCE} are taken")
    return passages


Passages = Annotated[
    list[PassageFields], AfterValidator(bounded_passages), Field(max_length=MOST_PASSAGES)
]


class DemonstrationFields(Body):
    """An answered question; its passages are retrieved unless they are given."""

    question: Annotated[str, AfterValidator(filled_text), Field(min_length=1, max_length=8_000)]
    answer: Annotated[str, AfterValidator(filled_text), Field(min_length=1, max_length=2_000)]
    passages: Passages | None = None


Demonstrations = Annotated[list[DemonstrationFields], Field(min_length=1, max_length=256)]


class Extension(Body):
    """The field `raggd` of a request: how to answer. All of it may be left out."""

    method: Served | None = None
    support: ShortText | None = None
    """Id of a stored support set."""
    demonstrations: Demonstrations | None = None
    """A support set of this request's own."""
    passages: Passages | None = None
    """Evidence to use instead of what would be retrieved; an empty list gives none."""
    instruction: Annotated[str, AfterValidator(clean_text), Field(max_length=8_000)] | None = None
    """How to answer; in a chat the system message says it."""
    guess: bool | None = None
    """Ask the model even where no passage was found."""
    show_passages: bool | None = None
    """Whether the answer carries the passages that were used (the default)."""


class SupportRequest(Body):
    """`POST /v1/supports`: demonstrations to adapt to."""

    demonstrations: Demonstrations
    task: Name = "own"
    base: ShortText | None = None
    """Fingerprint of the base adapter that the set is meant for; another one is refused."""


# --- replies


class PassageView(BaseModel):
    """A passage that was used."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    title: str
    text: str


class Details(BaseModel):
    """The field `raggd` of an answer: how it came about."""

    method: str
    support: str | None
    """Id of the support set that the model was adapted to."""
    adapted: bool
    hits: int
    """Passages that were found; with 0 the model is not asked unless the request says `guess`."""
    passages: list[PassageView] | None
    """Evidence, best first; None when the request did not want it."""
    passages_cut: int
    """Passages that were shortened or left out to fit the context."""
    searched: list[str] | None = None
    """What was searched for where it is not the question: a follow-up made self-contained."""
    turns_cut: int = 0
    """Earlier turns that were left out to fit the context, the oldest."""
    refused: bool | None = None
    """Whether the answer is a refusal that the demonstrations show, once it is finished."""
    named: list[int] | None = None
    """Numbers, from 1, of the passages that the answer names, once it is finished."""
    valid_json: bool | None = None
    """Whether the answer is JSON, where the request wanted it."""
    timings: dict[str, float] | None = None
    """Milliseconds: prepare, adapt (0 when the update was there), queue, read, write."""
    batch: int | None = None
    """Most answers that were written together with this one, itself included."""


class DemonstrationView(BaseModel):
    """A demonstration as it is used: with its passages."""

    model_config = ConfigDict(from_attributes=True)

    question: str
    answer: str
    passages: list[PassageView]


class SupportView(BaseModel):
    """A stored support set."""

    id: str
    object: Literal["support"] = "support"
    model: str
    """The name to ask for: ``adapted/`` and the id."""
    task: str
    created: int
    base: str
    """Fingerprint of the base adapter that the update starts from."""
    demonstrations: list[DemonstrationView]
    norms: dict[str, list[float]]
    """Frobenius norm of the update's change to the weights, per projection, layer by layer."""
    norm: float
    """The same over all projections and layers."""
    adapt_ms: float | None
    """Time that the prediction took; None if it was not needed here yet."""


class SupportList(BaseModel):
    """`GET /v1/supports`."""

    object: Literal["list"] = "list"
    data: list[SupportView]


class Deleted(BaseModel):
    """`DELETE /v1/supports/{id}`."""

    id: str
    object: Literal["support.deleted"] = "support.deleted"
    deleted: Literal[True] = True


class IndexView(BaseModel):
    """The index that is searched now."""

    object: Literal["index"] = "index"
    corpus: Literal["embedded", "own"]
    passages: int
    fingerprint: str
    changed: bool
    """Whether the documents had changed, so that another index is searched from now on."""
    seconds: float
    """What looking and indexing took."""


class Health(BaseModel):
    """`GET /health`."""

    status: Literal["ok", "stopping"]
    backbone: str
    base: str
    corpus: Literal["embedded", "own"]
    passages: int
    version: str
    waiting: int
    running: int
    supports: int
