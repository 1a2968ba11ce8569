"""What answers share around a value, piece by piece: literal text, and the name of a passage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from raggd.data.answers import held
from raggd.data.contracts.letters import CAPITALS, FIGURES, LETTERS, RESPELLED, Figure
from raggd.data.shown import may_cut, says_no, shared_ends
from raggd.data.text import UNSPACED, in_word, is_boundary
from raggd.records import Demonstration, Passage

_MARK = re.compile(r"[^\w\s]|\n")
_LETTER_MARKS = {"slug": "-", "snake": "_", "upper": "", "lower": ""}
_LONGEST_WORD = 60  # characters of a word, marks after it included, that may belong to an entity
_MOST_RESPELLED = 5  # words of a name
_MOST_WORDS = 16  # words beside a value that may belong to an entity with it
_WORD = re.compile(r"\w+")
_LETTER = re.compile(r"[^\W\d_]")
_LINK, _NAME = r"(?:(?:of|de|the|and|von|van|da|di|la) )?", r"[A-ZÀ-ÖØ-Þ][\w'.]*"
_WORD_BEFORE = rf"{_NAME} {_LINK}$|\w[\w,.'-]*[\s_-]+$|\w[\w.-]*[_@/.-]$|[{UNSPACED}]+$"
_WORD_BEHIND = rf"^(?:[\s_-]+|[@/.])\w(?:[\w,.'-]*\w)?|^[{UNSPACED}]+"
_SAYS = re.compile(r"(?!(?:the|der|die|das|den|dem|les?|la|el|los|las|il|lo|het)\s)[a-zß-ÿ].*\s$")
_LONGEST_ONLY, _SMALL, _MOST_OWN = 300, 3, 4
"""Of an answer that is the only one: its characters, letters of words that may stand in any text,
and words beside the part that passages hold from which on it is prose."""
_ALONE = (r"(?<!\w)(?<!\d[.,:/-])", r"(?!\w)(?![.,:/-]\d)")  # no part of a word or a number
_KEY = re.compile(r'"[^"\\\n]{1,60}"\s?:')  # of JSON: no word of an answer
_NUMBER = re.compile(r"(?<!\S)\d+(?!\S)")  # among words: it is told, and marks nothing
# share of names that passages are to hold whole: capitals stand beside others by chance, too
_LEAST_WHOLE = {"initials": 2 / 3, "first-word": 2 / 3, "last-word": 1.0}
_IN_TITLE = re.compile(r"\(([^()]+\.\w+)\)$")


class Piece(NamedTuple):
    """A part of an answer: literal text, or a slot."""

    # none of text; ``x``: the value, ``n`` and ``t``: number, name of the passage with it
    kind: str
    text: str = ""


VALUE = Piece("x")
NAMES: Mapping[str, Callable[[Passage], str]] = {
    "title": lambda p: p.title,
    "path": lambda p: p.source,
    "file": lambda p: p.source.rpartition("/")[2],
    "titled-file": lambda p: next(iter(_IN_TITLE.findall(p.title)), ""),
    "heading": lambda p: p.title.rpartition(" > ")[2],
    "document": lambda p: p.title.partition(" > ")[0],
}
"""What answers call a passage by; a title may end with its file in parentheses, or be a path of
headings."""


def cited_names(passages: Sequence[Passage]) -> set[str]:
    """Return names and numbers, from 1, that an answer may call one of the passages by."""
    names = {name(p) for p in passages for name in NAMES.values()}
    return {n for n in names if n} | {str(i + 1) for i in range(len(passages))}


def verbatim(text: str, shown: Demonstration) -> bool:
    """Return whether a demonstration's passages hold a text as it is written, in whole words."""
    return any(_stands_in(text, passage.text) for passage in shown.passages)


def is_part(value: str, passages: Sequence[Passage]) -> bool:
    """Return whether a passage or its title holds a text as it is written, as words of its own."""
    texts = (" ".join(text.split()) for p in passages for text in (p.title, p.text))
    return any(_stands_in(value, text) for text in texts)


def _stands_in(value: str, text: str) -> bool:
    return any(
        is_boundary(text, found.start()) and is_boundary(text, found.end())
        for found in re.finditer(re.escape(value), text)
    )


