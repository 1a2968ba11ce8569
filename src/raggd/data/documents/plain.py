"""Text files: their encoding; plain text, CSV, passages as JSON Lines.

The encoding is told by its mark, by the form of UTF-8, or guessed with care.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from raggd.data.documents.passages import Block
from raggd.data.text import DATA_URI, normal_text, text_of
from raggd.files import BYTE_ORDER_MARKS, read_json_lines
from raggd.records import Passage, RaggdError

_FORMATS = {b"%PDF-": "a PDF", b"%!PS": "PostScript", b"{\\rtf": "RTF", b"PK\3\4": "a ZIP archive"}
"""What files begin with that may look like text."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEW = 50  # in text at most every fiftieth byte is a control character: mark of end, stray NUL
_JAPANESE_SHIFT = re.compile(rb"\x1b(?:\$[@B]|\([BIJ])")
_KNOWN = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    *("iso8859_2", "iso8859_5", "koi8_r", "cp866", "cp932", "euc_jp", "gb18030", "big5", "cp949"),
)
# What text in the right encoding does not hold: symbols inside words, capitals after small
# letters, half of a Japanese or Korean character, low quotes after a letter, two scripts in a word.
_ODD = re.compile(
    r"(?<=[^\W\d_])[\xa1-\xa9\xab-\xb6\xb8-\xbf\xd7\xf7\u2020-\u2022\u2030\u2039\u203a]+(?=[^\W\d_])"
    r"|[a-z\xdf-\xf6\xf8-\xff][\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d]"
    r"|(?<=[A-Z])[\xc0-\xd6\xd8-\xde\u0152\u0160\u0178\u017d](?=[a-z])"
    r"|[\u0430-\u045f][\u0400-\u042f]|[\u03ac-\u03ce][\u0386-\u03ab]"
    r"|[\u3131-\u318e\uff61-\uff9f\ufffd\x80-\x9f]"
    r"|[a-z][\u0370-\u06ff]|[\u0370-\u06ff][a-z]|[a-z][\u4e00-\u9fff\uac00-\ud7a3][a-z]"
    r"|(?<=[^\W\d_])[\u201c\u201d](?=[^\W\d_])|[\u2580-\u2590](?=[^\W\d_])|(?<=[^\W\d_])[\u201a\u201e\u02c6\u02dc\xa4]"
)
# Letters beside a to z of the languages that an encoding was made for.
_ALPHABETS = {
    "cp1252": "äöüß àâæçèéêëîïôœùûüÿ áéíñóúü àáâãçéêíóôõúü àèéìíîòóùú àçèéíïòóúü åäöæøé åäöšžü "
    "äöõüšž áæéíðóöúýþ áéíóúàèêëïöü çë àèìòùáéíóú âêîôûŵŷ",
    "cp1250": "ąćęłńóśźż áčďéěíňóřšťúůýž áäčďéíĺľňóôŕšťúýž áéíóöőúüű čćđšž ăâîşţ",
    "cp1257": "ąčęėįšųūž āčēģīķļņōŗšūž äöõüšž",
    "cp1254": "âçğıîöşüû",
}
_CYRILLIC, _VOWELS = re.compile("[\u0430-\u045f]"), re.compile("[аеёиоуыэюяіїєў]")
_SERBIAN, _EASTERN = re.compile("[ђѓѕјљњћќџ]"), re.compile("[щъыьэюяё]")
_GREEK, _GREEK_ACCENTS = re.compile("[\u03b1-\u03c9]"), re.compile("[\u03ac-\u03af\u03cc-\u03ce]")
_LATIN = re.compile("[a-z\xc0-\xd6\xd8-\xf6\xf8-\u024f]", re.IGNORECASE)
_HEBREW, _HEBREW_POINTS = re.compile("[\u05d0-\u05ea]"), re.compile("[\u0591-\u05c7\u05f0-\u05f4]")
_ARABIC, _ARABIC_COMMON = re.compile("[\u0621-\u064a]"), re.compile("[\u0627\u0644\u064a]")
_KOREAN, _CHINESE = re.compile("[\uac00-\ud7a3]"), re.compile("[\u4e00-\u9fff]")
_KOREAN_COMMON = re.compile(
    "[이다가는을의에고하지를로은서도기사한해대리시자어부인제수정과일보전그상나주라장여아원구유비조국만들게스"
    "선으면성공오있동안신세생연경소문관습니]"
)
_RARE = 8  # at least every eighth Korean syllable, or Arabic letter, is one of the commonest
_SHORT = 9
_COMMON = {
    "gb18030": (0xB0, 0xD7),
    "big5": (0xA4, 0xC6),
    "euc_jp": (0xB0, 0xCF),
    "cp932": (0x88, 0x98),
}
"""First bytes of the characters in common use, of sets in which the others follow."""
_FAR_SHARE = 4  # in Western text at most every fourth letter has an accent
# Western bytes that differ in Turkish, and letters that stand beside them in Icelandic.
_TURKISH, _ICELANDIC = "\xd0\xdd\xde\xf0\xfd\xfe", "\xc1\xc6\xcd\xd3\xe1\xe6\xed\xf3"
_SAMPLE = 200_000  # bytes that are looked at to guess an encoding


