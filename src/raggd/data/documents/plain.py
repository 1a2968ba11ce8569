"""Text files: their encoding; plain text, CSV, passages as JSON Lines.

The encoding is told by its mark, by the form of UTF-8, or guessed with care.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raggd.data.documents.passages import PASSAGE_WORDS, Block, size_of
from raggd.data.text import DATA_URI, normal_text, text_of
from raggd.files import BYTE_ORDER_MARKS, read_json_lines
from raggd.records import Passage, RaggdError

_FORMATS = {b"%PDF-": "a PDF", b"%!PS": "PostScript", b"{\\rtf": "RTF", b"PK\3\4": "a ZIP archive"}
"""What files begin with that may look like text."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEW = 50  # in text at most every fiftieth byte is a control character: mark of end, stray NUL
_JAPANESE_SHIFT = re.compile(rb"\x1b(?:\$[@B]|\([BIJ])")
_WIDE = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
_KNOWN = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "iso8859-2"),
    *("iso8859-5", "iso8859-15", "koi8-r", "koi8-u", "cp866", "cp932", "euc-jp", "gb18030"),
    *("big5", "cp949", "tis-620"),
)
# What text in the right encoding does not hold: symbols inside words, capitals after small
# letters, half of a Japanese or Korean character, low quotes after a letter, two scripts in a word.
_ODD = re.compile(
    r"(?<=[^\W\d_])[\xa1-\xa9\xab-\xb6\xb8-\xbf\xd7\xf7\u2020-\u2022\u2030\u2039\u203a]+(?=[^\W\d_])"
    r"|[a-z\xdf-\xf6\xf8-\xff][\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d]"
    r"|(?<=[A-Z])[\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d](?=[a-z])"
    r"|[\u0430-\u045f][\u0400-\u042f]|[\u03ac-\u03ce][\u0386-\u03ab]"
    r"|[\u3131-\u318e\uff61-\uff9f\ufffd\x80-\x9f]"
    r"|[a-z\xdf-\xff][\u0370-\u06ff]|[\u0370-\u06ff][a-z\xdf-\xff]|[a-z][\u4e00-\u9fff\uac00-\ud7a3][a-z]"
    r"|(?<=[^\W\d_])[\u201c\u201d](?=[^\W\d_])|[\u2580-\u2590](?=[^\W\d_])|(?<=[^\W\d_])[\u201a\u201e\u02c6\u02dc]"
    # what is the euro sign, and letters at the beginning of words, in the later Western encoding
    r"|\xa4|[\xbc-\xbe](?=[a-z])"
)
# Letters beside a to z of the languages that an encoding was made for.
_ALPHABETS = {
    "cp1252": "äöüß àâæçèéêëîïôœùûüÿ áéíñóúü àáâãçéêíóôõúü àèéìíîòóùú àçèéíïòóúü åäöæøé åäöšžü "
    "äöõüšž áæéíðóöúýþ áéíóúàèêëïöü çë àèìòùáéíóú âêîôûŵŷ",
    "cp1250": "ąćęłńóśźż áčďéěíňóřšťúůýž áäčďéíĺľňóôŕšťúýž áéíóöőúüű čćđšž ăâîşţ",
    "cp1257": "ąčęėįšųūž āčēģīķļņōŗšūž äöõüšž",
    "cp1254": "âçğıîöşüû",
}
_ALPHABETS["iso8859-2"] = _ALPHABETS["cp1250"]
_SERBIAN = re.compile("[ђѓѕјљњћќџ]", re.IGNORECASE)
_EASTERN = re.compile("[щъыьэюяё]", re.IGNORECASE)
_FAR_SHARE = 4  # in Western text at most every fourth letter has an accent
# Western bytes that differ in Turkish, and letters that stand beside them in Icelandic.
_TURKISH, _ICELANDIC = "\xd0\xdd\xde\xf0\xfd\xfe", "\xc1\xc6\xcd\xd3\xe1\xe6\xed\xf3"
_SAMPLE = 200_000  # bytes that are looked at to guess an encoding


def decode(data: bytes) -> str:
    """Return the text of a file's bytes; refuse what is none, or of no known encoding."""
    if name := _marked(data, _FORMATS):
        raise RaggdError(f"it is {name}, whatever its name says: name it so, or save it as text.")
    if coding := _marked(data, BYTE_ORDER_MARKS):
        try:
            return data.decode(coding)
        except UnicodeDecodeError as error:
            name = coding.removesuffix("-sig").upper()
            raise RaggdError(f"it is no {name}, as its mark says ({error}).") from error
    if _JAPANESE_SHIFT.search(data):
        with suppress(UnicodeDecodeError):  # the colours of a terminal look alike
            return data.decode("iso2022_jp_ext")
    controls = len(_BINARY.findall(data))
    if controls == 1 and data.endswith(b"\x1a"):  # DOS marks the end of a file
        data, controls = data[:-1], 0
    if _FEW * controls > len(data):
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


