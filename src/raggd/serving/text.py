"""From tokens to the text of an answer, piece by piece: what may be shown, and when it ends.

An answer is one line without surrounding white space, or several where the demonstrations have
several, as everywhere in raggd. The pieces of a stream, joined, are exactly that text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from raggd.backbone.generate import clean_answer

_UNFINISHED = "\ufffd"
"""What a tokenizer shows for the first bytes of a character whose rest is still to come."""


def held_back(text: str, stops: Sequence[str]) -> int:
    """Count the last characters that may still turn out to be the start of a stop string.

    Returns:
        Length of the longest end of `text` that begins a stop string.

    >>> held_back("one END", ["ENDE", "D."])
    3
    """
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(len(stop) > length and stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def byte_table() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (as in GPT-2).

    >>> byte_table()["G"], byte_table()["\u0120"]
    (71, 32)
    """
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


class TokenBytes:
    """The bytes that a token adds to the text, also where they are a part of a character."""

    def __init__(self, tokenizer: Any) -> None:
        """Find out how the vocabulary is written."""
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        byte_level = decoder is not None and b'"ByteLevel"' in decoder.__getstate__()
        self._table = byte_table() if byte_level else {}
        self._special = set(tokenizer.all_special_ids)

    def __call__(self, token: int, before: int | None = None) -> bytes:
        """Return the bytes of a token.

        Args:
            token: its id.
            before: the token that it follows, None at the start.

        Returns:
            Its bytes; none for a special token, which has no text.
        """
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


class AnswerText:
    """The growing text of one answer."""

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        stops: Sequence[str] = (),
        *,
        lines: bool = False,
    ) -> None:
        """Start with nothing written; `decode` leaves special tokens out."""
        self._lines = lines
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._tokens: list[int] = []
        self._shown = ""
        self.ended = False
        """Whether the text itself has ended: a line break or a stop string was reached."""

    @property
    def text(self) -> str:
        """The whole answer, as far as it is written."""
        return self._line()

    def push(self, token: int) -> str:
        """Take one more token.

        Returns:
            The piece of text that is certain now; often empty.
        """
        if self.ended:
            return ""
        self._tokens.append(token)
        line = self._line()
        if self.ended:
            return self._show(line)
        certain = line.rstrip(_UNFINISHED).rstrip()
        return self._show(certain[: len(certain) - held_back(certain, self._stops)].rstrip())

    def finish(self) -> str:
        """Say that no more tokens come.

        Returns:
            The last piece, which was held back; empty if there was none.
        """
        return "" if self.ended else self._show(self._line())

    def _line(self) -> str:
        text = self._decode(self._tokens).lstrip()
        cuts = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        broken = not self._lines and len(f"{text}.".splitlines()) > 1  # a second line has begun
        self.ended = broken or bool(cuts)
        return clean_answer(text[: min(cuts)] if cuts else text, lines=self._lines)

    def _show(self, text: str) -> str:
        # a tokenizer that rewrites what it showed before cannot be followed: wait for the end
        if not text.startswith(self._shown):
            return ""
        piece = text[len(self._shown) :]
        self._shown = text
        return piece
