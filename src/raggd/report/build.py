"""Tables, figures and one page of a study, or of a small one, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from raggd.evaluation.statistics import Pair
from raggd.files import read_json, write_json, write_text
from raggd.methods.spec import NAMED
from raggd.progress import Progress, silent
from raggd.report import study_tables
from raggd.report.contrasts import (
    METRICS,
    Averages,
    Contrast,
    contrasts,
    evidence_gains,
    loss_drops,
)
from raggd.report.cost_figure import cost_figure
from raggd.report.figures import (
    distribution_figure,
    evidence_figure,
    f1_average,
    families_figure,
    heat_map,
    steps_figure,
)
from raggd.report.grid import ALIGNMENT_FILE, Grid, StudyBlock, load_grid
from raggd.report.page import ExampleCase, Section, Shown, study_page
from raggd.report.tables import Table

BOLD = (
    "Bold: significantly above the base adapter (paired bootstrap, corrected by Holm over all "
    "methods of a block)."
)
STAR = "A star marks tasks that nothing was trained on."
_LONG = ("pairs", "numbers")  # tables for other programs: CSV alone


@dataclass(frozen=True, slots=True)
class Report:
    """Everything computed from a study's folder before it is written, by file name."""

    grid: Grid
    found: list[Contrast]
    tables: dict[str, Table]
    figures: dict[str, str]


def build_report(out: Path, resamples: int, progress: Progress = silent) -> Report:
    """Return tables and figures of a study's folder; the study may be unfinished."""
    progress("reading records", 0, None)
    grid = load_grid(out)
    progress("comparing methods", 0, None)
    blocks, averages = grid.blocks, Averages(resamples)
    found, evidence = contrasts(blocks, resamples), evidence_gains(blocks, resamples)
    progress("tables and figures", 0, None)
    backbones: dict[str, list[StudyBlock]] = {}
    for block in blocks:
        backbones.setdefault(block.backbone, []).append(block)
    paths = {name: out / name / ALIGNMENT_FILE for name in backbones}
    records = {
        name: read_json(path, what="alignment record")
        for name, path in paths.items()
        if path.is_file()
    }
    average = f1_average(averages)
    tables, figures = dict[str, Table](), dict[str, str]()
    for number, (backbone, own) in enumerate(backbones.items(), start=1):
        caption = f"{backbone}: EM / F1 in percent by benchmark. {STAR} {BOLD}"
        tables[f"table{number}"] = study_tables.benchmark_table(own, found, caption, averages)
    caption = f"Averages over benchmarks with 95 % intervals, in percent. {BOLD}"
    overview = study_tables.average_table(blocks, found, caption, averages)
    tables[f"table{len(backbones) + 1}"] = overview
    for subset in ("all", "training tasks", "held-out tasks"):
        name = "differences" if subset == "all" else f"differences-{subset.split()[0]}"
        caption = (
            f"Differences on {'all benchmarks' if subset == 'all' else subset}, question by "
            "question, mean of benchmark means. Bold: p < 0.05, corrected by Holm over the "
            "comparisons of this table that share scope, blocks and measure. A lower answer loss "
            "is better."
        )
        tables[name] = study_tables.contrast_table(found, subset, caption)
    figures["figure3a"] = families_figure(blocks, average)
    figures["figure3b"] = steps_figure(blocks, average)
    for block in blocks:
        name = f"{block.backbone}-{block.retriever}"
        caption = f"{block.name}: cost of a question; per task: one adaptation serves a draw."
        tables[f"cost-{name}"] = study_tables.cost_table(block, caption)
        figures[f"figure4-{name}"] = cost_figure(block, average)
    for metric in METRICS[1:]:
        figures[f"evidence-{metric}"] = evidence_figure(evidence, metric)
    for name, record in records.items():
        figures[f"alignment-{name}"] = heat_map(name, record)
        figures[f"alignment-tasks-{name}"] = distribution_figure(name, record)
    tables["drops"] = study_tables.drops_table(loss_drops(blocks, resamples))
    tables["paper"] = study_tables.paper_table(found)
    tables["evidence"] = study_tables.evidence_table(evidence)
    tables["alignment"] = study_tables.alignment_table(records)
    tables["numbers"] = study_tables.numbers_table(grid, averages)
    tables["pairs"] = study_tables.pairs_table(found)
    return Report(grid, found, tables, figures)