def are_sentences(texts: Sequence[str]) -> bool:
    """Return whether all texts are whole sentences."""
    return all(len(text.split()) > 3 and re.search(r"[.!?]\W*$", text) for text in texts)


def pieces_of(answered: Sequence[Demonstration]) -> list[Piece]:
    """Return what answers share, in order, around a value and the name of a passage.

    A single value where they share nothing, or are written in their passages as they are.
    """
    answers = [d.answer.strip() for d in answered]
    if len(answers) > 1 == len(set(answers)) or all(map(verbatim, answers, answered)):
        return [VALUE]
    columns: list[Sequence[str]] = [answers]
    if len({answer.count("\n") for answer in answers}) == 1:
        columns = list(zip(*(answer.split("\n") for answer in answers), strict=True))
    pieces: list[Piece] = []
    for column in columns:
        pieces += [*_cited(column, answered), Piece("", "\n")]
    pieces = _without_marks(pieces[:-1], answers)
    kinds = {piece.kind for piece in pieces} - {""}
    if "x" not in kinds:  # the name or number is what is asked for
        pieces = [VALUE if piece.kind else piece for piece in pieces]
    sentences = pieces == [VALUE, Piece("", ".")] and are_sentences(answers)
    return pieces if kinds and not sentences else [VALUE]


def _without_marks(pieces: list[Piece], answers: Sequence[str]) -> list[Piece]:
    # a number that is the same beside every name is the mark of a note, [^1], and no passage's
    if not {"n", "t"} <= {piece.kind for piece in pieces}:
        return pieces
    read = [read_answer(pieces, answer) or [] for answer in answers]
    numbers = {piece.text for found in read for piece in found if piece.kind == "n"}
    return [Piece("", *numbers) if p.kind == "n" and len(numbers) == 1 else p for p in pieces]


def read_answer(pieces: Sequence[Piece], answer: str) -> list[Piece] | None:
    """Return what an answer holds in the slots, in order; None where it is not so written."""
    slots = {"x": "(.+?)", "n": r"(\d+)", "t": r"([^\n]+?)"}
    parts = [slots[kind] if kind else re.escape(text) for kind, text in pieces]
    match = re.fullmatch("".join(parts), answer.strip(), re.DOTALL)
    kinds = [piece.kind for piece in pieces if piece.kind]
    return [Piece(*pair) for pair in zip(kinds, match.groups(), strict=True)] if match else None


def _cited(column: Sequence[str], answered: Sequence[Demonstration]) -> list[Piece]:
    # a column of texts in which each names a passage of its own, if there is one: split there
    for kind, last in (("t", True), ("n", True), ("t", False), ("n", False)):
        found = [_citation(t, d, kind, last) for t, d in zip(column, answered, strict=True)]
        spans = [span for span in found if span]
        if len(spans) < len(found):
            continue
        left = [text[:start] for text, (start, _) in zip(column, spans, strict=True)]
        right = [text[end:] for text, (_, end) in zip(column, spans, strict=True)]
        ends, begins = shared_ends(left)[1], shared_ends(right)[0]
        marked = _MARK.search(ends + begins) or not any([*left, *right])
        if marked and (ends or not any(left)) and (begins or not any(right)):
            before, behind = _cited(left, answered), _wrapped(right, answered)  # a link has two
            if VALUE not in (*before, *behind):
                before = _wrapped(left, answered)
            return [*before, Piece(kind), *behind]
    return _wrapped(column, answered)


def _citation(text: str, shown: Demonstration, kind: str, last: bool) -> tuple[int, int] | None:
    names = cited_names(shown.passages)
    kept = [n for n in names if (n.isdigit() if kind == "n" else len(n) > 2 and not n.isdigit())]
    spans = [
        found.span()
        for name in kept
        for found in re.finditer(rf"{_ALONE[0]}{re.escape(name)}{_ALONE[1]}", text)
    ]
    if not spans:
        return None
    return max(spans, key=lambda s: (s[1], s[1] - s[0])) if last else min(spans)


def _wrapped(column: Sequence[str], answered: Sequence[Demonstration]) -> list[Piece]:
    if not any(column):
        return []
    ends = shared_ends(column) if len(set(column)) > 1 else None
    if len(column) == 1:
        ends = _around(column[0], answered[0])
    if ends is None:
        return [Piece("", column[0])]
    start, end = _without_entity(*ends, column, answered)
    pieces = [Piece("", start), VALUE, Piece("", end)]
    return [piece for piece in pieces if piece.kind or piece.text]


