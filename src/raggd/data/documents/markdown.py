"""Markdown by CommonMark's rules, with tables and front matter, and Jupyter notebooks; no images.

Front matter stands between ``---`` (YAML) or ``+++`` (TOML), or in braces (JSON). Of a notebook
text is read as Markdown, code as code blocks, and what it printed.
"""

from __future__ import annotations

import html
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from raggd.data.documents import web
from raggd.data.documents.passages import Block
from raggd.data.documents.plain import decode
from raggd.data.text import DATA_URI, normal_text
from raggd.files import each_key_once
from raggd.records import RaggdError

_TAGS = (
    "a|abbr|b|bdi|big|br|center|cite|del|dfn|em|font|i|img|ins|kbd|mark|q|s|samp|small|span|strike"
    "|strong|sub|sup|tt|u|var|wbr"
)
_INLINE = re.compile(
    r"`+[^`\n]*`+|\$\$[^$]+\$\$|\$(?=\S)[^$\n]+(?<=\S)\$(?!\d)"  # code, formulas: as they are
    r"|!\[(?P<alt>[^\[\]]*)\](?:\([^()]*(?:\([^()]*\)[^()]*)*\)|\[[^\[\]]*\])"
    rf"|</?(?:{_TAGS})\b[^<>]*>"
    r"|\\(?P<escaped>[!-/:-@\[-`{-~]|\n(?=[^\n]))|(?P<entity>&#?\w{2,31};)",
    re.IGNORECASE,
)
_CODE_OR_COMMENT = re.compile(r"`+[^`\n]*`+|<!--")
_INLINE_TAG = re.compile(rf"</?(?!br\b)(?:{_TAGS})\b[^<>]*>", re.IGNORECASE)
_ADDRESS = re.compile(r"<((?:https?://|[^\s<>@]+@)[^\s<>]+)>")
_ATTRIBUTES = re.compile(r"\{:?\s*[#.][^{}]*\}")
_HIDING = {"<script": "</script", "<style": "</style", "<?": "?>", "<![cdata[": "]]>"}
"""Beginnings of what HTML does not show, and their ends."""
_LONGEST_HEADING = 2000


def read(path: Path) -> Iterator[Block]:
    """Read Markdown; code, lists, tables and what no rule covers are cut between lines."""
    return blocks_of(decode(path.read_bytes()))


def blocks_of(text: str) -> Iterator[Block]:
    """Yield the blocks of Markdown, or of a piece of it."""
    from markdown_it import MarkdownIt

    title, front, text = front_matter(DATA_URI.sub("", normal_text(text)))
    yield Block(title, level=0)
    yield Block(front, lines=True)
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    inline = MarkdownIt("commonmark")
    parser.disable(["inline", "text_join"], ignoreInvalid=True)
    lines, tokens = text.split("\n"), parser.parse(text)
    fences = (token.map for token in tokens if token.type == "fence" and token.map)
    fenced = {number for lines_of in fences for number in range(*lines_of)}
    done = 0
    for at, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        yield Block("\n".join(lines[done:start]), lines=True)  # what no rule covers
        done = max(done, end)
        own = lines[start:end]
        if token.type == "heading_open":
            title = _without_attributes(tokens[at + 1].content)
            yield Block(_heading(inline, title), level=int(token.tag[1]))
        elif token.type in {"fence", "code_block"}:
            yield Block("\n".join(own), lines=True)
        elif token.type == "table_open":
            rows = [_row(line) for line in own]
            yield Block("\n".join(rows[2:]), lines=True, head="\n".join(rows[:2]))
        elif token.type == "html_block":
            page = _ADDRESS.sub(r"\1", _without_comments("\n".join(own)))
            # what is never closed would hide the rest of the document
            yield from [Block(page)] if "<!--" in page or _is_open(page) else web.blocks_of(page)
        elif token.type != "hr":
            yield Block(_prose(own, start, fenced), lines=token.type.endswith("_list_open"))
    yield Block("\n".join(lines[done:]), lines=True)


def _is_open(page: str) -> bool:
    lower = page.lower()
    return any(lower.rfind(start) > lower.rfind(end) for start, end in _HIDING.items())


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
            unseen = _INLINE_TAG.fullmatch(tag) or tag.startswith("<!--")
            parts.append(_alt(tag) if unseen else token.content)
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


def _prose(lines: Sequence[str], start: int, fenced: set[int]) -> str:
    # Code fences inside lists and quotes stay as they are.
    parts = []
    numbered = enumerate(lines, start)
    for is_code, group in groupby(numbered, key=lambda pair: pair[0] in fenced):
        text = "\n".join(line for _, line in group)
        parts.append(text if is_code else _plain(_without_comments(text)))
    return "\n".join(parts)


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