_SECTIONS = (
    ("differences", "Are the differences real?",
     "Every method answered the same questions; differences are taken question by question. "
     "Support draws count as a source of chance.",
     "", ("differences",), "rag-gd minus base, pooled"),
    ("scores", "Scores", "", "figure3a", ("table",), ""),
    ("drops", "Against test-time SGD",
     "How many times as much as TT-SGD a method takes from the answer loss of the base adapter. No "
     "multiple is shown where TT-SGD's own gain is not certain.",
     "", ("drops",), ""),
    ("paper", "Beside the paper",
     "EM / F1 points above the base adapter: as published (7B and 8B backbones, all questions of "
     "seven benchmarks, five passages) and here.",
     "", ("paper",), ""),
    ("steps", "Number of steps K", "", "figure3b", (), ""),
    ("cost", "Accuracy and cost", "", "figure4", ("cost-",), ""),
    ("evidence", "Gain and evidence",
     "Questions whose passages hold an answer, and the others; questions answered by yes or no are "
     "left out. Mean over questions.",
     "evidence-", ("evidence",), ""),
    ("alignment", "Predicted and true updates",
     "Cosine between the predicted update and the one that K gradient steps make, in product "
     "space, for support sets of the study.",
     "alignment-", ("alignment",), ""),
    ("pairs", "Every pair of methods",
     "p_holm is corrected over all pairs of a scope, subset and metric; p_holm_named over the "
     "comparisons of the first table alone. EM and F1 on all benchmarks; the file pairs.csv has "
     "the rest.",
     "", ("pairs",), "pooled rag-gd em"),
    ("numbers", "Every number", "", "", ("numbers",), "rag-gd popqa f1"),
)  # fmt: skip
"""Parts of the page: id, heading, text, how names of their figures and tables begin, and an example
of words to filter rows by."""


def _sections(report: Report) -> list[Section]:
    # the page shows pairs on all benchmarks, in EM and F1
    whole = [c for c in report.found if c.subset == "all" and c.metric != "loss"]
    tables = report.tables | {"pairs": study_tables.pairs_table(whole)}
    return [
        Section(
            name,
            title,
            [text] if text else [],
            [svg for n, svg in report.figures.items() if drawn and n.startswith(drawn)],
            [Shown(table, words) for n, table in tables.items() if n.startswith(shown)],
        )
        for name, title, text, drawn, shown, words in _SECTIONS
    ]


def write_report(
    out: Path, to: Path, resamples: int, progress: Progress = silent
) -> dict[str, Any]:
    """Write tables, figures and the page into the folder `to`; return what report.json holds."""
    report = build_report(out, resamples, progress)
    for name, table in report.tables.items():
        write_text(to / f"{name}.csv", table.to_csv())
        if name not in _LONG and table.rows:
            write_text(to / f"{name}.md", table.to_markdown())
            write_text(to / f"{name}.tex", table.to_latex())
    for name, svg in report.figures.items():
        if svg:
            write_text(to / f"{name}.svg", svg)
    grid = report.grid
    complete = grid.planned - len(grid.missing)
    lead = (
        f"{complete} of {grid.planned} cells are complete. Backbones and retrievers: "
        f"{'; '.join(block.name for block in grid.blocks)}. Every method saw the same questions "
        "and demonstrations."
    )
    page = study_page(
        title=f"Study {out.name}",
        lead=lead,
        sections=_sections(report),
        methods=list(dict.fromkeys(m for block in grid.blocks for m in block.methods)),
        planned=grid.planned,
        missing=grid.missing,
        settings=grid.settings,
    )
    write_text(to / "study.html", page)
    names = ("scope", "subset", "method", "other", "metric", "n")
    differences = [
        {name: getattr(c, name) for name in names}
        | {
            "difference": c.difference.mean,
            "interval": [x if isfinite(x) else None for x in (c.difference.low, c.difference.high)],
            "p": c.p_named,
        }
        for c in report.found
        if c.p_named is not None
    ]
    summary = {
        "cells": grid.planned,
        "complete": complete,
        "blocks": [block.name for block in grid.blocks],
        "differences": differences,
        "missing": list(grid.missing),
    }
    write_json(to / "report.json", summary)
    return summary


