"""HTML pages: headings, prose, lists, code and tables; no scripts, styles or navigation."""

from __future__ import annotations

import codecs
import html
import re
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any

from raggd.data.documents.passages import Block
from raggd.data.documents.plain import decode
from raggd.files import BYTE_ORDER_MARKS

_DECLARED = re.compile(
    rb"<(?:meta[^<>]{0,200}charset|\?xml[^<>]{0,200}encoding)\s*=\s*[\"']?([\w-]+)", re.IGNORECASE
)
# What browsers take a declared name for, since pages hold the larger set's characters.
_LARGER = {"iso8859-1": "cp1252", "ascii": "cp1252", "iso8859-9": "cp1254", "tis-620": "cp874"}
_LARGER |= {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}
_END = re.compile(r"</(?:html|body)\s*>", re.IGNORECASE)
_BREAK = "\u2028"
_MARKED = "\ufdd0"  # no character: behind the mark of an entry, whatever elements its text is in
_ANCHOR = re.compile("[#\xa7\xb6\U0001f517\\s]*")  # what links to the heading that it stands in
_HEADINGS = {"h1", "h2", "h3", "h4", "h5", "h6"}
_OUTSIDE = {"caption", "colgroup", "col", "thead", "tbody", "tfoot", "tr"}
_NO_CELLS = ("table", "h1", "h2", "h3", "h4", "pre", "form")
_LEFT_OUT = {"script", "style", "template", "svg", "nav", "iframe", "object"}
_LEFT_OUT |= {"rt", "rp", "rtc", "annotation", "annotation-xml"}  # readings; formulas once more
_BETWEEN = {"mfrac": "/", "msup": "^", "msub": "_"}  # parts of a formula: 1/2 is not 12
_NUMBER = re.compile("[0-9]{1,4}")
_LONGEST_REPEATED, _WIDEST = 200, 20
_INLINE = frozenset(
    re.findall(
        r"[\w-]+",
        "annotation annotation-xml script style svg template "  # unseen, too
        "a abbr acronym b br bdi bdo big button cite code data del dfn em font i img input ins kbd "
        "label mark meter output progress q s rb rp rt rtc ruby samp small span strike strong sub "
        "sup time tt u var wbr math mfrac mi mn mo mover mrow ms msqrt mstyle msub msubsup msup "
        "mtext munder semantics",
    )
)


