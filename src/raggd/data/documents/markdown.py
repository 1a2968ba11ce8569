"""Markdown by CommonMark's rules, with tables and front matter; images are dropped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raggd.data.documents import web
from raggd.data.documents.front import front_matter
from raggd.data.documents.passages import Block
from raggd.data.documents.plain import decode
from raggd.data.text import DATA_URI, normal_text

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
_INLINE_TAG = re.compile(rf"</?(?!br\b)(?:{_TAGS})\b[^<>]*>", re.IGNORECASE)
_ADDRESS = re.compile(r"<((?:https?://|[^\s<>@]+@)[^\s<>]+)>")
_ATTRIBUTES = re.compile(r"\{:?\s*[#.][^{}]*\}")
_HIDING = {"<script": "</script", "<style": "</style", "<?": "?>", "<![cdata[": "]]>"}
"""Beginnings of what HTML does not show, and their ends."""
_LONGEST_HEADING = 2000
_CODE = {"fence", "code_block"}
_LISTS = {"bullet_list_open", "ordered_list_open"}


def read(path: Path) -> Iterator[Block]:
    """Read Markdown; code, lists, tables and what no rule covers are cut between lines."""
    return blocks_of(decode(path.read_bytes()))


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of Markdown, or of a piece of it."""
    from markdown_it import MarkdownIt

    title, front, text = front_matter(DATA_URI.sub("", normal_text(text)))
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
            page = _ADDRESS.sub(r"\1", _without_comments("\n".join(own)))
            # what is never closed would hide the rest of the document
            yield from [Block(page)] if "<!--" in page or _is_open(page) else web.blocks_of(page)
        elif token.type != "hr":
            yield Block(_prose(own), lines=token.type in _LISTS)
    yield from _left(lines[done:])


def _is_open(page: str) -> bool:
    lower = page.lower()
    return any(lower.rfind(start) > lower.rfind(end) for start, end in _HIDING.items())


def _left(lines: Sequence[str]) -> Iterator[Block]:
    if any(line.strip() for line in lines):
        yield Block("\n".join(lines), lines=True)


def _without_attributes(content: str) -> str:
    # "{#install .first}", as Pandoc and its kin read it
    title, brace, rest = content.rstrip().rpartition(" {")
    return title.rstrip() if title and _ATTRIBUTES.fullmatch(brace[1:] + rest) else content


def _heading(parser: Any, content: str) -> str:
    if len(content) > _LONGEST_HEADING:
        return content
    parts = []
    for token in parser.parseInline(content)[0].children:
        tag = token.content if token.type == "html_inline" else ""
        if token.type in {"softbreak", "hardbreak"} or tag.lower().startswith("<br"):
            parts.append(" ")
        else:
            parts.append(_alt(tag) if _INLINE_TAG.fullmatch(tag) else token.content)
    return "".join(parts)


def _alt(tag: str) -> str:
    # What the tag of a picture says in its place; of other tags nothing.
    picture = tag.lower().startswith("<img")
    return " ".join(block.text for block in web.blocks_of(tag)) if picture else ""


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
        return found["alt"] or _alt(found[0]) if found[0][0] in "!<" else found[0]

    return _INLINE.sub(replaced, text)