_DIFFERENCES = (
    "Differences, question by question, mean of benchmark means; support draws count as a source "
    "of chance. Bold: p < 0.05, corrected by Holm over this table."
)


@dataclass(frozen=True)
class SmallReport:
    """Everything that is shown of a small study, whose grid has one block."""

    grid: Grid
    block: StudyBlock
    averages: Averages
    found: Sequence[Contrast]

    @cached_property
    def tables(self) -> list[Table]:
        """Scores and costs, differences, answer losses."""
        made = [
            study_tables.scores_table(self.block, self.averages),
            study_tables.contrast_table(self.found, "all", _DIFFERENCES),
            study_tables.loss_table(self.block),
        ]
        return [table for table in made if table.rows]

    def _mean(self, method: str, benchmarks: Sequence[str], metric: str) -> float | None:
        found = self.averages.of(self.block, method, benchmarks, metric)
        return found.mean if found else None

    @property
    def result(self) -> dict[str, Any]:
        """The JSON result: ``n``, ``benchmarks``, scores in percent, times, answer losses."""
        block = self.block
        methods, losses = dict[str, Any](), dict[str, dict[str, float]]()
        for name in block.methods:
            costs = block.costs.get(name, {})
            methods[name] = {m: self._mean(name, block.benchmarks, m) for m in ("em", "f1")}
            methods[name] |= {cost: costs.get(cost) for cost in ("adapt_ms", "answer_ms")}
            for benchmark in block.benchmarks:
                loss = self._mean(name, (benchmark,), "loss")
                if loss is not None:
                    losses.setdefault(name, {})[benchmark] = loss
        n = sum(len(given) for given in block.answers[block.methods[0]].values())
        named = list(block.benchmarks)
        return {"n": n, "benchmarks": named, "methods": methods, "answer_loss": losses}

    def write(self, out: Path) -> None:
        """Write ``summary.md`` and ``summary.csv`` beside the records."""
        write_text(out / "summary.md", "\n".join(table.to_markdown() for table in self.tables))
        numbers = study_tables.numbers_table(self.grid, self.averages)
        write_text(out / "summary.csv", numbers.to_csv())

    def page(
        self, title: str, lead: str, notes: Sequence[str], cases: Sequence[ExampleCase], after: str
    ) -> str:
        """Return the study's HTML page, with answers of the base and of `after` side by side."""
        figure = cost_figure(self.block, f1_average(self.averages))
        shown = [Shown(table) for table in self.tables]
        return study_page(
            title=title,
            lead=lead,
            sections=[
                Section("results", "Results", (), [figure], shown[:1]),
                Section("differences", "Are the differences real?", (), (), shown[1:]),
                Section("notes", "Notes", notes),
            ],
            methods=self.block.methods,
            settings=self.grid.settings,
            cases=cases,
            compared=("base", after),
        )


def small_report(out: Path, resamples: int = 10_000, pairs: Sequence[Pair] = NAMED) -> SmallReport:
    """Return what is shown of the small study in a folder, given pairs of methods to compare."""
    grid = load_grid(out)
    block = grid.blocks[0]
    return SmallReport(grid, block, Averages(resamples), contrasts([block], resamples, pairs))
