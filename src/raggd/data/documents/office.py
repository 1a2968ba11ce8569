"""PDF files, and Word files (.docx), through pypdf and python-docx.

Of a PDF the text, page by page, with words put together that a line end divides; of Word headings
by style or outline level, lists, tables, text boxes, notes, what stands over and under the pages.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path
from typing import Any

from raggd.data.documents.passages import Block
from raggd.data.text import normal_text
from raggd.records import RaggdError

_DIVIDED = re.compile(r"(?<![^\W\d_])([^\W\d_]+)(\xad|[-\u2010])[ \t]*\n[ \t]*([^\W\d_]+)")
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
# First parts of compounds that keep their hyphen, where the document itself does not tell.
_FIRST_PARTS = re.compile(
    "all|anti|best|co|cross|double|down|easy|eight|ex|far|fast|first|five|four|free|full|good|half|"
    "hand|hard|heavy|high|home|ill|large|left|light|long|low|many|mid|multi|near|new|newly|nine|"
    "non|north|off|old|on|one|open|out|over|part|post|pre|quarter|quasi|ready|real|right|second|"
    "self|semi|seven|short|single|six|slow|small|so|soft|south|ten|third|three|time|top|two|under|"
    "up|upper|user|water|well|west|wide|world|year"
)
_SCANNED, _DAMAGED = "no text (scanned pages need text recognition first)", "what cannot be read"
_STAMPED = "a picture and next to no text (scanned pages need text recognition first)"
_UNREADABLE = "the PDF is damaged or encrypted ({}): open and save it anew."
_BLANK = 2000  # bytes of drawing that an empty page, with a frame or so, does not exceed
_STAMP = 2  # words that a scanner or a clerk sets on a page: "Page 3", "COPY"
_HIDDEN = 2  # a flag of annotations
_SCAN = 500_000  # pixels that a scan has at least, and a logo does not


def read_pdf(path: Path) -> Iterator[Block]:
    """Read a PDF that is whole and opens without a password, whatever its permissions."""
    import pypdf

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it tells of each oddity it mends
    try:
        reader = pypdf.PdfReader(path)
        locked = reader.is_encrypted and not reader.decrypt("")
        pages = [] if locked else [*map(_page, reader.pages)]
    except Exception as error:  # a damaged file can break the parser anywhere
        raise RaggdError(_UNREADABLE.format(error)) from error
    if pages and all(lack == _DAMAGED for _, lack in pages):
        raise RaggdError(_UNREADABLE.format("no page can be read"))
    if locked:
        raise RaggdError("the PDF is encrypted: save a copy without a password.")
    yield Block(joined("".join(_followed(text) for text, _ in pages)))
    yield Block(_filled_in(reader), lines=True)
    for lack in (_SCANNED, _STAMPED, _DAMAGED):
        if at := [number for number, page in enumerate(pages, start=1) if page[1] == lack]:
            who, does = ("page", "holds") if len(at) == 1 else ("pages", "hold")
            yield Block("", lost=f"{who} {_ranges(at)} of {len(pages)} {does} {lack}")


def _filled_in(reader: Any) -> str:
    # Values of a form, which are no part of any page's text; marks of its boxes begin with "/".
    with suppress(Exception):  # as above
        found = ((name, field.value) for name, field in (reader.get_fields() or {}).items())
        texts = ((name, str(value)) for name, value in found if value)
        return "\n".join(f"{name}: {text}" for name, text in texts if text[0] != "/")
    return ""


def _page(page: Any) -> tuple[str, str]:
    # Its text, and what it holds instead where it holds something else.
    try:
        text = "\n\n".join([page.extract_text(), *_typed_on(page)])
        if text.strip():
            few = len(_WORD.findall(text)) <= _STAMP
            return text, _STAMPED if few and _holds_scan(page) else ""
        content = page.get_contents()
        drawn = bool(page.images) or (content is not None and len(content.get_data()) > _BLANK)
        return "", _SCANNED if drawn else ""
    except Exception:  # as above
        return "", _DAMAGED


def _typed_on(page: Any) -> Iterator[str]:
    # Text that was set on a page later, as annotations that are seen without a click.
    for entry in page.get("/Annots") or ():
        note = entry.get_object()
        if note.get("/Subtype") == "/FreeText" and not int(note.get("/F", 0)) & _HIDDEN:
            yield str(note.get("/Contents") or "")


def _holds_scan(page: Any) -> bool:
    drawn = (page.get("/Resources") or {}).get("/XObject") or {}
    pictures = (each for each in map(drawn.__getitem__, drawn) if each.get("/Subtype") == "/Image")
    return any(int(p.get("/Width", 0)) * int(p.get("/Height", 0)) >= _SCAN for p in pictures)


def _ranges(numbers: list[int]) -> str:
    # Rising numbers in few words: "2-4, 7".
    held = set(numbers)
    starts = [n for n in numbers if n - 1 not in held]
    ends = [n for n in numbers if n + 1 not in held]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _followed(page: str) -> str:
    # a page ends a paragraph, unless it ends inside a word
    text = page.strip()
    return text + ("\n" if text.endswith(("-", "\xad", "\u2010")) else "\n\n")


def joined(text: str) -> str:
    """Put words together that a hyphen divides at the end of a line.

    A hyphen stays where the document writes that word with one elsewhere, where the first part is
    one that compounds begin with (``well-known``), and before a capital.
    """
    text = text.replace("\r\n", "\n")
    words = {word.lower() for word in _WORD.findall(text)}

    def whole(found: re.Match[str]) -> str:
        first, mark, rest = found.groups()
        one, two = f"{first}{rest}".lower(), f"{first}-{rest}".lower()
        after = found.start() > 0 and text[found.start() - 1] == "-"  # state-of-the-art
        compound = after or rest[0].isupper() or _FIRST_PARTS.fullmatch(first.lower())
        hyphened = two in words or (compound and one not in words)
        return f"{first}-{rest}" if hyphened and mark != "\xad" else f"{first}{rest}"

    return normal_text(_DIVIDED.sub(whole, text))


_HEADING = re.compile(r"heading (\d)$", re.IGNORECASE)
_NOTES = re.compile(r"/(?:foot|end)notes\d*\.xml$")
_MARGINS = re.compile(r"/(?:header|footer)\d*\.xml$")
_WITH_PAGE = 2  # words that are nothing but a page's number: "Page 3 of 9"
_PAGE = re.compile(r"\b(?:NUM)?PAGES?\b")
_DEEPEST, _BODY, _LONGEST_REPEATED, _WIDEST = 20, 9, 200, 20
_LEFT_OUT = {"Fallback", "pPr", "rPr", "moveFrom", "rt"}  # readings over Chinese characters too
_SPACES = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}
_SPACES |= {"den": "/", "sup": "^", "sub": "_"}  # parts of a formula: 1/2 is not 12


def read_word(path: Path) -> Iterator[Block]:
    """Read a Word file, or refuse it; the first row of a table is its header.

    What stands over and under its pages comes first, each line of it once; page numbers go.

    Raises:
        RaggdError: it is damaged, locked, or an older .doc.
    """
    import docx
    from docx.oxml import parse_xml

    try:
        document = docx.Document(str(path))
        styles = {style.style_id: style for style in document.styles}
        blocks = list(_blocks(document.element.body, styles))
        over: list[str] = []
        for part in document.part.package.iter_parts():
            if _NOTES.search(part.partname):
                blocks += _blocks(parse_xml(part.blob), styles)
            elif _MARGINS.search(part.partname):
                over += _over(parse_xml(part.blob), styles)
        yield from map(Block, dict.fromkeys(over))
        yield from blocks
    except Exception as error:  # a damaged file can break the parser anywhere
        raise RaggdError(
            f"it is no whole .docx ({type(error).__name__}): it is damaged, locked, or of another "
            "format. Open and save it anew."
        ) from error


def _over(margin: Any, styles: dict[str, Any]) -> Iterator[str]:
    # What stands over or under each page, but its number and a word or two with that.
    numbered = set()
    for paragraph in margin.iter("{*}p"):
        fields = [e.text or "" for e in paragraph.iter("{*}instrText")]
        fields += [value for e in paragraph.iter("{*}fldSimple") for value in e.values()]
        if any(map(_PAGE.search, fields)):
            numbered.add(_text(paragraph))
    for block in _blocks(margin, styles):
        text = "\n".join(filter(None, (block.head, block.text)))
        if block.text not in numbered or len(_WORD.findall(text)) > _WITH_PAGE:
            yield text


def _kind(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _blocks(parent: Any, styles: dict[str, Any]) -> Iterator[Block]:
    for child in parent:
        kind = _kind(child)
        if kind == "p":
            style, level = _style(child, styles), _level(child, styles)
            listed = child.pPr is not None and child.pPr.numPr is not None
            listed = level is None and (listed or ((style and style.name) or "").startswith("List"))
            yield Block(("- " if listed else "") + _text(child), level)
        elif kind == "tbl" and not _is_frame(child, styles):
            rows = list(_rows(child))
            yield Block("\n".join(rows[1:]), lines=True, head=rows[0] if rows else "")
        else:  # frames, content controls and insertions hold paragraphs of their own
            yield from _blocks(child, styles)


def _is_frame(table: Any, styles: dict[str, Any]) -> bool:
    # Whether a table is there for its looks: around one cell (a note, code), or around sections.
    cells = [cell for row in _inside(table, "tr") for cell in _inside(row, "tc")]
    for cell in cells:
        levels = [_level(p, styles) for p in cell.iter("{*}p") if _text(p).strip()]
        if None in dropwhile(lambda level: level is None, levels):
            return True
    return len(cells) == 1


def _style(paragraph: Any, styles: dict[str, Any]) -> Any:
    named = paragraph.pPr.pStyle if paragraph.pPr is not None else None
    return styles.get(named.val) if named is not None else None


def _level(paragraph: Any, styles: dict[str, Any]) -> int | None:
    # Of a heading: by its own outline level, or that or the name of its style or what that is from.
    elements, style = [paragraph.pPr], _style(paragraph, styles)
    while style is not None and len(elements) < _DEEPEST:
        heading = _HEADING.match(style.name or "")
        if heading or style.name == "Title":
            return int(heading[1]) if heading else 0
        elements.append(style.element.pPr)
        style = style.base_style
    for element in elements:
        for child in element if element is not None else ():
            if _kind(child) == "outlineLvl" and (rank := int(next(iter(child.values())))) < _BODY:
                return rank + 1
    return None


def _inside(element: Any, kind: str) -> Iterator[Any]:
    # Rows of a table, or cells of a row: some stand in content controls, and those in others.
    for child in element:
        if _kind(child) == kind:
            yield child
        elif _kind(child) != "tbl":
            yield from _inside(child, kind)


def _rows(table: Any) -> Iterator[str]:
    # A cell over several rows stands in each of them, one over several columns before empty ones.
    above: list[str] = []
    for row in _inside(table, "tr"):
        cells: list[str] = []
        column = 0
        for cell in _inside(row, "tc"):
            text = " ".join(" ".join(map(_text, cell.iter("{*}p"))).split())
            if not text and cell.vMerge == "continue" and column < len(above):
                text = above[column]
            cells += [*[""] * (column - len(cells)), text]
            column += max(1, min(cell.grid_span, _WIDEST))
        yield " | ".join(cells)
        above = [text if len(text) <= _LONGEST_REPEATED else "" for text in cells]


def _text(paragraph: Any) -> str:
    # Every run, inserted ones and those of links too; Word repeats drawings as a "Fallback".
    parts: list[str] = []
    stack = [paragraph]
    while stack:
        element = stack.pop()
        kind = _kind(element)
        if kind == "t":
            parts.append(element.text or "")
        elif kind in _SPACES:
            parts.append(_SPACES[kind])
        elif kind == "p" and parts:
            parts.append("\n")
        if kind not in _LEFT_OUT:
            stack.extend(reversed(element))
    return "".join(parts)
