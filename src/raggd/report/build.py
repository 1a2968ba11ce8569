"""Tables, figures and one page of a study, or of a small one, from its records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

from raggd.files import write_json, write_text
from raggd.methods.spec import NAMED
from raggd.progress import Progress, silent
from raggd.report.contrasts import Averages, Contrast, Pair, contrasts
from raggd.report.figures import Average, cost_figure, f1_average
from raggd.report.gains import (
    EvidenceGain,
    drops_table,
    evidence_gains,
    evidence_table,
    loss_drops,
    paper_table,
)
from raggd.report.grid import Block, Grid, load_grid
from raggd.report.page import Case, Section, Shown, study_page
from raggd.report.study_figures import (
    alignment_table,
    distribution_figure,
    evidence_figure,
    families_figure,
    heat_map,
    load_alignments,
    steps_figure,
)
from raggd.report.study_tables import (
    average_table,
    benchmark_table,
    contrast_table,
    cost_table,
    loss_table,
    numbers_table,
    pairs_table,
    scores_table,
)
from raggd.report.tables import Table

BOLD = (
    "Bold: significantly above the base adapter (paired bootstrap, corrected by Holm over all "
    "methods of a block)."
)
STAR = "A star marks tasks that nothing was trained on."


@dataclass(frozen=True, slots=True)
class Report:
    """Everything computed from a study's folder before it is written, by file name."""

    grid: Grid
    found: list[Contrast]
    evidence: list[EvidenceGain]
    tables: dict[str, Table]
    figures: dict[str, str]


def _by_backbone(blocks: Sequence[Block]) -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for block in blocks:
        found.setdefault(block.backbone, []).append(block)
    return found


def _tables(grid: Grid, found: list[Contrast], averages: Averages) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for number, (backbone, blocks) in enumerate(_by_backbone(grid.blocks).items(), start=1):
        caption = f"{backbone}: EM / F1 in percent by benchmark. {STAR} {BOLD}"
        tables[f"table{number}"] = benchmark_table(blocks, found, caption, averages)
    caption = f"Averages over benchmarks with 95 % intervals, in percent. {BOLD}"
    last = f"table{len(tables) + 1}"
    tables[last] = average_table(grid.blocks, found, caption, averages)
    for subset in ("all", "training tasks", "held-out tasks"):
        name = "differences" if subset == "all" else f"differences-{subset.split()[0]}"
        caption = (
            f"Differences on {'all benchmarks' if subset == 'all' else subset}, question by "
            "question, mean of benchmark means. Bold: p < 0.05, corrected by Holm over the "
            "comparisons of this table that share scope, blocks and measure. A lower answer loss "
            "is better."
        )
        tables[name] = contrast_table(found, subset, caption)
    for block in grid.blocks:
        caption = f"{block.name}: cost of a question; per task: one adaptation serves a draw."
        tables[f"cost-{block.backbone}-{block.retriever}"] = cost_table(block, caption)
    return tables


def _figures(grid: Grid, evidence: list[EvidenceGain], average: Average) -> dict[str, str]:
    figures = {
        "figure3a": families_figure(grid.blocks, average),
        "figure3b": steps_figure(grid.blocks, average),
    }
    for block in grid.blocks:
        figures[f"figure4-{block.backbone}-{block.retriever}"] = cost_figure(block, average)
    for metric in ("f1", "loss"):
        figures[f"evidence-{metric}"] = evidence_figure(evidence, metric)
    return figures


def build_report(out: Path, resamples: int, progress: Progress = silent) -> Report:
    """Return tables and figures of a study's folder; the study may be unfinished."""
    progress("reading records", 0, None)
    grid = load_grid(out)
    progress("comparing methods", 0, None)
    found = contrasts(grid.blocks, resamples)
    evidence = evidence_gains(grid.blocks, resamples)
    progress("tables and figures", 0, None)
    averages = Averages(resamples)
    tables = _tables(grid, found, averages)
    tables["drops"] = drops_table(loss_drops(grid.blocks, resamples))
    tables["paper"] = paper_table(found)
    tables["evidence"] = evidence_table(evidence)
    figures = _figures(grid, evidence, f1_average(averages))
    records = load_alignments(out, list(_by_backbone(grid.blocks)))
    for name, record in records.items():
        figures[f"alignment-{name}"] = heat_map(name, record)
        figures[f"alignment-tasks-{name}"] = distribution_figure(name, record)
    tables["alignment"] = alignment_table(records)
    tables["numbers"] = numbers_table(grid, averages)
    tables["pairs"] = pairs_table(found)
    return Report(grid, found, evidence, tables, figures)


def _shown_pairs(found: Sequence[Contrast]) -> list[Contrast]:
    return [c for c in found if c.subset == "all" and c.metric != "loss"]