def _around(text: str, shown: Demonstration) -> tuple[str, str] | None:
    # what stands around the longest part of an only answer that its passages hold: a wrapping, if
    # it has no word of theirs or of the question; None where they hold no part
    if says_no(shown) or len(text) > _LONGEST_ONLY:
        return "", ""
    told = " ".join(f"{p.title} {p.text}" for p in shown.passages)
    keys = {i for key in _KEY.finditer(text) for i in range(*key.span())}
    cuts = [at for at in range(len(text) + 1) if at not in keys and may_cut(text, at)]
    spans = [(i, j) for i in cuts for j in cuts if j - i > 1 and text[i:j] in told]
    spans.sort(key=lambda span: span[0] - span[1])
    words = ((i, j) for i, j in spans if in_word(text[i]) and in_word(text[j - 1]))
    first, last = next((s for s in words if is_part(text[slice(*s)], shown.passages)), (0, 0))
    if not last:
        return None
    start, end = text[:first], text[last:]
    known = set(_WORD.findall(f"{shown.question} {told}".lower()))
    beside = _KEY.sub(" ", f"{start} {end}".lower())
    own = {word for word in _WORD.findall(beside) if len(word) > _SMALL}
    prose = own & known or len(own) > _MOST_OWN or _NUMBER.search(beside)
    return ("", "") if prose else (start, end)


def _without_entity(
    start: str, end: str, column: Sequence[str], answered: Sequence[Demonstration]
) -> tuple[str, str]:
    # words that stand beside the entity in the passages too are its own: 'the', 'University of'
    for word in (_WORD_BEFORE, _WORD_BEHIND):
        said = ""  # the start before a verb or a preposition: 'It costs'
        for _ in range(_MOST_WORDS):
            before = word == _WORD_BEFORE
            near = start[-_LONGEST_WORD:] if before else end[:_LONGEST_WORD]
            match = re.search(word, near)
            if match is None:
                break
            first = start[: len(start) - len(near) + match.start()] if before else start
            last = end if before else end[match.end() :]
            bare = [text[len(first) : len(text) - len(last)] for text in column]
            if not all(map(held, bare, answered)):
                break
            said = said or (start if before and _SAYS.match(match[0]) else "")
            start, end = first, last
        # it belongs to what the answers say, unless all of that is a sentence of the passages
        start = said if said and start.strip() else start
    return start, end


def possible_letters(values: Sequence[str]) -> Iterator[str]:
    """Yield the changes of letters that values may have gone through, by their spelling alone."""
    if not any(map(_LETTER.search, values)):
        return
    cased = any(value.lower() != value.upper() for value in values)
    for name, mark in _LETTER_MARKS.items():
        # letters that are neither capitals nor small tell nothing
        tells = any(mark in value for value in values) if mark else cased
        if tells and all(LETTERS[name](value) == value for value in values):
            yield name


def letters_of(values: Sequence[str], shown: Sequence[Demonstration]) -> tuple[str, list[str]]:
    """Find the change of letters that values show, each against its own demonstration's passages.

    Returns its name and the values before it; ``same`` where passages spell most values as they
    are, or hold none of them.
    """
    for name, before, tells in _readings(values):
        found = [before(value, d) for value, d in zip(values, shown, strict=True)]
        pairs = list(zip(found, values, strict=True))
        if tells(pairs):
            guess = _guess if name in LETTERS else str
            return name, [old or guess(new) for old, new in pairs]
    return "same", list(values)


_Pairs = Sequence[tuple[str | None, str]]  # what passages have for a value, if they do; the value
_Reading = tuple[str, Callable[[str, Demonstration], str | None], Callable[[_Pairs], bool]]


def _readings(values: Sequence[str]) -> Iterator[_Reading]:
    # changes that leave all values as they are: name, what finds a value before, what tells of it
    several = len(values) > 1
    for name, figure in FIGURES.items() if values else ():
        if all(re.fullmatch(figure.written, value) for value in values):
            yield name, partial(_spelt, figure), _half_changed
    for name in possible_letters(values):
        yield name, _as_written, partial(_other_letters, LETTERS[name])
    if several and all(len(value.split()) == 1 for value in values):
        for name, least in _LEAST_WHOLE.items():
            yield name, partial(_whole_name, name), partial(_most_found, least)
    for name, change in CAPITALS.items():
        if all(change(value) == value for value in values):
            yield name, _as_written, partial(_more_capitals, change)
    for name, change in RESPELLED.items() if several else ():
        if all(change(value) == value for value in values):
            yield name, partial(_before, change), _half_changed


