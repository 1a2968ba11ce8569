"""One HTML page of a study that carries everything in itself: tables, figures, questions.

Every text goes through Jinja2 with autoescape on. The page refuses the network by a content
security policy, which also admits no script but the page's own, named by its hash.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raggd.methods.spec import SPECS
from raggd.report.cases import Case, case_view
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
        shown = any(self.figures) or any(shown.table.rows for shown in self.tables)
        return not shown and (bool(self.figures) or bool(self.tables) or not self.texts)


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
    settings: Mapping[str, Any],
    planned: int = 0,
    missing: Sequence[str] = (),
    cases: Sequence[Case] = (),
    compared: tuple[str, str] = ("base", "rag-gd"),
) -> str:
    """Render the page.

    Args:
        title: the heading.
        lead: one paragraph below it.
        sections: those without content are left out.
        methods: to be explained.
        settings: of the study.
        planned: number of cells.
        missing: records that are not there yet.
        cases: questions to show side by side.
        compared: methods whose answers to them are "before" and "after".

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
        cases=[case_view(case, *compared) for case in cases],
        before=compared[0],
        after=compared[1],
        settings=json.dumps(settings, ensure_ascii=False, indent=1),
        style=source("page.css"),
        script=script,
        script_hash=script_hash(script),
    )