_FRONT = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?\n)?(?:\1|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
_ENTRY = re.compile(r"\s*[\w-]+\s*[:=]")
_TITLE = re.compile(r"[\"']?title[\"']?\s*[:=]\s*", re.IGNORECASE)
_LONGEST_FRONT = 50_000  # characters; more is a text between two rules
_TITLE_LINES = 20
_OBJECT = json.JSONDecoder(object_pairs_hook=each_key_once)
_NOTHING = {"", "~", "null", "Null", "NULL"}


def front_matter(text: str) -> tuple[str, str, str]:
    """Return the title that front matter gives, its other lines, and the document after it."""
    if text.startswith("{"):
        return _json(text)
    found = _FRONT.match(text)
    inner = (found[2] or "").removesuffix("\n") if found else ""
    if found is None or not inner.strip() or len(inner) > _LONGEST_FRONT:
        return "", "", text
    parts = _toml(inner) if found[1] == "+++" else _yaml(inner)
    if parts is None:
        return "", "", text
    title, others = parts
    return " ".join(title.split()), others.strip("\n"), text[found.end() :]


def _yaml(inner: str) -> tuple[str, str] | None:
    # None: it is no mapping, but text between two rules
    import yaml

    try:
        node = yaml.compose(inner, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _by_lines(inner)
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if not all(isinstance(each, yaml.ScalarNode) for each in (key, value)):
            continue
        if key.value.lower() != "title" or (value.style is None and value.value in _NOTHING):
            continue
        if node.flow_style:  # other keys may stand in the same line
            return value.value, inner
        start, end = key.start_mark.index, value.end_mark.index
        if inner[end - 1 : end] != "\n":  # a remark behind it goes too
            end = (inner + "\n").index("\n", end) + 1
        return value.value, inner[:start] + inner[end:]
    return "", inner


def _toml(inner: str) -> tuple[str, str] | None:
    try:
        named = {key.lower(): value for key, value in tomllib.loads(inner).items()}
    except (ValueError, RecursionError):
        return _by_lines(inner)
    title, lines = named.get("title"), inner.split("\n")
    begin = next((at for at, line in enumerate(lines) if _TITLE.match(line.strip())), None)
    if not isinstance(title, str) or begin is None:
        return "", inner
    for end in range(begin + 1, min(begin + _TITLE_LINES, len(lines)) + 1):
        with suppress(ValueError):  # it goes on in the next line
            tomllib.loads("\n".join(lines[begin:end]))
            return title, "\n".join(lines[:begin] + lines[end:])
    return title, inner


def _json(text: str) -> tuple[str, str, str]:
    # Hugo's third form: an object, and nothing behind it in its last line.
    try:
        value, end = _OBJECT.raw_decode(text[:_LONGEST_FRONT])
    except (ValueError, RecursionError):
        return "", "", text
    line, _, rest = text[end:].partition("\n")
    if line.strip() or not value:
        return "", "", text
    key = next((k for k, v in value.items() if k.lower() == "title" and isinstance(v, str)), None)
    title = value.pop(key, "")
    others = (
        f"{name}: {it if isinstance(it, str) else json.dumps(it, ensure_ascii=False)}"
        for name, it in value.items()
    )
    return " ".join(title.split()), "\n".join(others), rest


def _by_lines(inner: str) -> tuple[str, str] | None:
    # What is nearly YAML or TOML: a title with a colon in it, say.
    lines = inner.split("\n")
    if not any(map(_ENTRY.match, lines)):
        return None
    at = next((n for n, line in enumerate(lines) if _TITLE.match(line)), None)
    if at is None:
        return "", inner
    title = _TITLE.sub("", lines.pop(at), count=1).strip().strip("\"'")
    return title, "\n".join(lines)


# Colours of a terminal, and what a progress bar wrote over.
_UNSEEN = re.compile(r"\x1b\[[0-9;]*m|^[^\n]*\r(?!\n)", re.MULTILINE)
_RICH = {"text/markdown": blocks_of, "text/html": web.blocks_of}


def read_notebook(path: Path) -> Iterator[Block]:
    """Read a notebook, or refuse what is none; other cells than code are taken for Markdown."""
    try:
        book = json.loads(decode(path.read_bytes()))
        sheets = book.get("worksheets") or [book]  # before version 4
        blocks = [block for sheet in sheets for cell in sheet["cells"] for block in _of_cell(cell)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RaggdError(f"it is no Jupyter notebook ({error}): open and save it anew.") from error
    yield from blocks


def _of_cell(cell: Any) -> Iterator[Block]:
    if cell["cell_type"] == "code":
        code = _joined(cell.get("source", cell.get("input")))
        yield Block(f"```\n{code}\n```" if code.strip() else "", lines=True)
        for output in cell.get("outputs", ()):
            shown = output.get("data", output)
            told = _joined(shown.get("text/plain", shown.get("text", "")))
            rich = [kind for kind in _RICH if kind in shown and (not told or told[:1] == "<")]
            if rich:  # its text is at best a name for it, "<IPython.core.display.HTML object>"
                inner = _RICH[rich[0]](_joined(shown[rich[0]]))
                yield from (replace(block, level=None) for block in inner)
            elif not any(kind.startswith("image/") for kind in shown):  # as here
                yield Block(_UNSEEN.sub("", told), lines=True)
    else:
        rank = "#" * min(6, cell.get("level", 0))  # of a heading, before version 4
        yield from blocks_of(f"{rank} {_joined(cell['source'])}"[not rank :])


def _joined(source: Any) -> str:
    return source if isinstance(source, str) else "".join(source)