def _half_changed(pairs: _Pairs) -> bool:
    # passages hold all, half of them at least in another spelling
    return all(old for old, _ in pairs) and 2 * sum(old != new for old, new in pairs) >= len(pairs)


def _other_letters(change: Callable[[str], str], pairs: _Pairs) -> bool:
    # half of those that have letters; or one by more than the capital of a sentence, if passages
    # hold all; 2 450 for 2,450 is no change of letters
    letters = _LETTER.findall
    if all(letters(old) == letters(new) and change(old) != new for old, new in pairs if old):
        return False
    lettered = [old for old, new in pairs if _LETTER.search(new)]
    changed = sum(old not in {None, new} for old, new in pairs)
    more = any(old and old[1:] != new[1:] for old, new in pairs)
    return 2 * changed >= len(lettered) or (more and all(lettered))


def _most_found(least: float, pairs: _Pairs) -> bool:
    return sum(bool(old) for old, _ in pairs) >= least * len(pairs)


def _more_capitals(change: Callable[[str], str], pairs: _Pairs) -> bool:
    # names have theirs in passages, too: one value that got some tells, if none speaks against it
    known = [(old, new) for old, new in pairs if old]
    some = any(old != new for old, new in known) and 2 * len(known) > len(pairs)
    return some and all(change(old) == new for old, new in known)


def _spelt(figure: Figure, value: str, shown: Demonstration) -> str | None:
    text = "\n".join(p.text for p in shown.passages)
    known = (old for old in figure.among(text) if figure.change(old) == value)
    return value if verbatim(value, shown) else next(known, None)


def _before(change: Callable[[str], str], value: str, shown: Demonstration) -> str | None:
    # the fewest words of a passage that a change makes a value of
    for passage in shown.passages:
        words = [m.span() for m in re.finditer(r"\w[\w'’.-]*(?<=\w)", passage.text)]
        for more in range(_MOST_RESPELLED):
            for (start, _), (_, end) in zip(words, words[more:], strict=False):
                if change(passage.text[start:end]) == value:
                    return passage.text[start:end]
    return None


def _whole_name(kind: str, value: str, shown: Demonstration) -> str | None:
    # the name that a value is left of, where passages first hold it
    text = "\n".join(p.text for p in shown.passages)
    if kind == "initials":
        letters = value if re.fullmatch(r"[A-Z\d]{2,6}", value) else ""
        words = r"[\w'.]*\W{1,3}".join(letters)
        match = re.search(rf"(?<!\w){words}[\w'.]*", text) if letters else None
        return match[0] if match else None
    match = re.search(rf"(?<![\w-]){re.escape(value)}(?!\w)", text)
    if match is None or not value[0].isupper():
        return None
    if kind == "first-word":
        more = re.compile(rf"(?:[ -]{_LINK}{_NAME})+").match(text, match.end())
        return match[0] + more[0] if more else None
    near = text[max(0, match.start() - _LONGEST_WORD) : match.start()]
    before = re.search(rf"(?:{_NAME}[ -]{_LINK})+$", near)
    return before[0] + match[0] if before else None


def _as_written(value: str, shown: Demonstration) -> str | None:
    text = "\n".join(f"{p.title}\n{p.text}" for p in shown.passages)
    if value in text:
        return value
    # marks alone are no words: they would match what stands between in more ways than there is time
    parts = [part for part in re.split(r"[-_\s]+", value) if part]
    told = [part for part in parts if re.search(r"\w", part)]
    if not told or parts[0] != told[0] or parts[-1] != told[-1]:
        return None  # marks around it are written, and would be lost
    words = r"[\W_]+".join(map(re.escape, told))
    match = re.search(rf"(?<!\w){words}(?!\w)", text, re.IGNORECASE)
    return match[0] if match else None


def _guess(value: str) -> str:
    plain = re.sub(r"[-_]+", " ", value)
    return plain.title() if plain.isupper() else plain
