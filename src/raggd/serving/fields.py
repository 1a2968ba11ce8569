"""What requests are made of: text that is fit to read, passages, demonstrations, the extension."""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_PASSAGES = 16
LONGEST_EVIDENCE = 32_768
"""Characters of all passages that a client brings along for one question."""
Method = Literal["vanilla-rag", "base", "rag-gd"]
"""The methods that are served; `rag-gd` needs a support set."""


class Body(BaseModel):
    """A part of a request: nothing is converted, unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def clean_text(text: str) -> str:
    """Refuse control characters other than tab and line breaks, and half surrogate pairs.

    Args:
        text: of a request.

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

    Args:
        text: of a request.

    Returns:
        The same text.

    Raises:
        ValueError: it is blank, or holds a control character.
    """
    if not text.strip():
        raise ValueError("is empty: expected at least one word")
    return clean_text(text)


Text = Annotated[str, AfterValidator(clean_text)]
Filled = Annotated[str, AfterValidator(filled_text), Field(min_length=1)]
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

    Args:
        passages: of a request.

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

    method: Method | None = None
    support: ShortText | None = None
    """Id of a stored support set."""
    demonstrations: Demonstrations | None = None
    """A support set of this request's own."""
    passages: Passages | None = None
    """Evidence to use instead of what would be retrieved; an empty list gives none."""
    show_passages: bool = True
    """Whether the answer carries the passages that were used."""


class StreamOptions(Body):
    """OpenAI's options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


Stop = Annotated[str, Field(min_length=1, max_length=100)]
Zero = Annotated[float, Field(ge=0, le=0)]


class Writing(Body):
    """What chat and completions have in common: how the answer is written.

    Parameters of OpenAI that this server has no use for are either taken and ignored (they change
    no answer) or only taken at their neutral value.
    """

    model: Annotated[str, AfterValidator(clean_text), Field(min_length=1, max_length=200)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """0 (the default here) takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    ignore_eos: bool | None = None
    """Write exactly `max_tokens` tokens, as vLLM does with this field; for measurements."""
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    raggd: Extension | None = None
