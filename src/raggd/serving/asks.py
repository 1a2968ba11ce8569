"""From the body of a request to what it asks for: pure, and the same for chat and completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.records import Passage, unknown_name
from raggd.serving.errors import ApiError, BadRequestError
from raggd.serving.fields import DemonstrationFields, Extension, PassageFields, Writing
from raggd.serving.sampling import Sampling
from raggd.serving.schemas import ChatRequest, CompletionRequest, Message
from raggd.settings import Settings

AUTO = "raggd"
"""The model that adapts when there is something to adapt to, and is the base adapter otherwise."""
MODELS = {
    AUTO: "rag-gd with a support set or demonstrations, else base",
    "vanilla-rag": "the bare backbone with the passages in its prompt",
    "base": "the base adapter (the shared interface), not adapted",
    "rag-gd": "adapted in one forward pass to the support set or demonstrations of the request",
}


@dataclass(frozen=True, slots=True)
class Ask:
    """Questions, what answers them, and how the answers are written.

    Attributes:
        model: the name that was asked for, to be repeated in the answer.
        questions: at least one.
        method: of `Method`.
        support: id of a stored support set, for ``rag-gd``.
        demonstrations: or these; one of both for ``rag-gd``, none otherwise.
        passages: given evidence; None retrieves.
        show_passages: whether the answer carries them.
        sampling: how tokens are chosen.
        max_tokens: of each answer.
        stops: strings before which an answer ends.
        ignore_end: write exactly `max_tokens`.
    """

    model: str
    questions: tuple[str, ...]
    method: str
    support: str | None
    demonstrations: tuple[DemonstrationFields, ...]
    passages: tuple[Passage, ...] | None
    show_passages: bool
    sampling: Sampling
    max_tokens: int
    stops: tuple[str, ...]
    ignore_end: bool


def given_passages(fields: Sequence[PassageFields]) -> tuple[Passage, ...]:
    """Return passages of a request; those without an id are numbered."""
    return tuple(
        Passage(p.id or f"given-{number}", p.text, p.title)
        for number, p in enumerate(fields, start=1)
    )


def choose_method(model: str, wanted: Extension) -> tuple[str, str | None]:
    """Settle the method and the stored support set that a request names.

    Args:
        model: one of `MODELS`, or ``rag-gd/<support id>``.
        wanted: the extension.

    Returns:
        The method, and the id of the support set, if any.

    Raises:
        ApiError: the model is unknown.
        BadRequestError: fields contradict each other.
    """
    name, slash, tail = model.partition("/")
    if name not in MODELS or (slash and (name != "rag-gd" or not tail)):
        known = [*MODELS, "rag-gd/<support id>"]
        raise ApiError(
            404, "model_not_found", str(unknown_name("model", model, known)), param="model"
        )
    support = tail or wanted.support
    if tail and wanted.support not in {None, tail}:
        raise BadRequestError(
            f"model '{model}' and raggd.support '{wanted.support}' name different support sets: "
            "leave one out.",
            "raggd.support",
        )
    if support and wanted.demonstrations:
        raise BadRequestError(
            f"support set '{support}' and demonstrations were both given: leave one out.",
            "raggd.demonstrations",
        )
    adapts = bool(support or wanted.demonstrations)
    method = (wanted.method or ("rag-gd" if adapts else "base")) if name == AUTO else name
    if wanted.method not in {None, method}:
        raise BadRequestError(
            f"model '{model}' answers by {method}, but raggd.method is '{wanted.method}': leave "
            f"it out, or use model '{AUTO}'.",
            "raggd.method",
        )
    if method == "rag-gd" and not adapts:
        raise BadRequestError(
            "rag-gd adapts to answered questions: name a stored set (model "
            "'rag-gd/<support id>' or raggd.support) or give raggd.demonstrations.",
            "raggd",
            "support_missing",
        )
    if method != "rag-gd" and adapts:
        raise BadRequestError(
            f"{method} does not adapt, but a support set was given: leave it out, or use model "
            f"'{AUTO}'.",
            "raggd",
        )
    return method, support


def _stops(body: Writing) -> tuple[str, ...]:
    return (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())


def _ask(
    body: Writing,
    questions: Sequence[str],
    settings: Settings,
    *,
    max_tokens: int | None,
    top_logprobs: int | None,
    param: str,
) -> Ask:
    wanted = body.raggd or Extension()
    method, support = choose_method(body.model, wanted)
    most = settings.serving.max_tokens
    tokens = max_tokens or min(settings.evaluation.max_answer_tokens, most)
    if tokens > most:
        raise BadRequestError(
            f"max_tokens is {tokens}: this server writes at most {most} (serving.max_tokens).",
            "max_tokens",
        )
    for question in questions:
        if not question.strip():
            raise BadRequestError("the question is empty: expected at least one word.", param)
    return Ask(
        model=body.model,
        questions=tuple(questions),
        method=method,
        support=support,
        demonstrations=tuple(wanted.demonstrations or ()),
        passages=None if wanted.passages is None else given_passages(wanted.passages),
        show_passages=wanted.show_passages,
        sampling=Sampling(
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            top_logprobs=top_logprobs,
        ),
        max_tokens=tokens,
        stops=_stops(body),
        ignore_end=bool(body.ignore_eos),
    )


def _text_of(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content)


def read_chat(body: ChatRequest, settings: Settings) -> Ask:
    """Read a chat: the last message of the user is the question.

    Args:
        body: the request.
        settings: limits and defaults.

    Returns:
        What it asks for.

    Raises:
        BadRequestError: there is no question, or its fields contradict each other.
    """
    asked = [_text_of(message) for message in body.messages if message.role == "user"]
    if not asked:
        raise BadRequestError("no message has the role 'user': expected a question.", "messages")
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
    if None not in {body.max_tokens, body.max_completion_tokens} and (
        body.max_tokens != body.max_completion_tokens
    ):
        raise BadRequestError("max_tokens and max_completion_tokens differ: leave one out.")
    return _ask(
        body,
        asked[-1:],
        settings,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        param="messages",
    )


def read_completion(body: CompletionRequest, settings: Settings) -> Ask:
    """Read a completion: every prompt is a question.

    Args:
        body: the request.
        settings: limits and defaults.

    Returns:
        What it asks for.
    """
    questions = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    return _ask(
        body, questions, settings, max_tokens=body.max_tokens, top_logprobs=None, param="prompt"
    )
