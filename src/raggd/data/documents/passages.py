"""From the blocks of a document to passages of about 100 words, each with its heading path.

A document is a stream of blocks. Sections begin at headings; a passage never spans two. Prose is
cut where sentences end, code, lists and tables between lines, and a table's header stands over each
piece. Nothing is lost: whatever is longer than a passage is cut at lines, words, characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import regex

from raggd.data.text import DATA_URI, ONE_UNSPACED, normal_text
from raggd.records import Passage

PASSAGE_WORDS = 100  # about: the size of the Wikipedia passages that the paper retrieves
WORD_CHARACTERS = 12  # that count as a word at least: a bound on what has no spaces
_LONGEST_TITLE = 200
_LONGEST_GAP = 8

_SENTENCE_GAP = re.compile(
    r"(?<=[.!?\u2026\u061f\u06d4\u1362])[\"'\u201d\u2019)\]]*(\s+)(?=[\"'\u201c\u2018(\[]*[^\Wa-z_])"
    r"|(?<=[\u3002\uff01\uff1f\uff61\u0964\u0965\u104b\u17d4])[\u300d\u300f\u201d\u2019\uff09)]*(\s*)"
)
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Mme|Dr|Prof|Sta?|Gen|Col|Sen|Jr|Sra?|No|vs|etc|e\.g|i\.e|cf)"
    r"|(?<![\w.,/-])\d{1,2}|\b(?i:abb|abs|approx|art|bd|ca|ch|eqs?|fax|figs?|kap|max|min|nr|pp?|secs?"
    r"|tab|tel|vol)(?=\.\W*\d))\.[^\w.]*\w?\Z"  # "3. Mai", an entry of a list; "Fig. 2"
)
_PARAGRAPHS = re.compile(r"\n{2,}")
_WIDE_GAP = re.compile(rf"[ \t]{{{_LONGEST_GAP + 1},}}")
_WORD = re.compile(r"\S+")
# Of tables that are drawn: what a line between rows is made of, and a rule over columns.
_LINE = frozenset("-=+:| ")
_RULES = re.compile(r"[ \t]*={2,}(?: +={2,})+[ \t]*")


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a document; one without a text counts for nothing."""

    text: str  # as it stands there, lines kept
    level: int | None = None  # of a heading: 0 for the document's title, 1 for the first rank, ...
    lines: bool = False  # cut only between lines: code, lists, tables
    head: str = ""  # lines to repeat over each piece: a table's header
    lost: str = ""  # instead of a text: what stands here and could not be read, in words


@dataclass(slots=True)
class _Unit:
    # What is kept together, the white space before it, and a header for where a piece begins.
    text: str
    gap: str
    head: str = ""
    size: int = field(init=False)

    def __post_init__(self) -> None:
        self.size = size_of(self.text)


