"""One answer in the making: its tokens are chosen here, and turned into pieces of text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raggd.data.prompts import Prompt
from raggd.methods.base import Adapted
from raggd.serving.errors import ApiError
from raggd.serving.openai import Logprobs, Reason, TokenLogprob, TopLogprob
from raggd.serving.text import AnswerText, TokenBytes


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a row chooses its tokens.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: tokens are drawn from the smallest set that holds this probability.
        seed: equal seeds draw equal tokens; None draws anew each time.
        top_logprobs: alternatives to report with each token; None reports no probabilities.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Chosen:
    """A token with its log-probability, and the likeliest ones with theirs."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens that together hold `top_p`; at least one.

    Args:
        probabilities: (vocabulary,), summing to 1.
        top_p: in (0, 1].

    Returns:
        (vocabulary,), the others zero; not normalised.
    """
    ordered, at = probabilities.sort(descending=True)
    before = ordered.cumsum(0) - ordered
    ordered = torch.where(before < top_p, ordered, torch.zeros_like(ordered))
    return torch.zeros_like(probabilities).scatter(0, at, ordered)


class Sampler:
    """Chooses the tokens of one row, one after another."""

    def __init__(self, sampling: Sampling) -> None:
        """Start the row's own random numbers."""
        self._sampling = sampling
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed % 2**63)

    def choose(self, logits: Tensor) -> Chosen:
        """Choose the next token.

        Args:
            logits: (vocabulary,), of any float type.

        Returns:
            The token; its log-probability is the model's own, whatever the temperature.
        """
        token = self._drawn(logits) if self._sampling.temperature > 0 else int(logits.argmax())
        wanted = self._sampling.top_logprobs
        if wanted is None:
            return Chosen(token)
        logprobs = logits.float().log_softmax(-1)
        values, ids = logprobs.topk(wanted)
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logprobs[token]), top)

    def _drawn(self, logits: Tensor) -> int:
        below = logits.float().cpu()
        # 0 for the likeliest, whatever the temperature; float32 knows no 1e-300
        below = (below - below.max()) / max(self._sampling.temperature, 1e-6)
        probabilities = nucleus(below.softmax(-1), self._sampling.top_p)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))


class Probabilities:
    """The written tokens with their probabilities, each told once its text is shown."""

    def __init__(self, bytes_of: TokenBytes) -> None:
        """Start with nothing written."""
        self._bytes_of = bytes_of
        self._pending: deque[tuple[Chosen, int | None, int]] = deque()
        self._before: int | None = None
        self._raw = b""
        self.told: list[TokenLogprob] = []

    def take(self, chosen: Chosen, shown: int, *, last: bool) -> Logprobs:
        """Take a token, and tell those whose text is shown by now.

        Returns:
            The tokens, each cut to what the answer shows; those that show nothing are left out.
        """
        self._pending.append((chosen, self._before, len(self._raw)))
        self._raw += self._bytes_of(chosen.token, self._before)
        self._before = chosen.token
        text = self._raw.decode("utf-8", "replace")
        begin = len(text[: len(text) - len(text.lstrip())].encode())  # white space is not shown
        end = begin + shown
        told = []
        while self._pending:
            one, before, start = self._pending[0]
            stop = self._pending[1][2] if len(self._pending) > 1 else len(self._raw)
            if stop > end and not last:
                break
            self._pending.popleft()
            if part := self._raw[max(start, begin) : min(stop, end)]:
                told.append(self._view(one, before, part))
        self.told += told
        return Logprobs(content=told)

    def _view(self, chosen: Chosen, before: int | None, part: bytes) -> TokenLogprob:
        tops = [_top(self._bytes_of(token, before), logprob) for token, logprob in chosen.top]
        assert chosen.logprob is not None, "the sampler was not asked for probabilities"
        own = _top(part, chosen.logprob)
        return TokenLogprob(**dict(own), top_logprobs=tops)


def _top(piece: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=piece.decode("utf-8", "replace"), logprob=logprob, bytes=list(piece))


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer: text that may be empty, its tokens, and whether it is the last.

    Attributes:
        text: what is certain now.
        logprobs: of the tokens whose text is shown by now; None unless the request wants them.
        reason: with the last piece, why the answer ends.
    """

    text: str
    logprobs: Logprobs | None
    reason: Reason | None = None


@dataclass(eq=False)
class Row:
    """One answer: what it is written from, how, and how far it is.

    Attributes:
        prompt: without an answer.
        adapted: what answers it.
        sampling: how its tokens are chosen.
        writer: turns them into text.
        probabilities: told with the text; None for a request without.
        max_tokens: most tokens.
        emit: takes its pieces, or why there are none; called from the scheduler's thread.
        ignore_end: write exactly `max_tokens` tokens, for measurements.
        batch: most answers that were written together with this one, itself included.
        written: tokens so far, the end token included.
        reason: why it ended; None while it is written.
    """

    prompt: Prompt
    adapted: Adapted
    sampling: Sampling
    writer: AnswerText
    probabilities: Probabilities | None
    max_tokens: int
    emit: Callable[[Row, Piece | ApiError], None]
    ignore_end: bool = False
    cancelled: bool = False
    done: bool = False
    last: int = 0
    batch: int = 1
    written: int = 0
    reason: Reason | None = None
    _shown: int = 0
    _queued: float = field(default_factory=time.perf_counter)
    _started: float = 0.0
    _read: float = 0.0
    _ended: float = 0.0

    def __post_init__(self) -> None:
        self._sampler = Sampler(self.sampling)

    @property
    def base(self) -> str:
        """Fingerprint of its base adapter, empty for none: only rows of one base share a batch."""
        return self.adapted.base.fingerprint if self.adapted.base else ""

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds of ``queue``, ``read`` (the prompt) and ``write`` (the answer)."""
        spans = {
            "queue": self._started - self._queued,
            "read": self._read - self._started,
            "write": self._ended - self._read,
        }
        return {name: round(1000 * seconds, 1) for name, seconds in spans.items()}

    def begin(self) -> None:
        """Say that its prompt is being read now."""
        self._started = time.perf_counter()

    def take(self, logits: Tensor, stops: frozenset[int]) -> None:
        """Choose the next token, and tell what it adds.

        Args:
            logits: (vocabulary,).
            stops: tokens that end an answer.
        """
        chosen = self._sampler.choose(logits)
        self._read = self._read or time.perf_counter()
        self.written += 1
        self.last = chosen.token
        text, self.reason = self._write(chosen.token, stops)
        self._shown += len(text.encode())
        told = None
        if self.probabilities is not None:
            told = self.probabilities.take(chosen, self._shown, last=self.reason is not None)
        if self.reason:
            self._ended = time.perf_counter()
            self.done = True
        self.emit(self, Piece(text, told, self.reason))

    def _write(self, token: int, stops: frozenset[int]) -> tuple[str, Reason | None]:
        if token in stops and not self.ignore_end:
            return self.writer.finish(), "stop"
        text = self.writer.push(token)
        if self.writer.ended and not self.ignore_end:
            return text, "stop"
        if self.written == self.max_tokens:
            return text + self.writer.finish(), "length"
        return text, None

    def skip(self) -> None:
        """Finish without asking the model."""
        self._started = self._read = self._ended = time.perf_counter()
        self.reason, self.done = "stop", True
        self.emit(self, Piece("", None, "stop"))

    def fail(self, error: ApiError) -> None:
        """Say that the answer cannot be written."""
        self.done = True
        self.emit(self, error)
