"""The encoding of a text file: told by its mark, by the form of UTF-8, or guessed with care."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress

from raggd.records import RaggdError

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEW = 50
"""In text at most every fiftieth byte is a control character: a mark of end, a stray NUL."""
_JAPANESE_SHIFT = re.compile(rb"\x1b(?:\$[@B]|\([BIJ])")
_KNOWN = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("iso8859_2", "iso8859_5", "koi8_r", "cp866", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
# What text in the right encoding does not hold: symbols inside words, capitals after small
# letters, half of a Japanese or Korean character, low quotes after a letter.
_ODD = re.compile(
    r"(?<=[^\W\d_])[\xa1-\xa9\xab-\xb6\xb8-\xbf\xd7\xf7\u2020-\u2022\u2030\u2039\u203a]+(?=[^\W\d_])"
    r"|[a-z\xdf-\xf6\xf8-\xff][\xc0-\xd6\xd8-\xde\u0160\u017d\u0152]"
    r"|[\u0430-\u045f][\u0400-\u042f]|[\u03ac-\u03ce][\u0386-\u03ab]"
    r"|[\u3131-\u318e\uff61-\uff9f\ufffd\x80-\x9f]|(?<=[^\W\d_])[\u201a\u201e\u02c6\u02dc\xa4]"
)
_FAR_SHARE = 4
"""In Western text at most every fourth letter has an accent."""
# Western bytes that differ in Turkish, and letters that stand beside them in Icelandic.
_TURKISH, _ICELANDIC = "\xd0\xdd\xde\xf0\xfd\xfe", "\xc1\xc6\xcd\xd3\xe1\xe6\xed\xf3"
_SAMPLE = 200_000
"""Bytes that are looked at to guess an encoding."""


def decode(data: bytes) -> str:
    """Decode a text file.

    Args:
        data: its bytes.

    Returns:
        Its text.

    Raises:
        RaggdError: it is not text, or in an encoding that cannot be told.
    """
    for mark, coding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(coding)
            except UnicodeDecodeError as error:
                raise RaggdError(
                    f"it is no {coding[:6].upper()}, as its mark says ({error})."
                ) from error
    if _JAPANESE_SHIFT.search(data):
        try:
            return data.decode("iso2022_jp_ext")
        except UnicodeDecodeError:  # e.g. the colours of a terminal
            pass
    controls = len(_BINARY.findall(data))
    if _FEW * controls > len(data) and not (controls == 1 and data[-1:] == b"\x1a"):
        return _wide(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        if controls:
            return _wide(data)
        with suppress(UnicodeDecodeError):  # each half of a pair by itself, as older Java writes
            pairs = data.decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass")
            return pairs.decode("utf-16", "replace")
        coding = _guess(data)
        if not coding:
            wrong = f"byte {error.start} is {data[error.start]:#04x}"
            raise RaggdError(
                f"it is not UTF-8 ({wrong}), and no other encoding fits: save it as UTF-8."
            ) from error
        return data.decode(coding, errors="replace")


def _wide(data: bytes) -> str:
    # UTF-16 or UTF-32 without a mark: text by every character, most plain ones decide the order.
    best, plain = "", 0
    nuls = data.count(b"\0")  # in wide text they are many, or not the only control characters
    narrow = data.isascii() and 4 * nuls < len(data) and len(_BINARY.findall(data)) == nuls
    for coding in () if narrow else ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        try:
            text = data.decode(coding)
        except UnicodeDecodeError:
            continue
        if any(
            unicodedata.category(c) in {"Cc", "Cn", "Co"} and c not in "\t\n\v\f\r"
            for c in set(text)
        ):
            continue
        count = sum(c.isascii() or c in "\u3001\u3002\uff0c" for c in text)
        if count > plain:
            best, plain = text, count
    if not plain:
        raise RaggdError("it is not text (it holds control characters), whatever its name says.")
    return best


def _guess(data: bytes) -> str:
    # The name of the likeliest encoding of eight-bit data that is no UTF-8; empty if none fits.
    sample = data[:_SAMPLE]
    if _is_damaged(sample):
        return "utf-8"
    return next((coding for coding in _likely(sample) if _fits(sample, coding)), "")


def _is_damaged(data: bytes) -> bool:
    # Nearly UTF-8: what is written in another encoding has no valid sequence of several bytes.
    text = data.decode("utf-8", errors="replace")
    valid = sum(not c.isascii() for c in text.replace("\ufffd", ""))
    return valid > 4 * text.count("\ufffd")


def _likely(data: bytes) -> Iterator[str]:
    western = data.decode("cp1252", errors="replace")
    letters = [c for c in western if c.isalpha()]
    if _FAR_SHARE * sum(not c.isascii() for c in letters) <= len(letters):
        turkish = sum(c in _TURKISH for c in letters) and not any(c in _ICELANDIC for c in letters)
        yield from ("cp1254",) if turkish else ("cp1252", "iso8859_15")
    from charset_normalizer import from_bytes

    yield from (match.encoding for match in from_bytes(data, cp_isolation=list(_KNOWN)))


def _fits(data: bytes, coding: str) -> bool:
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        if error.end < len(data) - 3:  # a sample may end inside a character
            return False
        text = data[: error.start].decode(coding)
    if not all(c.isprintable() or c.isspace() for c in set(text)):
        return False
    return not _ODD.search(text)
