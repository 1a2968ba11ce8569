"""Tables, figures and one page of a study, or of a small one, from its records alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raggd.files import read_json, write_json, write_text
from raggd.methods.spec import NAMED
from raggd.progress import Progress, silent
from raggd.report import study_tables
from raggd.report.contrasts import (
    METRICS,
    Contrast,
    average,
    contrasts,
    evidence_gains,
    loss_drops,
)
from raggd.report.figures import (
    cost_figure,
    distribution_figure,
    evidence_figure,
    families_figure,
    heat_map,
    steps_figure,
)
from raggd.report.grid import ALIGNMENT_FILE, Grid, load_grid
from raggd.report.page import ExampleCase, Section, study_page
from raggd.report.tables import Table

_LONG = ("pairs", "numbers")  # tables for other programs: CSV alone


def _difference_tables(found: Sequence[Contrast]) -> dict[str, Table]:
    tables = {}
    for subset in ("all", "training tasks", "held-out tasks"):
        name = "differences" if subset == "all" else f"differences-{subset.split()[0]}"
        caption = (
            f"Differences on {'all benchmarks' if subset == 'all' else subset}, question by "
            "question, mean of benchmark means. Bold: p < 0.05, corrected by Holm over the "
            "comparisons of this table that share scope, blocks and measure. A lower answer loss "
            "is better."
        )
        tables[name] = study_tables.contrast_table(found, subset, caption)
    return tables


def study_sections(
    grid: Grid, found: Sequence[Contrast], alignments: Mapping[str, Any]
) -> list[Section]:
    """Return the parts of a study's page: every figure and table, by the names of their files."""
    evidence, drops = evidence_gains(grid.blocks), loss_drops(grid.blocks)
    scores, costs, times, matches = [], dict[str, Table](), dict[str, str](), dict[str, str]()
    for backbone in dict.fromkeys(block.backbone for block in grid.blocks):
        own = [block for block in grid.blocks if block.backbone == backbone]
        scores.append(study_tables.benchmark_table(own, found))
    scores.append(study_tables.average_table(grid.blocks, found))
    for block in grid.blocks:
        costs[f"cost-{block.backbone}-{block.retriever}"] = study_tables.cost_table(block)
        times[f"figure4-{block.backbone}-{block.retriever}"] = cost_figure(block)
    for name, record in alignments.items():
        matches[f"alignment-{name}"] = heat_map(name, record)
        matches[f"alignment-tasks-{name}"] = distribution_figure(name, record)
    shown = [c for c in found if c.subset == "all" and c.metric != "loss"]
    return [
        Section(
            "differences",
            "Are the differences real?",
            "Every method answered the same questions; differences are taken question by "
            "question. Support draws count as a source of chance.",
            tables=_difference_tables(found),
            filter="rag-gd minus base, pooled",
        ),
        Section(
            "scores",
            "Scores",
            figures={"figure3a": families_figure(grid.blocks)},
            tables={f"table{number}": table for number, table in enumerate(scores, start=1)},
        ),
        Section(
            "drops",
            "Against test-time SGD",
            "How many times as much as TT-SGD a method takes from the answer loss of the base "
            "adapter. No multiple is shown where TT-SGD's own gain is not certain.",
            tables={"drops": study_tables.drops_table(drops)},
        ),
        Section(
            "paper",
            "Beside the paper",
            "EM / F1 points above the base adapter: as published (7B and 8B backbones, all "
            "questions of seven benchmarks, five passages) and here.",
            tables={"paper": study_tables.paper_table(found)},
        ),
        Section(
            "steps",
            "Number of steps K",
            figures={"figure3b": steps_figure(grid.blocks)},
        ),
        Section("cost", "Accuracy and cost", figures=times, tables=costs),
        Section(
            "evidence",
            "Gain and evidence",
            "Questions whose passages hold an answer, and the others; questions answered by yes "
            "or no are left out. Mean over questions.",
            figures={f"evidence-{m}": evidence_figure(evidence, m) for m in METRICS[1:]},
            tables={"evidence": study_tables.evidence_table(evidence)},
        ),
        Section(
            "alignment",
            "Predicted and true updates",
            "Cosine between the predicted update and the one that K gradient steps make, in "
            "product space, for support sets of the study.",
            figures=matches,
            tables={"alignment": study_tables.alignment_table(alignments)},
        ),
        Section(
            "pairs",
            "Every pair of methods",
            "p_holm is corrected over all pairs of a scope, subset and metric; p_holm_named over "
            "the comparisons of the first table alone. EM and F1 on all benchmarks; the file "
            "pairs.csv has the rest.",
            tables={"pairs": study_tables.pairs_table(shown)},
            filter="pooled rag-gd em",
        ),
        Section(
            "numbers",
            "Every number",
            tables={"numbers": study_tables.numbers_table(grid)},
            filter="rag-gd popqa f1",
        ),
    ]


