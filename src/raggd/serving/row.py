"""One answer in the making: its tokens are chosen here, and turned into pieces of text.

An answer is one line without surrounding white space, or several where the demonstrations have
several, as everywhere in raggd. The pieces of a stream, joined, are exactly that text.
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from secrets import randbits
from typing import Any, Literal

import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import TopPLogitsWarper
from transformers.convert_slow_tokenizer import bytes_to_unicode

from raggd.backbone.extractive import Extract
from raggd.backbone.generate import clean_answer
from raggd.data.prompts import Prompt
from raggd.methods.base import Adapted
from raggd.records import Passage
from raggd.serving.errors import ApiError

_UNFINISHED = "\ufffd"
"""What a tokenizer shows for the first bytes of a character whose rest is still to come."""


class Sampler:
    """Chooses the tokens of one row: at temperature 0 the likeliest, else by chance among `top_p`.

    Equal seeds draw equal tokens; None draws anew each time.
    """

    def __init__(
        self, temperature: float = 0.0, top_p: float = 1.0, seed: int | None = None
    ) -> None:
        self._temperature, self._nucleus = temperature, TopPLogitsWarper(top_p)
        number = randbits(63) if seed is None else seed % 2**63
        self._generator = torch.Generator().manual_seed(number)

    def choose(self, logits: Tensor, extract: Extract | None = None) -> int:
        """Choose a token by (vocabulary,) logits of any float type, of what `extract` allows."""
        likely = extract.limit(logits) if extract else logits
        if self._temperature == 0:
            return int(likely.argmax())
        below = likely.float().cpu()
        # 0 for the likeliest, whatever the temperature; float32 knows no 1e-300
        below = (below - below.max()) / max(self._temperature, 1e-6)
        kept = self._nucleus(None, below[None])[0]
        return int(torch.multinomial(kept.softmax(-1), 1, generator=self._generator))


def held_back(text: str, stops: Sequence[str]) -> int:
    """Count the last characters that may still turn out to be the start of a stop string.

    >>> held_back("one END", ["ENDE", "D."])
    3
    """
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)


class AnswerText:
    """The growing text of one answer."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        *,
        lines: bool = False,
        written: Callable[[str], str] | None = None,
    ) -> None:
        """Let `decode` leave special tokens out.

        An answer that is put into a template (`written`) is shown whole, when it has ended.
        """
        self._decode, self._written = decode, written
        self._stops, self._lines = stops, lines
        self._tokens: list[int] = []
        self._shown = ""
        self.ended = False  # whether a line break or a stop string was reached

    @property
    def text(self) -> str:
        """The whole answer, as far as it is written."""
        text = self._decode(self._tokens).lstrip()
        broken = not self._lines and len(f"{text}.".splitlines()) > 1  # a second line has begun
        kept = self._stopped(text)
        self.ended = broken or len(kept) < len(text)
        text = clean_answer(kept, lines=self._lines)
        if not self._written:
            return text
        return clean_answer(self._stopped(self._written(text)), lines=True)

    def _stopped(self, text: str) -> str:
        return min((text.partition(stop)[0] for stop in self._stops), key=len, default=text)

    def push(self, token: int) -> str:
        """Take one more token and return the piece of text that is certain now; often empty."""
        if self.ended:
            return ""
        self._tokens.append(token)
        text = self.text
        if self.ended:
            return self._show(text)
        if self._written:
            return ""
        certain = text.rstrip(_UNFINISHED).rstrip()
        return self._show(certain[: len(certain) - held_back(certain, self._stops)].rstrip())

    def finish(self) -> str:
        """Return the last piece, which was held back: no more tokens come."""
        return "" if self.ended else self._show(self.text)

    def _show(self, text: str) -> str:
        # a tokenizer that rewrites what it showed before cannot be followed: wait for the end
        if not text.startswith(self._shown):
            return ""
        piece = text[len(self._shown) :]
        self._shown = text
        return piece


