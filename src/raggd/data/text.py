"""The one normal form of text, for passages, questions, answers, prompts and the index alike.

`normal_text` changes nothing that a reader sees: composed letters (NFC), a line feed for every line
end, no control characters, no invisible ones. `search_form` goes further, for comparing: it also
undoes widths, vowel points and the like. SQuAD's metric has a form of its own (`data.answers`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from contextlib import suppress
from typing import Any

from raggd.records import RaggdError

# Most text holds nothing else than these, and is its own normal form.
_OTHER = re.compile(
    "[^\n\t -~\xa1-\xa7\xa9-\xac\xae\xb0-\xb3\xb5-\xb7\xb9-\u012f\u0132-\u0217\u021c-\u02b8"
    "\u02c0-\u02d7\u2010-\u2016\u2018-\u2027\u2030-\u203d\u203f-\u205e]"
)
_LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
# What colours a terminal, control characters, and format characters that show nothing: soft
# hyphens, marks of direction, zero-width spaces, byte order marks, tags. Joiners (U+200C, U+200D)
# shape letters and emoji: kept.
_INVISIBLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]"
    "|[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
)
_LIGATURE = re.compile("[\ufb00-\ufb4f\ufb50-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]+")
_SURROGATE = re.compile("[\ud800-\udfff]")

DATA_URI = re.compile(
    r"\bdata:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*;base64,[\w+/=%-]*"
    r"|\bdata:[\w.+-]+/[\w.+-]+[;,][^\s)\"'<>\]]*"
)
"""A file within a text: nothing to read."""

_FOLDED = re.compile(
    # joiners, the Arabic lengthening stroke, variation selectors; points and accents that no
    # letter is composed with: of Latin, Greek, Cyrillic, Hebrew, Arabic, Syriac
    "[\u200c\u200d\u0640\ufe00-\ufe0f\U000e0100-\U000e01ef\u0300-\u036f\u0483-\u0489\u0591-\u05bd"
    "\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4"
    "\u06e7\u06e8\u06ea-\u06ed\u0711\u0730-\u074a\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff"
    "\ufe20-\ufe2f]"
)
# Letters that one word is written with and without: Arabic alef, yeh and kaf, Russian yo, Turkish i
# with and without its dot (one letter as capitals of other languages), Romanian s and t with a
# comma for a cedilla, letters like an apostrophe; of Greek ones the accents, which capitals lack.
_LETTERS = str.maketrans(
    "\u0622\u0623\u0625\u0671\u0649\u06cc\u06a9\u0130\u0131\u0451\u0401\u0219\u0218\u021b\u021a"
    "\u02b9\u02bb\u02bc\u02bd\u02be\u02bf",
    "\u0627\u0627\u0627\u0627\u064a\u064a\u0643Ii\u0435\u0415\u015f\u015e\u0163\u0162''''''",
)
# Signs that are no part of the word beside them, but letters and digits in their compatible form:
# of a trade mark, a fraction, a number in a circle; digits that name a note behind a word.
_BESIDE = re.compile(
    "[\u2116\u2120-\u2122\xbc-\xbe\u2150-\u215f\u2189\u2460-\u24ff\xb9\xb2\xb3\u2070\u2074-\u2079]"
    "(?:(?<![\xb9\xb2\xb3\u2070\u2074-\u2079])|"
    r"(?<=[^\W\d_]{3}.)[\xb9\xb2\xb3\u2070\u2074-\u2079]*(?!\w))"
)
_DIGIT = re.compile(r"[^\D0-9]")
_GREEK = re.compile("[\u0370-\u03ff\u1f00-\u1fff]+")

UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aad\u1b00-\u1b7f"
    "\u3005-\u3007\u3040-\u30ff\u3100-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\ua4cf"
    "\ua960-\ua97f\ua980-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff\U0001b000-\U0001b16f"
    "\U00020000-\U0003ffff"
)
"""Ranges, for a character class, of scripts that put no spaces between words (or, as Korean, long
endings on them): Thai, Lao, Burmese, Khmer and their kin, Chinese, Japanese, Korean, Yi."""
INDIC = "\u0900-\u0963\u0966-\u096f\u0971-\u0dff"
"""Ranges of scripts that write vowels as marks, which the module re takes for no part of a word."""
ONE_UNSPACED = re.compile(f"[{UNSPACED}]")


def normal_text(text: str) -> str:
    r"""Bring text of any origin into the normal form, which is its own normal form.

    Halves of surrogate pairs become U+FFFD.

    >>> normal_text("main\u00adten\u00adance\r\no\ufb03ce")
    'maintenance\noffice'
    """
    if not _OTHER.search(text):
        return text
    text = _SURROGATE.sub("\ufffd", text)
    text = _INVISIBLE.sub("", _SPACE.sub(" ", _LINE_END.sub("\n", text)))
    text = _LIGATURE.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    return unicodedata.normalize("NFC", text)


def in_word(character: str) -> bool:
    """Return whether a character is a part of a word: a letter, a digit, or a mark on one."""
    return character.isalnum() or _is_mark(character)


def _is_mark(character: str) -> bool:
    return unicodedata.category(character)[0] == "M"


def is_boundary(text: str, at: int) -> bool:
    """Return whether an answer may begin or end at a place: no word goes on across it.

    >>> is_boundary("in Turin", 3), is_boundary("in Turin", 5)
    (True, False)
    """
    if at in {0, len(text)}:
        return True
    before, after = text[at - 1], text[at]
    if _is_mark(after):
        return False
    return bool(ONE_UNSPACED.search(before + after)) or not (in_word(before) and in_word(after))


# Roles of MyST and reStructuredText, and where their links lead; links and marks of Markdown.
_ROLE = re.compile(r"\{[\w:.+-]{1,60}\}(?=`)|(?<![\w:]):[\w:.+-]{1,60}:(?=`)")
_TARGET = re.compile(r"`([^`<>\n]{1,200}?) ?<[^`<>\n]{1,400}>`_{0,2}")
_LINK = re.compile(r"(?<![\w)])!?\[([^\[\]\n]{0,200})\]\([^()\s]{0,400}(?: \"[^\"\n]{0,200}\")?\)")
_MARKED = tuple(
    re.compile(
        rf"(?<![\w{kind}]){mark}([^\s{kind}](?:[^{kind}\n]{{0,200}}[^\s{kind}])?){mark}(?![\w{kind}])"
    )
    for mark, kind in (("`{1,2}", "`"), (r"\*{1,3}", "*"), ("~~", "~"))
)


def without_marks(text: str) -> str:
    """Return Markdown as it is read aloud: without emphasis, code marks, and where links lead.

    >>> without_marks("*structlog* needs [`rich`](https://x.org) and {func}`a_b.c()`, 2 * 3")
    'structlog needs rich and a_b.c(), 2 * 3'
    """
    text = _LINK.sub(r"\1", _TARGET.sub(r"`\1`", _ROLE.sub("", text)))
    for marked in _MARKED:
        text = marked.sub(r"\1", text)
    return text


def search_form(text: str) -> str:
    """Bring text into the form in which words are compared; upper and lower case stay.

    It is the normal form without compatibility forms (wide letters, superscripts), joiners, vowel
    points and accents that have no composed letter, with the digits 0 to 9 for those of any script.
    """
    plain = not _OTHER.search(text)
    if plain and text.isascii():
        return text
    text = text if plain else normal_text(text)
    text = text.replace("\xdf", "ss").replace("\u1e9e", "SS").replace("\u2122", " ")
    text = unicodedata.normalize("NFKC", _BESIDE.sub(r" \g<0> ", text))
    if plain:
        return text
    text = _GREEK.sub(lambda found: unicodedata.normalize("NFD", found[0]), text)
    text = _DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), text)
    return _FOLDED.sub("", text).translate(_LETTERS)


_JSON_NAMES = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}


def text_of(value: Any, what: str, where: str) -> str:
    """Return a text or number of JSON as text in the normal form; refuse anything else."""
    if isinstance(value, str):
        return normal_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
        with suppress(ValueError):  # Python writes no number of more than some thousand digits
            return str(value)
    raise RaggdError(
        f"{where}: {what} is {_JSON_NAMES.get(type(value), 'no text')}: expected text."
    )