def _marked(data: bytes, marks: Mapping[bytes, str]) -> str:
    return next((name for mark, name in marks.items() if data.startswith(mark)), "")


def _wide(data: bytes) -> str:
    # UTF-16 or UTF-32 without a mark.
    coding = _detected(data, _WIDE)
    text = data.decode(coding, "replace") if coding else ""
    # bytes of ASCII with a stray NUL are Chinese as UTF-16
    far = 2 * sum(c >= "\u2020" for c in text) >= len(text)
    if not text or not _is_printable(text) or (far and data.isascii()):
        raise RaggdError("it is not text (it holds control characters), whatever its name says.")
    return text


def _detected(data: bytes, codings: Sequence[str]) -> str | None:
    import chardet

    first = codings[0]
    return chardet.detect(data, include_encodings=codings, no_match_encoding=first)["encoding"]


def _guess(data: bytes) -> str:
    # The name of the likeliest encoding of eight-bit data that is no UTF-8; empty if none fits.
    sample = data[:_SAMPLE]
    text = sample.decode("utf-8", errors="replace")
    # Most is whole: what is written in another encoding has no valid sequence of several bytes.
    if sum(not c.isascii() for c in text) > 3 * text.count("\ufffd"):
        return "utf-8"
    return next((coding for coding in _likely(sample) if _fits(sample, coding)), "")


def _likely(data: bytes) -> Iterator[str]:
    western = data.decode("cp1252", errors="replace")
    letters = [c for c in western if c.isalpha()]
    accents = sum(not c.isascii() for c in letters)
    turkish = sum(c in _TURKISH for c in letters) and not any(c in _ICELANDIC for c in letters)
    if 2 * accents <= len(letters):
        codings = [*_ALPHABETS, "cp1254"][:: -1 if turkish else 1]
        yield from (coding for coding in dict.fromkeys(codings) if _is_of_one(data, coding))
    if letters and _FAR_SHARE * accents <= len(letters):
        yield from ("cp1254",) if turkish else ("cp1252", "iso8859_15")
    if coding := _detected(data, _KNOWN):
        yield coding


def _is_of_one(data: bytes, coding: str) -> bool:
    # Whether all letters belong to one language that is written in the encoding.
    text = data.decode(coding, errors="replace").lower()
    letters = {c for c in text if c.isalpha() and not c.isascii()}
    return any(letters <= set(alphabet) for alphabet in _ALPHABETS[coding].split())


def _fits(data: bytes, coding: str) -> bool:
    try:
        text = data.decode(coding)
    except UnicodeDecodeError as error:
        if len(data) < _SAMPLE or error.end < len(data) - 3:  # it may end inside a character
            return False
        text = data[: error.start].decode(coding)
    # two alphabets in one text: bytes of which the small letters alone are those of the encoding
    mixed = _SERBIAN.search(text) and _EASTERN.search(text)
    return _is_printable(text) and not mixed and not _ODD.search(text)


def _is_printable(text: str) -> bool:
    return all(c.isprintable() or c.isspace() for c in set(text)) and "\ufffd" not in text


def read_text(path: Path) -> str:
    """Return the text of a file, whatever its encoding, in the normal form; no data URIs."""
    return DATA_URI.sub("", normal_text(decode(path.read_bytes())))


def read_plain(path: Path) -> Iterator[Block]:
    """Read plain text as one block."""
    yield Block(read_text(path))


_NUMBER = re.compile(r"[-.\d]*\d[-.\d]*")
_YEAR = re.compile(r"(?:1[89]|20|21)\d\d")
_NAMED = re.compile(r"\s*sep=([,;\t|])[ \t]*\n")
_ROWS_SAMPLE = 20_000


def read_csv(path: Path) -> Iterator[Block]:
    """Read a table: ``column: value; ...`` per row; what is no table is refused."""
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        rows = [[" ".join(cell.split()) for cell in row] for row in _rows(text, path)]
    except csv.Error as error:
        raise RaggdError(f"its rows cannot be read as CSV ({error}).") from error
    used = {n for row in rows for n, cell in enumerate(row) if cell}
    rows = [[cell for n, cell in enumerate(row) if n in used] for row in rows if any(row)]
    at = next((n for n, row in enumerate(rows) if len(row) > 1 and any(row[1:])), 0)
    title, rows = rows[:at], rows[at:]  # exports begin with a title, a date, a remark
    yield Block("\n".join(_line((), row) for row in title), lines=True)
    names: Sequence[str] = ()
    if len(rows) > 1 and _names_columns(rows):
        names, rows = rows[0], [row for row in rows[1:] if row != rows[0]]  # files joined to one
        filled = {at for row in rows for at, cell in enumerate(row) if cell}
        yield Block("; ".join(name for at, name in enumerate(names) if at not in filled))
    yield from _entries(names, rows)


