"""Plain text, and reStructuredText with its headings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from raggd.data.documents.encodings import decode
from raggd.data.documents.passages import Block
from raggd.data.text import normal_text

_RULE = re.compile(r"(?!::|\.\.)([=\-`:.'\"~^_*+#<>])\1*\s*$|([:.])\2{2,}\s*$")


def read_text(path: Path) -> str:
    """Return the text of a file, whatever its encoding, in the normal form."""
    return normal_text(decode(path.read_bytes()))


def read(path: Path) -> Iterator[Block]:
    """Read plain text.

    Args:
        path: the file.

    Yields:
        One block.
    """
    yield Block(read_text(path))


def read_rst(path: Path) -> Iterator[Block]:
    """Read reStructuredText: a line over a rule of marks is a heading, in the order of the marks.

    Args:
        path: the file.

    Yields:
        Headings and what stands under them.
    """
    lines = read_text(path).split("\n")
    ranks: list[str] = []
    held: list[str] = []
    at = 0
    while at < len(lines):
        over = _RULE.match(lines[at])
        title = lines[at + 1] if over and at + 1 < len(lines) else lines[at]
        under = at + (2 if over else 1)
        rule = _RULE.match(lines[under]) if under < len(lines) and title.strip() else None
        if (
            rule is None
            or len(rule[0].rstrip()) < len(title.rstrip())
            or (over and over[1] != rule[1])
        ):
            held.append(lines[at])
            at += 1
            continue
        yield Block("\n".join(held))
        held = []
        style = rule[1] * (2 if over else 1)
        if style not in ranks:
            ranks.append(style)
        yield Block(title, level=ranks.index(style) + 1)
        at = under + 1
    yield Block("\n".join(held))
