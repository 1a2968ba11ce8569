"""What this server adds to OpenAI's shapes: its models, the field `raggd`, support sets, health.

Null means unset, for known and unknown fields alike: clients send back what they were given, nulls
included. What cannot be honoured is refused by its name, never ignored.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from raggd.data.text import normal_text
from raggd.records import Demonstration, Passage, unknown_name
from raggd.serving.errors import ApiError, BadRequestError

MOST_PASSAGES = 16
LONGEST_EVIDENCE = 32_768
"""Characters of all passages that a client brings along for one question."""
AUTO = "raggd"
"""The model that adapts when there is something to adapt to, and is the base adapter otherwise."""
MODELS = {
    AUTO: "adapted with a support set or demonstrations, else base",
    "vanilla-rag": "the bare backbone with the passages in its prompt",
    "base": "the base adapter (the shared interface), not adapted",
    "adapted": "adapted in one forward pass to the support set or demonstrations of the request",
}
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
    """Return a text in the normal form: no control characters, nor half surrogate pairs.

    Raises:
        ValueError: it holds one; its place is named.
    """
    for at, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r":
            raise ValueError(
                f"holds the control character U+{ord(character):04X} at position {at}: remove it"
            )
    return normal_text(text)


def filled_text(text: str) -> str:
    """Return a text that holds a word.

    Raises:
        ValueError: it is blank, or holds a control character.
    """
    text = clean_text(text)
    if not text.strip():
        raise ValueError("is empty: expected at least one word")
    return text


Text = Annotated[str, AfterValidator(clean_text)]
ShortText = Annotated[str, Field(max_length=200), AfterValidator(clean_text)]
Name = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(filled_text)]


class PassageFields(Body):
    """A passage that the client brings along."""

    text: Annotated[
        str, Field(min_length=1, max_length=LONGEST_EVIDENCE), AfterValidator(filled_text)
    ]
    title: ShortText = ""
    id: ShortText = ""
    source: ShortText = ""


def bounded_passages(passages: list[PassageFields]) -> list[PassageFields]:
    """Return passages unless they are far more than any context holds: cutting would take seconds.

    Raises:
        ValueError: they are too long.
    """
    size = sum(len(passage.text) for passage in passages)
    if size > LONGEST_EVIDENCE:
        raise ValueError(f"hold {size} characters: at most {LONGEST_EVIDENCE} are taken")
    return passages


def given_passages(fields: Iterable[PassageFields]) -> tuple[Passage, ...]:
    """Return passages of a request; those without an id are numbered."""
    return tuple(
        Passage(p.id or f"given-{number}", p.text, p.title, p.source)
        for number, p in enumerate(fields, start=1)
    )


Passages = Annotated[
    list[PassageFields], Field(max_length=MOST_PASSAGES), AfterValidator(bounded_passages)
]


class DemonstrationFields(Body):
    """An answered question; its passages are retrieved unless they are given."""

    question: Annotated[str, Field(min_length=1, max_length=8_000), AfterValidator(filled_text)]
    answer: Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(filled_text)]
    passages: Passages | None = None
    id: ShortText = ""


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
    instruction: Annotated[str, Field(max_length=8_000), AfterValidator(clean_text)] | None = None
    """How to answer; in a chat the system message says it."""
    guess: bool | None = None
    """Ask the model even where no passage was found."""
    show_passages: bool | None = None
    """Whether the answer carries the passages that were used (the default)."""

    def method_of(self, model: str) -> tuple[str, str | None]:
        """Return the method, and the id of the stored set, that a request for a model names.

        Raises:
            ApiError: the model is unknown.
            BadRequestError: fields contradict each other.
        """
        name, slash, tail = model.partition("/")
        if name not in MODELS or (slash and (name != "adapted" or not tail)):
            known = [*MODELS, "adapted/<support id>"]
            problem = str(unknown_name("model", model, known))
            raise ApiError(404, "model_not_found", problem, param="model")
        support = tail or self.support
        adapts = bool(support or self.demonstrations)
        method = (self.method or ("adapted" if adapts else "base")) if name == AUTO else name
        problem = ""
        either = f"leave it out, or use model '{AUTO}'."
        if tail and self.support not in {None, tail}:
            problem = (
                f"model '{model}' and raggd.support '{self.support}' name different sets: leave "
                "one out."
            )
        elif support and self.demonstrations:
            problem = f"support set '{support}' and demonstrations were both given: leave one out."
        elif self.method not in {None, method}:
            problem = (
                f"model '{model}' answers by {method}, but raggd.method is '{self.method}': "
                f"{either}"
            )
        elif method != "adapted" and adapts:
            problem = f"{method} does not adapt, but a support set was given: {either}"
        if problem:
            raise BadRequestError(problem, "raggd")
        if method == "adapted" and not adapts:
            raise BadRequestError(
                "adapted adapts to answered questions: name a stored set (model "
                "'adapted/<support id>' or raggd.support) or give raggd.demonstrations.",
                "raggd",
                "support_missing",
            )
        return method, support


class SupportRequest(Body):
    """`POST /v1/supports`: demonstrations to adapt to."""

    demonstrations: Demonstrations
    task: Name = "own"
    base: ShortText | None = None
    """Fingerprint of the base adapter that the set is meant for; another one is refused."""


class EvaluationRequest(Body):
    """`POST /v1/evaluations`: does adapting to a stored set help?"""

    support: ShortText
    questions: Demonstrations | None = None
    """Answered questions to ask; without any, each of the set's own, adapted to the others."""


# --- replies


class Details(BaseModel):
    """The field `raggd` of an answer: how it came about."""

    method: str
    support: str | None
    """Id of the support set that the model was adapted to."""
    adapted: bool
    hits: int
    """Passages that were found; with 0 the model is not asked unless the request says `guess`."""
    passages: tuple[Passage, ...] | None
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
    demonstrations: tuple[Demonstration, ...]
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


class TableView(BaseModel):
    """A table of an evaluation: its first column names the rows."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


class EvaluationView(BaseModel):
    """Methods scored on one's own questions: how far, and what came out."""

    id: str
    object: Literal["evaluation"] = "evaluation"
    status: Literal["running", "done", "failed", "cancelled"] = "running"
    support: str
    """Id of the support set that is adapted to."""
    questions: int
    """How many are asked, each of them by every method."""
    doing: str = "finding passages"
    done: int = 0
    total: int = 0
    """Answers to be written, and those that are."""
    tables: list[TableView] = []
    advice: str = ""
    """Whether to adapt, and with what; or why it cannot be told."""


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
