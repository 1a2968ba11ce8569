"""What a request asks, and its way to the rows that answer it; `reply` sends what they write.

There are two kinds: a chat, whose last turn is the question, and a list of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from raggd.data.prompts import Exchange
from raggd.methods.answering import extract_of, render
from raggd.methods.base import Adapted
from raggd.records import Passage, RaggdError
from raggd.serving import openai
from raggd.serving.bodies import Extension, given_passages
from raggd.serving.documents import passages_for, searches_for
from raggd.serving.errors import ApiError, BadRequestError
from raggd.serving.row import AnswerText, Emit, Probabilities, Row, Sampler
from raggd.serving.service import Service

RESERVE = 8
"""Passages give way to an answer of this part of the context; a longer one takes what is left."""


def too_long(reason: str) -> ApiError:
    """Return the error for a prompt that does not fit the context, status 400."""
    message = f"the question does not fit the context: {reason}"
    return BadRequestError(message, "messages", "context_length_exceeded")


def no_json() -> ApiError:
    """Return the error for JSON that nothing has shown the model how to write, status 400."""
    return BadRequestError(
        "response_format: JSON is written where demonstrations show it: give "
        "raggd.demonstrations, or a support set, whose every answer is a JSON object as you want "
        "it, with the keys and kinds of values of your schema.",
        "response_format",
    )


def turns_of(messages: list[openai.Message]) -> tuple[str, str, tuple[Exchange, ...]]:
    """Return what system and developer say, the user's last turn, and earlier ones with answers."""
    turns: list[tuple[str, str]] = []
    for message in messages:
        if message.role not in {"user", "assistant"} or (not turns and message.role != "user"):
            continue
        if turns and turns[-1][0] == message.role:
            turns[-1] = (message.role, f"{turns[-1][1]}\n{message.text}")
        else:
            turns.append((message.role, message.text))
    if not turns or turns[-1][0] != "user":
        raise BadRequestError(
            "expected a message with the role 'user' last: the question.", "messages"
        )
    said = "\n".join(m.text for m in messages if m.role in {"system", "developer"})
    texts = [text for _, text in turns]
    return said, texts[-1], tuple(zip(texts[:-1:2], texts[1::2], strict=True))