def _sections(report: Report) -> list[Section]:
    tables, figures = report.tables, report.figures

    def named(prefix: str) -> list[str]:
        return [svg for name, svg in figures.items() if name.startswith(prefix)]

    def shown(*prefixes: str) -> list[Shown]:
        return [Shown(t) for name, t in tables.items() if name.startswith(prefixes)]

    return [
        Section(
            "differences",
            "Are the differences real?",
            ("Every method answered the same questions; differences are taken question by "
             "question. Support draws count as a source of chance.",),
            (),
            [Shown(t.table, "rag-gd minus base, pooled") for t in shown("differences")],
        ),
        Section("scores", "Scores", (), named("figure3a"), shown("table")),
        Section(
            "drops",
            "Against test-time SGD",
            ("How many times as much as TT-SGD a method takes from the answer loss of the base "
             "adapter. No multiple is shown where TT-SGD's own gain is not certain.",),
            (),
            shown("drops"),
        ),
        Section(
            "paper",
            "Beside the paper",
            ("EM / F1 points above the base adapter: as published (7B and 8B backbones, all "
             "questions of seven benchmarks, five passages) and here.",),
            (),
            shown("paper"),
        ),
        Section("steps", "Number of steps K", (), named("figure3b")),
        Section("cost", "Accuracy and cost", (), named("figure4"), shown("cost-")),
        Section(
            "evidence",
            "Gain and evidence",
            ("Questions whose passages hold an answer, and the others; questions answered by yes "
             "or no are left out. Mean over questions.",),
            named("evidence-"),
            shown("evidence"),
        ),
        Section(
            "alignment",
            "Predicted and true updates",
            ("Cosine between the predicted update and the one that K gradient steps make, in "
             "product space, for support sets of the study.",),
            named("alignment-"),
            shown("alignment"),
        ),
        Section(
            "pairs",
            "Every pair of methods",
            ("p_holm is corrected over all pairs of a scope, subset and metric; p_holm_named over "
             "the comparisons of the first table alone. EM and F1 on all benchmarks; the file "
             "pairs.csv has the rest.",),
            (),
            [Shown(pairs_table(_shown_pairs(report.found)), "pooled rag-gd em")],
        ),
        Section(
            "numbers",
            "Every number",
            (),
            (),
            [Shown(tables["numbers"], "rag-gd popqa f1")],
        ),
    ]  # fmt: skip


def _page(report: Report, title: str) -> str:
    grid = report.grid
    names = [block.name for block in grid.blocks]
    methods = list(dict.fromkeys(m for block in grid.blocks for m in block.methods))
    done = grid.planned - len(grid.missing)
    lead = (
        f"{done} of {grid.planned} cells are complete. Backbones and retrievers: "
        f"{'; '.join(names)}. Every method saw the same questions and demonstrations."
    )
    return study_page(
        title=title,
        lead=lead,
        sections=_sections(report),
        methods=methods,
        planned=grid.planned,
        missing=grid.missing,
        settings=grid.settings,
    )


def _summary(report: Report) -> dict[str, Any]:
    return {
        "cells": report.grid.planned,
        "complete": report.grid.planned - len(report.grid.missing),
        "blocks": [block.name for block in report.grid.blocks],
        "differences": [
            {
                "scope": c.scope,
                "subset": c.subset,
                "method": c.method,
                "other": c.other,
                "metric": c.metric,
                "n": c.n,
                "difference": c.difference.mean,
                "interval": [
                    x if isfinite(x) else None for x in (c.difference.low, c.difference.high)
                ],
                "p": c.p_named,
            }
            for c in report.found
            if c.named
        ],
        "missing": list(report.grid.missing),
    }


def write_report(
    out: Path, to: Path, resamples: int, progress: Progress = silent
) -> dict[str, Any]:
    """Write tables, figures and the page of a study's folder into the folder `to`.

    Cells, complete ones, named differences, missing cells: what ``report.json`` holds.
    """
    report = build_report(out, resamples, progress)
    for name, table in report.tables.items():
        write_text(to / f"{name}.csv", table.to_csv())
        if name not in {"pairs", "numbers"} and table.rows:
            write_text(to / f"{name}.md", table.to_markdown())
            write_text(to / f"{name}.tex", table.to_latex())
    for name, svg in report.figures.items():
        if svg:
            write_text(to / f"{name}.svg", svg)
    write_text(to / "study.html", _page(report, f"Study {out.name}"))
    summary = _summary(report)
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
    block: Block
    averages: Averages
    found: Sequence[Contrast]

    @cached_property
    def tables(self) -> list[Table]:
        """Scores and costs, differences, answer losses."""
        made = [
            scores_table(self.block, self.averages),
            contrast_table(self.found, "all", _DIFFERENCES),
            loss_table(self.block),
        ]
        return [table for table in made if table.rows]

    @property
    def result(self) -> dict[str, Any]:
        """The JSON result: ``n``, ``benchmarks``, scores in percent, times, answer losses."""
        block = self.block
        methods, losses = {}, dict[str, dict[str, float]]()
        for name in block.methods:
            scores = {
                metric: self.averages.of(block, name, block.benchmarks, metric)
                for metric in ("em", "f1")
            }
            costs = block.costs.get(name, {})
            methods[name] = {metric: x.mean if x else None for metric, x in scores.items()} | {
                cost: costs.get(cost) for cost in ("adapt_ms", "answer_ms")
            }
            for benchmark in block.benchmarks:
                loss = self.averages.of(block, name, (benchmark,), "loss")
                if loss:
                    losses.setdefault(name, {})[benchmark] = loss.mean
        n = sum(len(given) for given in block.answers[block.methods[0]].values())
        return {
            "n": n,
            "benchmarks": list(block.benchmarks),
            "methods": methods,
            "answer_loss": losses,
        }

    def write(self, out: Path) -> None:
        """Write ``summary.md`` and ``summary.csv`` beside the records."""
        write_text(out / "summary.md", "\n".join(table.to_markdown() for table in self.tables))
        numbers = numbers_table(self.grid, self.averages)
        write_text(out / "summary.csv", numbers.to_csv())

    def page(
        self, title: str, lead: str, notes: Sequence[str], cases: Sequence[Case], after: str
    ) -> str:
        """Return the page of the study, an HTML document, with questions side by side.

        `after` is the method whose answers are compared with the base adapter's.
        """
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
