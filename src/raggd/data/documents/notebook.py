"""Jupyter notebooks: text as Markdown, code as code blocks, and what it printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from raggd.data.documents import markdown, web
from raggd.data.documents.passages import Block
from raggd.data.documents.plain import decode
from raggd.records import RaggdError

# Colours of a terminal, and what a progress bar wrote over.
_UNSEEN = re.compile(r"\x1b\[[0-9;]*m|^[^\n]*\r(?!\n)", re.MULTILINE)
_RICH = {"text/markdown": markdown.blocks_of, "text/html": web.blocks_of}


def read(path: Path) -> Iterator[Block]:
    """Read a notebook, or refuse what is none; other cells than code are taken for Markdown."""
    try:
        book = json.loads(decode(path.read_bytes()))
        sheets = book.get("worksheets") or [book]  # before version 4
        blocks = [block for sheet in sheets for cell in sheet["cells"] for block in _blocks(cell)]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RaggdError(f"it is no Jupyter notebook ({error}): open and save it anew.") from error
    yield from blocks


def _blocks(cell: Any) -> Iterator[Block]:
    if cell["cell_type"] == "code":
        code = _text(cell.get("source", cell.get("input")))
        yield Block(f"```\n{code}\n```" if code.strip() else "", lines=True)
        for output in cell.get("outputs", ()):
            shown = output.get("data", output)
            told = _text(shown.get("text/plain", shown.get("text", "")))
            rich = [kind for kind in _RICH if kind in shown and (not told or told[:1] == "<")]
            if rich:  # its text is at best a name for it, "<IPython.core.display.HTML object>"
                inner = _RICH[rich[0]](_text(shown[rich[0]]))
                yield from (replace(block, level=None) for block in inner)
            elif not any(kind.startswith("image/") for kind in shown):  # as here
                yield Block(_UNSEEN.sub("", told), lines=True)
    else:
        rank = "#" * min(6, cell.get("level", 0))  # of a heading, before version 4
        yield from markdown.blocks_of(f"{rank} {_text(cell['source'])}"[not rank :])


def _text(source: Any) -> str:
    return source if isinstance(source, str) else "".join(source)