def write_report(
    out: Path, to: Path, resamples: int, progress: Progress = silent
) -> dict[str, Any]:
    """Write a study's tables, figures and page into `to`; return what ``report.json`` holds."""
    progress("reading records", 0, None)
    grid = load_grid(out, resamples)
    paths = {block.backbone: out / block.backbone / ALIGNMENT_FILE for block in grid.blocks}
    alignments = {
        name: read_json(path, what="alignment record")
        for name, path in paths.items()
        if path.is_file()
    }
    progress("comparing methods", 0, None)
    found = contrasts(grid.blocks)
    progress("tables and figures", 0, None)
    sections = study_sections(grid, found, alignments)
    tables = {name: table for section in sections for name, table in section.tables.items()}
    tables["pairs"] = study_tables.pairs_table(found)  # of which the page shows a part
    for name, table in tables.items():
        write_text(to / f"{name}.csv", table.to_csv())
        if name not in _LONG and table.rows:
            write_text(to / f"{name}.md", table.to_markdown())
            write_text(to / f"{name}.tex", table.to_latex())
    for name, svg in (figure for section in sections for figure in section.figures.items()):
        if svg:
            write_text(to / f"{name}.svg", svg)
    complete = grid.planned - len(grid.missing)
    blocks = [block.name for block in grid.blocks]
    page = study_page(
        title=f"Study {out.name}",
        lead=(
            f"{complete} of {grid.planned} cells are complete. Backbones and retrievers: "
            f"{'; '.join(blocks)}. Every method saw the same questions and demonstrations."
        ),
        grid=grid,
        sections=sections,
    )
    write_text(to / "study.html", page)
    names = ("scope", "subset", "method", "other", "metric", "n")
    differences = [
        {name: getattr(c, name) for name in names}
        | {
            "difference": c.difference.mean,
            "interval": [c.difference.low, c.difference.high],
            "p": c.p_named,
        }
        for c in found
        if c.p_named is not None
    ]
    summary = {
        "cells": grid.planned,
        "complete": complete,
        "blocks": blocks,
        "differences": differences,
        "missing": list(grid.missing),
    }
    write_json(to / "report.json", summary)
    return summary


class SmallReport:
    """Everything that is shown of a small study, whose grid has one block."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.block = grid.blocks[0]
        self.found = contrasts([self.block], NAMED)
        caption = (
            "Differences, question by question, mean of benchmark means; support draws count as a "
            "source of chance. Bold: p < 0.05, corrected by Holm over this table."
        )
        made = [
            study_tables.scores_table(self.block),
            study_tables.contrast_table(self.found, "all", caption),
            study_tables.loss_table(self.block),
        ]
        self.tables = [table for table in made if table.rows]

    @property
    def result(self) -> dict[str, Any]:
        """The JSON result: ``n``, ``benchmarks``, scores in percent, times, answer losses."""
        block = self.block

        def mean(method: str, metric: str, *benchmarks: str) -> float | None:
            found = average(block, method, metric, benchmarks)
            return found.mean if found else None

        methods, losses = dict[str, Any](), dict[str, dict[str, float]]()
        for name in block.methods:
            costs = block.costs.get(name, {})
            methods[name] = {metric: mean(name, metric) for metric in study_tables.SCORES}
            methods[name] |= {cost: costs.get(cost) for cost in ("adapt_ms", "answer_ms")}
            for benchmark in block.benchmarks:
                if (loss := mean(name, "loss", benchmark)) is not None:
                    losses.setdefault(name, {})[benchmark] = loss
        n = sum(len(given) for given in block.answers[block.methods[0]].values())
        named = list(block.benchmarks)
        return {"n": n, "benchmarks": named, "methods": methods, "answer_loss": losses}

    def write(self, out: Path) -> None:
        """Write ``summary.md`` and ``summary.csv`` beside the records."""
        write_text(out / "summary.md", "\n".join(table.to_markdown() for table in self.tables))
        write_text(out / "summary.csv", study_tables.numbers_table(self.grid).to_csv())

    def page(
        self, title: str, lead: str, notes: str, cases: Sequence[ExampleCase], after: str
    ) -> str:
        """Return the study's HTML page, with answers of the base and of `after` side by side."""
        figure = cost_figure(self.block)
        first, *others = self.tables
        compared = {f"table{number}": table for number, table in enumerate(others)}
        return study_page(
            title=title,
            lead=lead,
            grid=self.grid,
            sections=[
                Section("results", "Results", figures={"cost": figure}, tables={"scores": first}),
                Section("differences", "Are the differences real?", tables=compared),
                Section("notes", "Notes", notes),
            ],
            cases=cases,
            after=after,
        )