def read(path: Path) -> Iterator[Block]:
    """Read a page; its encoding is the one that it declares, or as for plain text."""
    data = path.read_bytes()
    declared = None if data.startswith(tuple(BYTE_ORDER_MARKS)) else _DECLARED.search(data[:4096])
    if not data.isascii():
        with suppress(UnicodeDecodeError):
            data.decode("utf-8")
            declared = None  # bytes that are UTF-8 by chance are rarer than untrue declarations
    if declared:
        with suppress(LookupError, UnicodeError):  # no such name, or no such text
            name = codecs.lookup(declared[1].decode()).name
            if not name.startswith(("utf-16", "utf-32")):  # the declaration would not be readable
                return blocks_of(data.decode(_LARGER.get(name, name)))
    return blocks_of(decode(data))


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of a page, or of a piece of one, such as Markdown holds."""
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        # what follows the end of a page, perhaps another page, belongs to it for browsers
        data = _END.sub("", _without_sections(text)).encode("utf-8", "replace")
        root = lxml.html.document_fromstring(data, parser=parser)
    except lxml.etree.ParserError:  # there is nothing in it
        return
    for title in root.findall("head/title"):  # pictures have titles of their own
        yield Block(title.text or "", level=0)
        title.drop_tree()  # what else is in a head is left out below, or a body that never began
    for inner in root.iter(*_BETWEEN):
        if len(inner) > 1:
            inner[0].tail = _BETWEEN[inner.tag]
    yield from _blocks(root)
    if any(error.type_name == "ERR_RESOURCE_LIMIT" for error in parser.error_log):
        yield Block("", lost="what stands behind elements nested too deeply (in 2048 others)")


def _without_sections(text: str) -> str:
    # The text of XHTML's CDATA, as other text, and so what never ends: the parser takes both for
    # a comment.
    first, *others = text.split("<![CDATA[")
    parts = [first]
    for other in others:
        inner, end, rest = other.partition("]]>")
        parts.append(html.escape(inner) + rest if end else f"&lt;![CDATA[{other}")
    return "".join(parts)


def _blocks(root: Any) -> Iterator[Block]:
    from lxml.etree import iterwalk

    held: list[str] = []
    numbers: dict[Any, int] = {}
    walk = iterwalk(root, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        tag = element.tag
        if event == "start":
            if tag not in _INLINE:
                yield from _prose(held)
            whole = _whole(element)
            if whole is not None:
                held.clear()
                yield from whole
            if whole is not None or _is_left_out(element):
                walk.skip_subtree()
                continue
            if mark := _mark(element, numbers):
                held[:] = [mark, _MARKED]
            held.append(_shown(element))
        else:
            if event == "end" and tag not in _INLINE:
                yield from _prose(held)
                if tag in {"li", "dd"}:
                    held.clear()
            held.append(element.tail or "")
    yield from _prose(held)


def _mark(element: Any, numbers: dict[Any, int]) -> str:
    # What stands before an entry of a list.
    if element.tag not in {"li", "dd"}:
        return ""
    parent = element.getparent()
    if element.tag == "dd" or parent.tag != "ol":
        return ": " if element.tag == "dd" else "- "
    number = _count(element, "value", numbers.get(parent) or _count(parent, "start"))
    numbers[parent] = number + 1
    return f"{number}. "


def _shown(element: Any) -> str:
    from lxml.html.defs import tags

    if element.tag in {"img", "br"}:
        return _BREAK if element.tag == "br" else element.get("alt") or ""
    # components of documentation have headings as attributes: <Card title="Speed limit">
    named = None if element.tag in tags else element.get("title") or element.get("label")
    return (f"{named}{_BREAK}" if named else "") + (element.text or "")


def _is_left_out(element: Any) -> bool:
    anchor = element.tag == "a" and not len(element) and _ANCHOR.fullmatch(element.text or "")
    return element.tag in _LEFT_OUT or bool(anchor) or _is_drawn_formula(element)


def _is_drawn_formula(element: Any) -> bool:
    # what is shown for one that stands beside it for screen readers
    if element.tag not in _INLINE or element.get("aria-hidden") != "true":
        return False
    beside = (each for each in (element.getprevious(), element.getnext()) if each is not None)
    return any(next(each.iter("math"), None) is not None for each in beside)


def _prose(held: list[str]) -> Iterator[Block]:
    mark, marked, said = "".join(held).rpartition(_MARKED)
    if marked and not said.strip():
        return
    lines = (" ".join(line.split()) for line in f"{mark}{said}".split(_BREAK))
    held.clear()
    text = "\n".join(lines).strip("\n")
    if text:
        yield Block(text)


def _whole(element: Any) -> list[Block] | None:
    """Return what an element is as a whole; None: what stands in it is read piece by piece."""
    tag = element.tag
    if tag in _HEADINGS:
        return [Block(_text(element), level=int(tag[1]))]
    if tag == "pre":
        return [Block(_text(element), lines=True)]
    if tag == "table" and _is_regular(element):
        rows = list(element.iter("tr"))
        lines = [" | ".join(row) for row in _cells(rows)]
        count = len(list(takewhile(_is_header, rows))) % len(rows) if rows else 0
        caption = [Block(_text(c)) for c in element.iter("caption")]
        head = "\n".join(lines[:count])
        return [*caption, Block("\n".join(lines[count:]), lines=True, head=head)]
    return None


def _is_header(row: Any) -> bool:
    texts = map(_text, row.iterchildren("td"))  # none, but in a corner
    return row.getparent().tag == "thead" or not any(map(str.strip, texts))


def _is_regular(table: Any) -> bool:
    # Whether there is nothing but cells in rows, and nothing but text in cells.
    # Lists may stand in cells, where headers tell that a table is one and no layout.
    def holds(*tags: str) -> bool:
        return next(table.iterdescendants(*tags), None) is not None

    if holds(*_NO_CELLS) or (holds("ul", "ol") and not holds("th")):
        return False
    outer = list(table.iter("table", "thead", "tbody", "tfoot", "tr"))
    texts = (text for e in outer for text in (e.text, *(inner.tail for inner in e)))
    kinds = ((e.tag == "tr", inner.tag) for e in outer for inner in e.iterchildren("*"))
    return not any(map(str.strip, filter(None, texts))) and all(
        tag in ({"td", "th"} if in_row else _OUTSIDE) for in_row, tag in kinds
    )


def _cells(rows: list[Any]) -> Iterator[list[str]]:
    # A cell over several rows stands in each of them, one over several columns before empty ones.
    above: dict[int, tuple[str, int, int]] = {}
    for row in rows:
        own = deque(
            (" ".join(_text(cell).split()), _count(cell, "rowspan"), _count(cell, "colspan"))
            for cell in row.iterchildren("td", "th")
        )
        texts: list[str] = []
        below: dict[int, tuple[str, int, int]] = {}
        column = 0
        while own or column in above:
            text, left, wide = above.get(column) or own.popleft()
            if left > 1 and len(text) <= _LONGEST_REPEATED:
                below[column] = text, left - 1, wide
            texts += [*[""] * (column - len(texts)), text]
            column += min(wide, _WIDEST)
        yield texts
        above = below if len(below) <= _WIDEST else {}  # more would be the square of the page


def _count(element: Any, name: str, default: int = 1) -> int:
    found = _NUMBER.fullmatch((element.get(name) or "").strip())
    return (int(found[0]) if found else 0) or default


def _text(element: Any) -> str:
    # All text in an element; a line ends where a block or a break does.
    from lxml.etree import iterwalk

    parts: list[str] = []
    walk = iterwalk(element, events=("start", "end", "comment", "pi"))
    for event, inner in walk:
        outer = inner is element
        if event == "start" and _is_left_out(inner):
            walk.skip_subtree()
            continue
        if not outer and event != "comment" and (inner.tag not in _INLINE or inner.tag == "br"):
            parts.append("\n" if event == "start" or inner.tag != "br" else "")
        if event == "start":
            parts.append((inner.get("alt") if inner.tag == "img" else inner.text) or "")
        elif not outer:
            parts.append(inner.tail or "")
    return "".join(parts)
