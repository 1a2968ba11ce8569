"""What this server adds to OpenAI's shapes: its models, the field `raggd`, support sets, health.

Null means unset, for known and unknown fields alike: clients send back what they were given, nulls
included. What cannot be honoured is refused by its name, never ignored.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from raggd.data.documents import Skipped
from raggd.data.text import normal_text
from raggd.records import Demonstration, Passage, unknown_name
from raggd.serving.errors import ApiError, BadRequestError

MOST_PASSAGES = 16
LONGEST_EVIDENCE = 32_768  # characters of all passages that a client brings along for one question
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


def _clean(text: str) -> str:
    for at, character in enumerate(text):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in "\t\n\r":
            raise ValueError(
                f"holds the control character U+{ord(character):04X} at position {at}: remove it"
            )
    return normal_text(text)


def _filled(text: str) -> str:
    text = _clean(text)
    if not text.strip():
        raise ValueError("is empty: expected at least one word")
    return text


Text = Annotated[str, AfterValidator(_clean)]
"""A text in the normal form, without control characters and halves of surrogate pairs."""
ShortText = Annotated[str, Field(max_length=200), AfterValidator(_clean)]
ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_clean)]


class PassageFields(Body):
    """A passage that the client brings along."""

    text: Annotated[str, Field(min_length=1, max_length=LONGEST_EVIDENCE), AfterValidator(_filled)]
    title: ShortText = ""
    id: ShortText = ""
    source: ShortText = ""


def _bounded(passages: list[PassageFields]) -> list[PassageFields]:
    # far more than any context holds would take seconds to cut
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


Passages = Annotated[list[PassageFields], Field(max_length=MOST_PASSAGES), AfterValidator(_bounded)]


class QuestionFields(Body):
    """An answered question."""

    question: Annotated[str, Field(min_length=1, max_length=8_000), AfterValidator(_filled)]
    answer: Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(_filled)]


class DemonstrationFields(QuestionFields):
    """An answered question to be shown; its passages are retrieved unless they are given."""

    passages: Passages | None = None
    id: ShortText = ""


Demonstrations = Annotated[list[DemonstrationFields], Field(min_length=1, max_length=16)]
Questions = Annotated[list[QuestionFields], Field(min_length=1, max_length=256)]


class Extension(Body):
    """The field `raggd` of a request: how to answer. All of it may be left out."""

    method: Served | None = None
    support: ShortText | None = None  # id of a stored support set
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
    task: Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_filled)] = "own"
    # fingerprint of the base adapter that the set is meant for; another one is refused
    base: ShortText | None = None


class EvaluationRequest(Body):
    """`POST /v1/evaluations`: does adapting to a stored set help?"""

    support: ShortText
    # to ask, if they are not among the set's; without any, each of these, adapted to the others
    questions: Questions | None = None


# --- replies

Item = TypeVar("Item")


class ListOf(BaseModel, Generic[Item]):
    """All of one kind."""

    object: Literal["list"] = "list"
    data: list[Item]


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


class SupportView(BaseModel):
    """A stored support set."""

    id: str
    object: Literal["support"] = "support"
    model: str  # the name to ask for: ``adapted/`` and the id
    task: str
    created: int
    base: str  # fingerprint of the base adapter that the update starts from
    demonstrations: tuple[Demonstration, ...]
    # Frobenius norm of the update's change to the weights: per projection, layer by layer; of all
    norms: dict[str, list[float]]
    norm: float
    adapt_ms: float | None  # None if adapting was not needed here yet
    remarks: list[str] | None = None  # what is odd about them; None in a list


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
    support: str  # id of the set that is adapted to
    questions: int  # how many are asked, each of them by every method
    doing: str = "finding passages"
    done: int = 0  # answers that are written, of
    total: int = 0
    tables: list[TableView] = []
    advice: str = ""  # whether to adapt, and with what; or why it cannot be told


class IndexView(BaseModel):
    """The index that is searched now."""

    object: Literal["index"] = "index"
    corpus: Literal["embedded", "own"]
    passages: int
    fingerprint: str
    changed: bool  # whether another index is searched from now on, since the documents changed
    seconds: float  # that looking and indexing took
    skipped: tuple[Skipped, ...]


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
