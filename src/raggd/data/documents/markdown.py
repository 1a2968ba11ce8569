"""Markdown by CommonMark's rules, with tables and front matter; images are dropped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raggd.data.documents.front import front_matter
from raggd.data.documents.passages import Block
from raggd.data.documents.plain import read_text

_TAGS = (
    "a|abbr|b|bdi|big|br|center|cite|del|dfn|em|font|i|img|ins|kbd|mark|q|s|samp|small|span|strike"
    "|strong|sub|sup|tt|u|var|wbr"
)
_INLINE = re.compile(
    r"`+[^`\n]*`+"  # code stays as it is
    r"|!\[(?P<alt>[^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\[\]]*\])"
    rf"|</?(?:{_TAGS})\b[^<>]*>"
    r"|\\(?P<escaped>[!-/:-@\[-`{-~])|(?P<entity>&#?\w{2,31};)",
    re.IGNORECASE,
)
_FENCE = re.compile(r"[\s>]*(?:(?:[-*+]|\d{1,9}[.)])\s+)*(`{3,}|~{3,})([^`]*)$")
_CODE_OR_COMMENT = re.compile(r"`+[^`\n]*`+|<!--")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_NO_TEXT = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)", re.DOTALL | re.IGNORECASE)
_HTML_HEADING = re.compile(r"<h([1-6])\b[^<>]*>(.{0,2000}?)</h\1\s*>", re.DOTALL | re.IGNORECASE)
_PRE = re.compile(r"\s*<pre\b[^<>]*>\n?(.*)</pre\s*>\s*", re.DOTALL | re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?!br\b)(?:{_TAGS})\b[^<>]*>", re.IGNORECASE)
_TABLE = re.compile(r"</?table\b[^<>]*>", re.IGNORECASE)
_ROW = re.compile(r"<tr\b[^<>]*>", re.IGNORECASE)
_CELL = re.compile(r"<(t[dh])\b[^<>]*>", re.IGNORECASE)
_ATTRIBUTES = re.compile(r"\{:?\s*[#.][^{}]*\}")
_LONGEST_HEADING = 2000
_CODE = {"fence", "code_block"}
_LISTS = {"bullet_list_open", "ordered_list_open"}


def read(path: Path) -> Iterator[Block]:
    """Read Markdown; code, lists, tables and what no rule covers are cut between lines."""
    from markdown_it import MarkdownIt

    title, front, text = front_matter(read_text(path))
    if title:
        yield Block(title, level=0)
    if front:
        yield Block(front, lines=True)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    inline = MarkdownIt("commonmark")
    parser.disable(["inline", "text_join"], ignoreInvalid=True)
    lines = text.split("\n")
    tokens = parser.parse("\n".join(lines))
    done = 0
    for at, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        yield from _left(lines[done:start])
        done = max(done, end)
        own = lines[start:end]
        if token.type == "heading_open":
            title = _without_attributes(tokens[at + 1].content)
            yield Block(_heading(inline, title), level=int(token.tag[1]))
        elif token.type in _CODE:
            yield Block("\n".join(own), lines=True)
        elif token.type == "table_open":
            rows = [_row(line) for line in own]
            yield Block("\n".join(rows[2:]), lines=True, head="\n".join(rows[:2]))
        elif token.type == "html_block":
            yield from _html("\n".join(own))
        elif token.type != "hr":
            yield Block(_prose(own), lines=token.type in _LISTS)
    yield from _left(lines[done:])


def _left(lines: Sequence[str]) -> Iterator[Block]:
    if any(line.strip() for line in lines):
        yield Block("\n".join(lines), lines=True)


def _html(text: str) -> Iterator[Block]:
    code = _PRE.fullmatch(text)
    if code:
        yield Block(html.unescape(_TAG.sub("", code[1])), lines=True)
        return
    for part in _TABLE.split(_NO_TEXT.sub("", _without_comments(text))):
        yield from _table(part) if _ROW.search(part) else _outside(part)


def _table(text: str) -> Iterator[Block]:
    before, *rows = _ROW.split(text)
    yield _bare(before)
    split = [_CELL.split(row) for row in rows]  # each: what stands before, then kind and content
    cells = [[*filter(str.strip, row[:1]), *row[2::2]] for row in split]
    lines = [" | ".join(" ".join(_bare(cell).text.split()) for cell in row) for row in cells]
    headed = len(rows) > 1 and {kind.lower() for kind in split[0][1::2]} == {"th"}
    yield Block("\n".join(lines[headed:]), lines=True, head=lines[0] if headed else "")


def _outside(text: str) -> Iterator[Block]:
    at = 0
    for found in _HTML_HEADING.finditer(text):
        yield _bare(text[at : found.start()])
        yield _bare(found[2], level=int(found[1]))
        at = found.end()
    yield _bare(text[at:])


def _bare(text: str, level: int | None = None) -> Block:
    lines = html.unescape(_TAG.sub(" ", _INLINE_TAG.sub("", text))).split("\n")
    return Block("\n".join(line.strip() for line in lines), level)


def _without_attributes(content: str) -> str:
    # "{#install .first}", as Pandoc and its kin read it
    title, brace, rest = content.rstrip().rpartition(" {")
    return title.rstrip() if title and _ATTRIBUTES.fullmatch(brace[1:] + rest) else content


def _heading(parser: Any, content: str) -> str:
    if len(content) > _LONGEST_HEADING:
        return content
    parts = []
    for token in parser.parseInline(content)[0].children:
        tag = token.content.lower() if token.type == "html_inline" else ""
        if token.type in {"softbreak", "hardbreak"} or tag.startswith("<br"):
            parts.append(" ")
        elif not _INLINE_TAG.fullmatch(tag):
            parts.append(token.content)
    return "".join(parts)


def _without_comments(text: str) -> str:
    # What stands in code stays, and one that is never closed is text.
    parts, at = [], 0
    for found in _CODE_OR_COMMENT.finditer(text):
        if found[0] != "<!--" or found.start() < at:
            continue
        end = text.find("-->", found.end())
        if end < 0:
            break
        parts.append(text[at : found.start()])
        at = end + len("-->")
    return "".join([*parts, text[at:]])


def _prose(lines: Sequence[str]) -> str:
    # Code fences inside lists and quotes stay as they are.
    parts: list[str] = []
    held: list[str] = []
    fence = ""
    for line in lines:
        found = _FENCE.match(line)
        if fence:
            held.append(line)
            if found and found[1].startswith(fence) and not found[2].strip():
                parts.append("\n".join(held))
                held, fence = [], ""
        elif found:
            parts += [_written(held)] if held else []
            held, fence = [line], found[1]
        else:
            held.append(line)
    parts += ["\n".join(held) if fence else _written(held)] if held else []
    return "\n".join(parts)


def _written(lines: Sequence[str]) -> str:
    return _plain(_without_comments("\n".join(lines)))


def _row(line: str) -> str:
    # A bar that is escaped divides no cells, and stays so.
    return _plain(line.replace(r"\|", r"\\|")).replace(r"\\|", r"\|")


def _plain(text: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        if found["escaped"]:
            return found["escaped"]
        if found["entity"]:
            return html.unescape(found["entity"])
        if found[0].lower().startswith("<br"):
            return " "
        return found["alt"] or "" if found[0][0] in "!<" else found[0]

    return _INLINE.sub(replaced, text)