class Request:
    """What is asked; once it is prepared, the rows that answer it and what these read."""

    def __init__(
        self,
        service: Service,
        body: openai.Writing,
        questions: list[str],
        asked_in: str,
        most: int | None,
        logprobs: int | None = None,
    ) -> None:
        """Read what chat and prompts have in common; the questions stand in the field `asked_in`.

        An answer has at most so many tokens (`most`); None takes the server's default. `logprobs`
        are alternatives to report with each token; None reports no probabilities.

        Raises:
            BadRequestError: fields contradict each other or exceed a limit.
        """
        wanted, settings = body.raggd or Extension(), service.settings
        context, together = settings.backbone.context_tokens, settings.serving.queue
        if (most or 0) > context:
            raise BadRequestError(
                f"max_tokens is {most}: question and answer together have at most {context} "
                "(backbone.context_tokens).",
                "max_tokens",
            )
        if len(questions) > together:
            raise BadRequestError(
                f"{len(questions)} prompts: this server takes at most {together} at once "
                "(serving.queue): send fewer in a request.",
                asked_in,
                "too_many_prompts",
            )
        if not all(question.strip() for question in questions):
            raise BadRequestError("the question is empty: expected at least one word.", asked_in)
        self.method, self.support = wanted.method_of(body.model)
        self.questions = questions
        self.earlier: tuple[Exchange, ...] = ()
        self.instruction = wanted.instruction or ""
        self.format: openai.ResponseFormat | None = None  # JSON, where it is wanted
        self.rows: list[Row] = []
        self.evidence: list[tuple[Passage, ...]] = []
        self.timings = {"prepare": 0.0, "adapt": 0.0}  # milliseconds
        self.searched: list[str] = []  # where it is not the question
        self.remarks: list[str] = []  # on its own demonstrations
        self.turns_cut = 0
        self._service, self._body, self.wanted = service, body, wanted
        self._most, self._logprobs = most, logprobs
        self._retriever = service.documents.retriever  # one for the whole request

    @classmethod
    def of_chat(cls, service: Service, body: openai.ChatRequest) -> Request:
        """Read `/v1/chat/completions`; refused as by the class, or where no question is last."""
        if body.top_logprobs and not body.logprobs:
            raise BadRequestError("top_logprobs needs logprobs to be true.", "top_logprobs")
        most, newer = body.max_tokens, body.max_completion_tokens
        if None not in {most, newer} and most != newer:
            raise BadRequestError("max_tokens and max_completion_tokens differ: leave one out.")
        said, question, earlier = turns_of(body.messages)
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        request = cls(service, body, [question], "messages", newer or most, logprobs)
        request.earlier = earlier
        request.instruction = "\n".join(filter(None, (said, request.instruction)))
        if body.response_format and body.response_format.type != "text":
            request.format = body.response_format
        return request

    @classmethod
    def of_prompts(cls, service: Service, body: openai.CompletionRequest) -> Request:
        """Read `/v1/completions`."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        return cls(service, body, prompts, "prompt", body.max_tokens)

    async def adapt(self) -> Adapted:
        """Return what it is answered with: adapted now, looked up, or the model as it is."""
        service = self._service
        if self.method != "adapted":
            if self.format:
                raise no_json()
            return Adapted(service.base if self.method == "base" else None)
        if self.support:
            support = service.stored(self.support).support
        else:
            shown = self.wanted.demonstrations or []
            support = await service.support_of(shown, self._retriever)
            self.remarks = await service.aside(lambda: service.rag.remarks(support))
        if self.format and not self.format.shown_by(support.demonstrations):
            raise no_json()
        self.support = support.id
        adapted, self.timings["adapt"] = await service.adapted_to(support, self.instruction)
        return adapted

    def make_rows(self, adapted: Adapted, emit: Emit) -> None:
        """Find passages and render the prompts, which blocks; pieces of rows go to `emit`."""
        settings, given = self._service.settings, self.wanted.passages
        self._fit_turns()
        for question in self.questions:
            if self._is_vast(question):
                raise too_long(f"it has {len(question)} characters")
            if given is not None:
                passages = given_passages(given)
            else:
                searches, k = self.searched or [question], settings.retrieval.top_k
                passages = passages_for(searches, self._retriever, k)
            self.evidence.append(passages)
            self.rows.append(self._row(adapted, question, passages, emit))

    def unfounded(self, index: int) -> bool:
        """Return whether nothing was found for a question, so that the model is not asked."""
        guesses = self.wanted.guess or not self._service.settings.retrieval.top_k
        given = self.evidence[index] or self.wanted.passages is not None
        return self.rows[index].adapted.needs_passages and not (given or guesses)

    def _is_vast(self, text: str) -> bool:
        # far beyond any context: not worth a search, nor to be counted in tokens
        return len(text) > 32 * self._service.settings.backbone.context_tokens

    def _fit_turns(self) -> None:
        # earlier turns may take a quarter of the context: the oldest go first
        if not self.earlier:
            return
        if self.wanted.passages is None:
            self.searched = searches_for(self.questions[0], self.earlier)
        room, kept = self._service.settings.backbone.context_tokens // 4, 0
        for turn in map("\n".join, reversed(self.earlier)):
            if self._is_vast(turn):
                break
            room -= len(self._service.backbone.tokenizer.encode(turn))
            if room < 0:
                break
            kept += 1
        self.turns_cut = len(self.earlier) - kept
        self.earlier = self.earlier[self.turns_cut :]

    def _row(self, adapted: Adapted, question: str, passages: Sequence[Passage], emit: Emit) -> Row:
        backbone, settings, body = self._service.backbone, self._service.settings, self._body
        limit = settings.backbone.context_tokens
        usual = max(settings.evaluation.max_answer_tokens, adapted.most)
        most = self._most or usual
        try:
            prompt = render(
                backbone,
                adapted,
                question,
                passages,
                limit=limit,
                reserve=min(most, max(limit // RESERVE, usual)),
                instruction=self.instruction or settings.serving.instruction,
                earlier=self.earlier,
            )
        except RaggdError as error:
            raise too_long(str(error)) from error
        top_p = 1.0 if body.top_p is None else body.top_p
        rewrites = adapted.template is not None and adapted.template.rewrites
        return Row(
            prompt=prompt,
            adapted=adapted,
            sampler=Sampler(body.temperature or 0.0, top_p, body.seed, self._logprobs),
            writer=AnswerText(
                lambda tokens: str(backbone.tokenizer.decode(tokens, skip_special_tokens=True)),
                [body.stop] if isinstance(body.stop, str) else list(body.stop or ()),
                lines=adapted.lines,
                written=partial(adapted.written, prompt=prompt) if rewrites else None,
            ),
            probabilities=None if self._logprobs is None else Probabilities(self._service.bytes_of),
            max_tokens=min(most, limit - len(prompt.tokens)),
            emit=emit,
            extract=extract_of(backbone, adapted, prompt),
            ignore_end=bool(body.ignore_eos),
        )