def _rows(text: str, path: Path) -> list[list[str]]:
    named = _NAMED.match(text)  # as Excel writes it
    if named:
        text, delimiter = text[named.end() :], named[1]
    else:
        tab = path.suffix.lower() == ".tsv" and "\t" in text
        delimiter = "\t" if tab else max(",;\t|", key=partial(_fit, text[:_ROWS_SAMPLE]))

    def read(**dialect: Any) -> list[list[str]]:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect))

    with suppress(csv.Error):  # a space may stand before a quotation mark
        return read(strict=True, skipinitialspace=True)
    try:
        return read(strict=True)
    except csv.Error as error:
        if "end of data" in str(error):  # a quotation mark that is never closed is a character
            return read(quoting=csv.QUOTE_NONE)
    with suppress(csv.Error):
        return read(strict=True, doublequote=False, escapechar="\\")
    return read()


def _fit(sample: str, delimiter: str) -> tuple[int, int]:
    # How many rows have the same number of cells, more than one; a comma before a space is prose.
    rows = [row for row in csv.reader(sample.split("\n")[:50], delimiter=delimiter) if len(row) > 1]
    same = max(Counter(map(len, rows)).values(), default=0)
    return same, -sum(cell[:1] == " " for row in rows for cell in row)


def _names_columns(rows: Sequence[Sequence[str]]) -> bool:
    # The first row, unless it repeats itself or has a number; years over what is none name columns.
    names, values = rows[0], rows[1:]
    named = [name for name in names if name]
    if len(names) < 2 or not all(names[1:]) or len(set(named)) < len(named):  # an index has no name
        return False
    numbers = [at for at, name in enumerate(names) if _NUMBER.fullmatch(name)]
    below = [row[at] for row in values for at in numbers if at < len(row)]
    return not numbers or (
        len(numbers) < len(named)
        and all(_YEAR.fullmatch(names[at]) for at in numbers)
        and not all(map(_YEAR.fullmatch, below))
    )


def _entries(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[Block]:
    # Rows as lines; of one too long for a passage the longest cell is cut, under the others.
    held: list[str] = []
    for row in rows:
        longest = max(range(len(row)), key=lambda at: len(row[at]))
        parts = ([c if (n == longest) == own else "" for n, c in enumerate(row)] for own in (0, 1))
        head, cell = (_line(names, part) for part in parts)
        if size_of(cell) < PASSAGE_WORDS or 2 * size_of(head) > PASSAGE_WORDS:
            held.append(_line(names, row))
            continue
        yield Block("\n".join(held), lines=True)
        yield Block(cell, lines=True, head=head)
        held.clear()
    yield Block("\n".join(held), lines=True)


def _line(names: Sequence[str], row: Sequence[str]) -> str:
    pairs = zip(names, row, strict=False)
    named = [f"{name}: {cell}" if name else cell for name, cell in pairs if cell]
    return "; ".join([*named, *filter(None, row[len(names) :])])


def read_lines(path: Path, name: str) -> Iterator[Passage]:
    r"""Stream passages from JSON Lines, also packed; they are kept as long as they are.

    A line is FlashRAG's ``{"id", "contents": "Title\ntext"}`` or ``{"id", "title", "text"}``, with
    a ``source`` if it likes; without an id it is named after the file and its number.

    Raises:
        RaggdError: the file is damaged or holds none; a line is no passage, or an empty one.
    """
    number = 0
    try:
        for number, value in read_json_lines(path):
            yield _passage(value, f"{name}#{number}", f"{name}, line {number}")
    except RaggdError as error:  # by the name that the file has in its corpus
        raise RaggdError(str(error).replace(str(path), name)) from error
    if not number:
        raise RaggdError(f"{name} holds no passage: expected one JSON object per line.")


def _passage(value: dict[str, Any], fallback_id: str, where: str) -> Passage:
    named = ((key, value.get(key)) for key in _KEYS)
    held = {key: text_of(it, f'"{key}"', where) for key, it in named if it is not None}
    if "contents" in value:
        first, newline, rest = held.get("contents", "").partition("\n")
        title, text = (first.strip().strip('"'), rest) if newline else ("", first)
    elif "text" in value:
        title, text = held.get("title", ""), held.get("text", "")
    else:
        raise RaggdError(
            f'{where}: not a passage. Expected {{"id", "contents": "Title\\ntext"}} or '
            f'{{"id", "title", "text"}}, found the keys {", ".join(value) or "(none)"}.'
        )
    name = held.get("id") or fallback_id
    if not text.strip():
        raise RaggdError(f"{where}: passage '{name}' is empty. Give it a text or remove the line.")
    if len(text) > _LONGEST_PASSAGE:
        raise RaggdError(
            f"{where}: passage '{name[:100]}' has {len(text)} characters: one that is to be shown "
            "to a model has some hundred words. Cut it, or give its text as a .txt file, which is "
            "cut here."
        )
    return Passage(name, text.strip(), title.strip(), held.get("source", ""))


_LONGEST_PASSAGE = 1_000_000
_KEYS = ("id", "contents", "title", "text", "source")
