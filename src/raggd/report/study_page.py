"""One self-contained page of a study: tables to sort and filter, figures, what is missing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raggd.methods.spec import SPECS
from raggd.report.html import checked_figure, environment, script_hash, source
from raggd.report.tables import NOTHING, Table

_NUMBER = re.compile(r"^[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?=$|[ /])")


@dataclass(frozen=True, slots=True)
class Shown:
    """A table on the page; `filter` is an example of words to filter its rows by, or empty."""

    table: Table
    filter: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading.

    Attributes:
        id: anchor.
        title: heading.
        texts: paragraphs.
        figures: from the figure functions; empty ones are left out.
        tables: below them; those without rows are left out.
    """

    id: str
    title: str
    texts: Sequence[str] = ()
    figures: Sequence[str] = ()
    tables: Sequence[Shown] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any(self.figures) and not any(shown.table.rows for shown in self.tables)


def _sort_value(text: str) -> str | None:
    found = _NUMBER.match(text.replace("< ", "0"))
    if found:
        return found[0]
    return "" if text == NOTHING else None


def _view(shown: Shown) -> dict[str, Any]:
    table = shown.table
    rows = [
        [
            {
                "text": text,
                "number": column.align == "right",
                "bold": (i, j) in table.bold,
                "value": _sort_value(text) if column.align == "right" else None,
            }
            for j, (text, column) in enumerate(zip(row, table.columns, strict=True))
        ]
        for i, row in enumerate(table.rows)
    ]
    return {"table": table, "rows": rows, "filter": shown.filter}


def study_page(
    *,
    title: str,
    lead: str,
    sections: Sequence[Section],
    methods: Sequence[str],
    planned: int,
    missing: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """Render the page.

    Args:
        title: the heading.
        lead: one paragraph below it.
        sections: those without content are left out.
        methods: to be explained.
        planned: number of cells.
        missing: records that are not there yet.
        settings: of the study.

    Returns:
        A whole HTML document without outside references.
    """
    script = source("page.js")
    views = [
        {
            "id": section.id,
            "title": section.title,
            "texts": section.texts,
            "figures": [checked_figure(svg) for svg in section.figures if svg],
            "tables": [_view(shown) for shown in section.tables if shown.table.rows],
        }
        for section in sections
        if not section.empty
    ]
    template = environment().get_template("study.html.j2")
    return template.render(
        title=title,
        lead=lead,
        sections=views,
        methods=methods,
        words=SPECS,
        planned=planned,
        missing=missing,
        settings=json.dumps(settings, ensure_ascii=False, indent=1),
        style=source("page.css"),
        script=script,
        script_hash=script_hash(script),
    )