class TokenBytes:
    """The bytes that a token adds to the text, also where they are a part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        # the byte that each character of a byte-level vocabulary stands for, as in GPT-2
        names = bytes_to_unicode() if byte_level else {}  # type: ignore[no-untyped-call]
        self._table = {name: byte for byte, name in names.items()}
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, token: int, before: int | None = None) -> bytes:
        """Return the bytes of a token after another (None: the first); none for a special one."""
        if token in self._special:
            return b""
        name = str(self._tokenizer.convert_ids_to_tokens(token))
        if self._table:
            known = [self._table.get(character) for character in name]
            return bytes(b for b in known if b is not None) if None not in known else name.encode()
        if single := re.fullmatch("<0x([0-9A-F]{2})>", name):
            return bytes([int(single[1], 16)])
        # what decoding gives in its place: separators, which some tokenizers put between tokens
        start = [before] if before is not None and before not in self._special else []
        whole = str(self._tokenizer.decode([*start, token]))
        return whole[len(self._tokenizer.decode(start)) if start else 0 :].encode()


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


def _top(piece: bytes, logprob: float) -> TopLogprob:
    return TopLogprob(token=piece.decode("utf-8", "replace"), logprob=logprob, bytes=list(piece))


class Probabilities:
    """The written tokens with their probabilities, each told once its text is shown.

    They are the model's own, whatever it was allowed to write and however that was drawn.
    """

    def __init__(self, bytes_of: Callable[[int, int | None], bytes], alternatives: int) -> None:
        self._bytes_of, self._alternatives = bytes_of, alternatives
        # probability of a token, its alternatives, where its bytes begin and end
        self._pending: deque[tuple[float, list[TopLogprob], int, int]] = deque()
        self._before: int | None = None
        self._raw = b""
        self.told: list[TokenLogprob] = []

    def take(self, token: int, logits: Tensor, shown: int, *, last: bool) -> Logprobs:
        """Take a token, and tell those whose text is among the first `shown` bytes of the answer.

        Each is cut to what the answer shows; those that show nothing are left out.
        """
        logprobs = logits.float().log_softmax(-1)
        likeliest = zip(*(each.tolist() for each in logprobs.topk(self._alternatives)), strict=True)
        tops = [_top(self._bytes_of(other, self._before), value) for value, other in likeliest]
        start = len(self._raw)
        self._raw += self._bytes_of(token, self._before)
        self._pending.append((float(logprobs[token]), tops, start, len(self._raw)))
        self._before = token
        text = self._raw.decode("utf-8", "replace")
        begin = len(text[: len(text) - len(text.lstrip())].encode())  # white space is not shown
        end = begin + shown
        told = []
        while self._pending and (last or self._pending[0][3] <= end):
            logprob, tops, start, stop = self._pending.popleft()
            if part := self._raw[max(start, begin) : min(stop, end)]:
                told.append(TokenLogprob(**dict(_top(part, logprob)), top_logprobs=tops))
        self.told += told
        return Logprobs(content=told)


Reason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """More of an answer."""

    text: str  # what is certain now; may be empty
    logprobs: Logprobs | None = None  # of the tokens whose text is shown by now, where wanted
    reason: Reason | None = None  # with the last piece, why the answer ends


@dataclass(eq=False)
class Row:
    """One answer: what it is written from, how, and how far it is."""

    prompt: Prompt
    adapted: Adapted
    sampler: Sampler
    writer: AnswerText
    probabilities: Probabilities | None  # told with the text; None for a request without
    max_tokens: int
    emit: Callable[[Row, TextPiece | ApiError], None]  # called from the scheduler's thread, too
    extract: Extract | None = None  # holds it to the words of its passages
    ignore_end: bool = False  # write exactly `max_tokens` tokens, for measurements
    index: int = 0  # of its question in the request
    found: tuple[Passage, ...] = ()  # passages, before they were cut to fit
    unfounded: bool = False  # whether there are none, so that the model is not to be asked
    cancelled: bool = False
    done: bool = False
    last: int = 0  # token
    batch: int = 1  # most answers that were written together with this one, itself included
    written: int = 0  # tokens so far, the end token included
    text: str = ""  # the whole answer, once it has ended
    reason: Reason | None = None  # why it ended; None while it is written
    _shown: int = 0  # bytes
    # when it was queued, begun, read and finished, as far as it is
    times: list[float] = field(default_factory=lambda: [time.perf_counter()])

    @property
    def base(self) -> str:
        """Fingerprint of its base adapter, empty for none: only rows of one base share a batch."""
        return self.adapted.base.fingerprint if self.adapted.base else ""

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds of ``queue``, ``read`` (the prompt) and ``write`` (the answer)."""
        spent = [round(1000 * (end - start), 1) for start, end in pairwise(self.times)]
        return dict(zip(("queue", "read", "write"), spent, strict=True))

    def take(self, logits: Tensor, stops: frozenset[int]) -> None:
        """Choose the next token by (vocabulary,) logits, and tell what it adds; `stops` end it."""
        token = self.last = self.sampler.choose(logits, self.extract)
        if self.extract:
            self.extract.push(token)
        if not self.written:
            self.times.append(time.perf_counter())
        self.written += 1
        stopped = token in stops and not self.ignore_end
        text = "" if stopped else self.writer.push(token)
        reason: Reason | None = "length" if self.written == self.max_tokens else None
        if stopped or (self.writer.ended and not self.ignore_end):
            reason = "stop"
        if reason:
            text += self.writer.finish()
        self._shown += len(text.encode())
        told = None
        if self.probabilities is not None:
            told = self.probabilities.take(token, logits, self._shown, last=bool(reason))
        if reason:
            self._end(reason, self.writer.text)
        self.emit(self, TextPiece(text, told, reason))

    def _end(self, reason: Reason, text: str) -> None:
        self.times.append(time.perf_counter())
        self.reason, self.text, self.done = reason, text, True

    def skip(self) -> None:
        """Finish without asking the model: with the refusal that was shown, or nothing."""
        self.times += [time.perf_counter()] * 2
        self._end("stop", self.adapted.unasked(self.prompt.asked))
        self.emit(self, TextPiece(self.text, reason="stop"))

    def fail(self, error: ApiError) -> None:
        """Say that the answer cannot be written."""
        self.done = True
        self.emit(self, error)