def size_of(text: str) -> int:
    """Return a text's length in words; two characters of an unspaced script are about one."""
    words = len(text.split())
    if not text.isascii():
        words += len(ONE_UNSPACED.findall(text)) // 2
    return max(words, -(-len(text) // WORD_CHARACTERS))


def _sentences(paragraph: str) -> Iterator[tuple[str, str]]:
    """Yield each sentence and the white space before it; an abbreviation ends none."""
    start, gap = 0, ""
    for found in _SENTENCE_GAP.finditer(paragraph):
        group = 1 if found[1] is not None else 2
        end, word = found.start(group), max(start, found.start() - 8)
        if group == 1 and _ABBREVIATION.search(paragraph, word, found.end(1) + 1):
            continue
        if end > start:
            yield paragraph[start:end], gap
        start, gap = found.end(group), found[group]
    if paragraph[start:]:
        yield paragraph[start:], gap


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text, none empty, white space made single.

    >>> split_sentences("Dr. Who left.  Nobody saw him.")
    ['Dr. Who left.', 'Nobody saw him.']
    """
    paragraphs = re.split(r"\n\s*\n", text)
    found = (" ".join(one.split()) for part in paragraphs for one, _ in _sentences(part))
    return [sentence for sentence in found if sentence]


def _tidy(text: str) -> str:
    # Lines stay; white space at their ends and wide gaps go, empty lines become one.
    lines = (_WIDE_GAP.sub(" " * _LONGEST_GAP, line.rstrip()) for line in text.split("\n"))
    return "\n".join(lines).strip("\n")


def _cut(text: str, gap: str, most: int, head: str) -> Iterator[_Unit]:
    """Yield a unit, or pieces of it that fit: whole lines, else words, else characters."""
    unit = _Unit(text, gap, head)
    if unit.size <= most:
        yield unit
        return
    if "\n" in text:
        for line in text.split("\n"):
            yield from _cut(line, gap, most, head)
            gap = "\n"
        return
    start, size = 0, 0
    for at, end in _words(text, most):
        added = size_of(text[at:end])
        if size and size + added > most:
            kept = text[start:at].rstrip()
            yield _Unit(kept, gap, head)
            start, gap, size = at, text[start + len(kept) : at], 0
        size += added
    yield _Unit(text[start:], gap, head)


def _words(text: str, most: int) -> Iterator[tuple[int, int]]:
    """Yield where words begin and end; one that is larger than `most` words is cut."""
    for found in _WORD.finditer(text):
        if size_of(found[0]) <= most:
            yield found.span()
            continue
        step = max(1, most if ONE_UNSPACED.search(found[0]) else most * WORD_CHARACTERS)
        # marks stay with their letters, and signs that are joined to one
        whole = rf"(?s:.{{1,{step}}}(?![\p{{M}}\u200d])(?<!\u200d)|.{{1,{step}}})"
        parts = regex.compile(whole).finditer(text, *found.span())
        yield from (part.span() for part in parts)


def _units(block: Block, most: int) -> Iterator[_Unit]:
    text = _tidy(block.text)
    if block.lines:
        head = _tidy(block.head)
        room = most - size_of(head)
        if 2 * room < most:  # a header that leaves no room for rows is a row
            text, head, room = f"{head}\n{text}", "", most
        whole = "\n".join(filter(None, (head, text)))
        if 2 * size_of(whole) <= most:
            yield _Unit(whole, "\n\n")
            return
        gap, over = "\n\n", f"{head}\n" if head else ""
        for line in filter(str.strip, text.split("\n")):
            for unit in _cut(line, gap, room, head):
                yield _Unit(over + unit.text, unit.gap) if over else unit
                gap, over = "\n", ""
        return
    for paragraph in _PARAGRAPHS.split(text):
        gap = "\n\n"
        if table := _drawn(paragraph):
            yield from _units(table, most)
            continue
        for sentence, before in _sentences(paragraph):
            yield from _cut(sentence, before or gap, most, "")
            gap = ""


def _drawn(paragraph: str) -> Block | None:
    # A paragraph that is a table of bars or rules, as a block with its header.
    lines = paragraph.strip().split("\n")
    if len(lines) < 3:
        return None
    if _RULES.fullmatch(lines[0]) and _RULES.fullmatch(lines[-1]):
        rules = [at for at, line in enumerate(lines) if _RULES.fullmatch(line)]
        head = rules[1] + 1 if len(rules) > 2 else 0
    elif all(line.strip()[:1] in {"|", "+"} and line.rstrip()[-1:] in {"|", "+"} for line in lines):
        rules = [n for n, line in enumerate(lines) if set(line) <= _LINE and set(line) & {"-", "="}]
        double = [at for at in rules if "=" in lines[at]]  # it ends the header, if there is one
        head = next((at + 1 for at in double or rules if at), 0)
    else:
        return None
    return Block("\n".join(lines[head:]), lines=True, head="\n".join(lines[:head]))


def split_blocks(blocks: Iterable[Block], words: int = PASSAGE_WORDS) -> list[str]:
    """Put blocks of one section, no headings, together into pieces of about `words` words.

    Whole sentences are put together while they fit; a last piece of less than a quarter of `words`
    joins the one before. No piece is empty, or longer than 1.25 x `words` words or 20 x `words`
    characters; but for repeated headers, they give every word of the blocks in order.

    >>> split_blocks([Block("One two three. Four five. Six seven eight nine.")], words=5)
    ['One two three. Four five.', 'Six seven eight nine.']
    """
    pieces: list[list[_Unit]] = [[]]
    size = 0
    for block in blocks:
        for unit in _units(block, words):
            if pieces[-1] and size + unit.size > words:
                pieces.append([])
                size = size_of(unit.head) if unit.head else 0
            pieces[-1].append(unit)
            size += unit.size
    if len(pieces) > 1 and 4 * size < words:
        last = pieces.pop()
        pieces[-1].extend(last)
    return [_joined(piece) for piece in pieces if piece]


def _joined(units: list[_Unit]) -> str:
    first = units[0]
    start = f"{first.head}\n{first.text}" if first.head else first.text
    return "".join([start, *(unit.gap + unit.text for unit in units[1:])])


def passages_of(
    blocks: Iterable[Block], name: str, stem: str, lost: list[str]
) -> Iterator[Passage]:
    """Yield the passages of a document, titled by their whole heading path, ``A > B > C``.

    Without a heading the title is `stem`; `name`, the file's, is their source and begins their ids.
    What could not be read is appended to `lost`.
    """
    source, number = normal_text(name), 0  # some systems keep names decomposed; ids stay apart
    for path, section in _sections(blocks, lost):
        names = path or [normal_text(stem)]
        title = " > ".join(heading for heading, _ in groupby(names))
        for piece in filter(str.strip, split_blocks(section)):
            number += 1
            yield Passage(f"{name}#{number}", piece, title, source)


def _sections(blocks: Iterable[Block], lost: list[str]) -> Iterator[tuple[list[str], list[Block]]]:
    # Headings above, and blocks. A heading with nothing under it, not even deeper ones, is its own
    # text.
    path: list[tuple[int, str]] = []
    held: list[Block] = []
    for block in blocks:
        if block.lost:
            lost.append(block.lost)
        text, head = (DATA_URI.sub("", normal_text(part)) for part in (block.text, block.head))
        if block.level is None:
            if text.strip() or head.strip():
                held.append(Block(text, None, block.lines, head))
            continue
        text = " ".join(text.split())
        if not text:
            continue
        if held or (path and block.level <= path[-1][0]):
            yield [heading for _, heading in path], held or [Block(path[-1][1])]
        while path and path[-1][0] >= block.level:
            path.pop()
        short = text if len(text) <= _LONGEST_TITLE else text[: _LONGEST_TITLE - 1] + "\u2026"
        path.append((block.level, short))
        held = [] if short == text else [Block(text)]
    if held or path:
        yield [heading for _, heading in path], held or [Block(path[-1][1])]
