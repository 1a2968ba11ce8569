"""A small study, of one backbone and one retriever: its tables and its page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from raggd.files import write_text
from raggd.methods.spec import NAMED
from raggd.report.cases import Case
from raggd.report.contrasts import Averages, Contrast, Pair, contrasts
from raggd.report.figures import cost_figure, f1_average
from raggd.report.grid import Block, Grid, load_grid
from raggd.report.page import Section, Shown, study_page
from raggd.report.study_tables import contrast_table, loss_table, numbers_table, scores_table
from raggd.report.tables import Table

_DIFFERENCES = (
    "Differences, question by question, mean of benchmark means; support draws count as a source "
    "of chance. Bold: p < 0.05, corrected by Holm over this table."
)


@dataclass(frozen=True)
class SmallReport:
    """Everything that is shown of a small study.

    Attributes:
        grid: the study.
        block: its only block.
        averages: its means.
        found: its differences, those that methods are made for.
    """

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
        """Return the page of the study, with questions side by side.

        Args:
            title: the heading.
            lead: one paragraph below it.
            notes: how the numbers came about.
            cases: questions to show.
            after: the method whose answers are compared with the base adapter's.

        Returns:
            A whole HTML document.
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