def decode(data: bytes) -> str:
    """Return the text of a file's bytes; refuse what is none, or of no known encoding."""
    for mark, name in _FORMATS.items():
        if data.startswith(mark):
            raise RaggdError(
                f"it is {name}, whatever its name says: name it so, or save it as text."
            )
    for mark, coding in BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            try:
                return data.decode(coding)
            except UnicodeDecodeError as error:
                raise RaggdError(
                    f"it is no {coding[:6].upper()}, as its mark says ({error})."
                ) from error
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


def _wide(data: bytes) -> str:
    # UTF-16 or UTF-32 without a mark.
    from charset_normalizer import from_bytes

    found = from_bytes(data, cp_isolation=["utf_16_le", "utf_16_be", "utf_32_le", "utf_32_be"])
    best = found.best()
    # bytes of ASCII with a stray NUL are Chinese as UTF-16
    far = best is not None and 2 * sum(c >= "\u2020" for c in str(best)) > len(str(best))
    if best is None or (far and data.isascii()):
        raise RaggdError("it is not text (it holds control characters), whatever its name says.")
    return data.decode(best.encoding)


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
    return valid > 2 * text.count("\ufffd")


def _likely(data: bytes) -> Iterator[str]:
    western = data.decode("cp1252", errors="replace")
    letters = [c for c in western if c.isalpha()]
    accents = sum(not c.isascii() for c in letters)
    turkish = sum(c in _TURKISH for c in letters) and not any(c in _ICELANDIC for c in letters)
    if 2 * accents <= len(letters):
        codings = [*_ALPHABETS, "cp1254"][:: -1 if turkish else 1]
        yield from (coding for coding in dict.fromkeys(codings) if _is_of_one(data, coding))
    if _FAR_SHARE * accents <= len(letters):
        yield from ("cp1254",) if turkish else ("cp1252", "iso8859_15")
    from charset_normalizer import from_bytes

    yield from (match.encoding for match in from_bytes(data, cp_isolation=list(_KNOWN)))


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
    if not all(c.isprintable() or c.isspace() for c in set(text)):
        return False
    return not (_ODD.search(text) or _is_no_language(text) or _is_rare(text, coding))


def _is_rare(text: str, coding: str) -> bool:
    # Chinese characters most of which are outside the common half of their set.
    first, last = _COMMON.get(coding, (0, 0))
    leads = [c.encode(coding, "replace")[0] for c in _CHINESE.findall(text)] if last else []
    return 2 * sum(not first <= lead <= last for lead in leads) > len(leads)


def _is_no_language(text: str) -> bool:
    # Cyrillic letters that nobody writes beside each other, or hardly a vowel; Greek, no accent;
    # Korean without its commonest syllables, or with many Chinese characters; more Hebrew points
    # than letters; Arabic without alef and lam; Latin letters most of which have accents.
    arabic = len(_ARABIC.findall(text))
    if arabic > _SHORT and _RARE * len(_ARABIC_COMMON.findall(text)) < arabic:
        return True
    latin = _LATIN.findall(text)
    if 3 * sum(not c.isascii() for c in latin) > 2 * len(latin):
        return True
    if len(_HEBREW_POINTS.findall(text)) > len(_HEBREW.findall(text)):
        return True
    korean = len(_KOREAN.findall(text))
    common, chinese = len(_KOREAN_COMMON.findall(text)), len(_CHINESE.findall(text))
    if korean and (_RARE * common < korean or _FAR_SHARE * chinese > korean):
        return True
    if len(_GREEK.findall(text)) > _SHORT and not _GREEK_ACCENTS.search(text):
        return True
    text = text.lower()
    if _SERBIAN.search(text) and _EASTERN.search(text):
        return True
    letters, vowels = len(_CYRILLIC.findall(text)), len(_VOWELS.findall(text))
    return letters > _SHORT and _FAR_SHARE * vowels < letters


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
    """Read a table: ``column: value; column: value`` per row, or the values without named columns.

    The delimiter (comma, semicolon, tab, bar) is told from its start.

    Raises:
        RaggdError: the rows cannot be told apart.
    """
    text = read_text(path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    try:
        rows = [[" ".join(cell.split()) for cell in row] for row in _rows(text, path)]
    except csv.Error as error:
        raise RaggdError(f"its rows cannot be read as CSV ({error}).") from error
    rows = [row for row in rows if any(row)]
    at = next((n for n, row in enumerate(rows) if len(row) > 1 and any(row[1:])), 0)
    title, rows = rows[:at], rows[at:]  # exports begin with a title, a date, a remark
    yield Block("\n".join("; ".join(filter(None, row)) for row in title), lines=True)
    if len(rows) > 1 and _names_columns(rows):
        names, values = rows[0], rows[1:]
        filled = {at for row in values for at, cell in enumerate(row) if cell}
        empty = [name for at, name in enumerate(names) if at not in filled]
        yield Block("; ".join(empty))
        yield Block("\n".join(_line(names, row) for row in values), lines=True)
    else:
        yield Block("\n".join("; ".join(filter(None, row)) for row in rows), lines=True)


def _rows(text: str, path: Path) -> list[list[str]]:
    named = _NAMED.match(text)  # as Excel writes it
    if named:
        text, delimiter = text[named.end() :], named[1]
    else:
        tab = path.suffix.lower() == ".tsv" and "\t" in text
        delimiter = "\t" if tab else max(",;\t|", key=partial(_fit, text[:_ROWS_SAMPLE]))

    def read(**dialect: Any) -> list[list[str]]:
        return list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect))

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
    same = Counter(map(len, rows)).most_common(1)
    return same[0][1] if same else 0, -sum(cell[:1] == " " for row in rows for cell in row)


def _names_columns(rows: Sequence[Sequence[str]]) -> bool:
    # The first row, unless it repeats itself or has a number; years over what is none name columns.
    names, values = rows[0], rows[1:]
    named = [name for name in names if name]
    if len(names) < 2 or not all(names[1:]) or len(set(named)) < len(named):  # an index has no name
        return False
    numbers = [at for at, name in enumerate(names) if _NUMBER.fullmatch(name)]
    if not numbers:
        return True
    below = [row[at] for row in values for at in numbers if at < len(row)]
    return (
        len(numbers) < len(named)
        and all(_YEAR.fullmatch(names[at]) for at in numbers)
        and not all(map(_YEAR.fullmatch, below))
    )


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
