"""`raggd evaluate`: methods on benchmarks, to records and a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.benchmarks import known_benchmarks
from raggd.evaluation.runner import Task, run_task
from raggd.evaluation.tasks import task_of
from raggd.files import write_text
from raggd.methods.spec import METHODS
from raggd.records import RunRecord, known_names
from raggd.report.losses import (
    compare_losses,
    loss_comparison_table,
    loss_table,
    mean_losses,
)
from raggd.report.summary import Comparison, SummaryRow, compare, summary_rows
from raggd.report.tables import comparison_table, summary_table

Progress = Callable[[str, int, int], None]


def known_methods(names: Sequence[str]) -> list[str]:
    """Return the methods that are named, checked by `known_names`."""
    return known_names("method", names, METHODS)


def build_tasks(parts: Assembly) -> list[Task]:
    """Build the task of every benchmark in the settings.

    Args:
        parts: settings, data and retriever.

    Returns:
        One task per benchmark.
    """
    names = known_benchmarks(parts.settings.evaluation.benchmarks)
    return [task_of(parts, name) for name in names]


def run_tasks(
    parts: Assembly, tasks: Sequence[Task], methods: Sequence[str], out: Path, progress: Progress
) -> list[RunRecord]:
    """Run methods on tasks.

    Args:
        parts: settings, backbone, weights.
        tasks: from `build_tasks`.
        methods: names of methods.
        out: folder for part files and records; finished parts are not computed again.
        progress: told what is running, questions done and in all.

    Returns:
        One record per benchmark and method.
    """
    ready = parts.methods(known_methods(methods))
    records: list[RunRecord] = []
    for task in tasks:
        records += run_task(task, ready, parts.backbone, parts.settings, out, progress)
    return records


def standard_pairs(methods: Sequence[str]) -> list[tuple[str, str]]:
    """Return the comparisons that a reader asks for first, among the methods present."""
    wanted = [
        ("base", "vanilla-rag"),
        ("rag-gd", "base"),
        ("rag-gd", "mean-update"),
        ("rag-gd", "tt-sgd"),
        ("tt-sgd", "base"),
        ("mean-update", "base"),
        ("rag-gd-tuned", "base"),
        ("rag-gd-tuned", "rag-gd"),
        ("rag-gd-tuned", "tt-sgd"),
        ("rag-gd-tuned", "mean-tuned"),
    ]
    return [pair for pair in wanted if set(pair) <= set(methods)]


def write_tables(
    out: Path,
    rows: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    records: Sequence[RunRecord],
) -> None:
    """Write ``summary.md`` and ``summary.csv`` beside the records.

    Args:
        out: the folder.
        rows: of the summary.
        comparisons: paired differences; may be empty.
        records: whose answer losses, if recorded, make further tables.
    """
    tables = [summary_table(rows)]
    if comparisons:
        tables.append(comparison_table(comparisons))
    if mean_losses(records):
        tables.append(loss_table(records))
        pairs = [(c.method, c.other) for c in comparisons]
        tables.append(loss_comparison_table(compare_losses(records, pairs)))
    write_text(out / "summary.md", "\n".join(table.to_markdown() for table in tables))
    write_text(out / "summary.csv", summary_table(rows, numbers=True).to_csv())


def run_evaluate(
    parts: Assembly, methods: Sequence[str], out: Path, progress: Progress
) -> tuple[dict[str, Any], list[SummaryRow], list[Comparison]]:
    """Evaluate, summarise and write the tables.

    Args:
        parts: settings, data, backbone, weights.
        methods: names of methods.
        out: folder for records and tables.
        progress: told what is running.

    Returns:
        A JSON-ready result, the summary rows, and the paired comparisons.
    """
    methods = known_methods(methods)
    records = run_tasks(parts, build_tasks(parts), methods, out, progress)
    rows = summary_rows(records)
    pairs = standard_pairs(methods)
    comparisons = compare(records, pairs, by_support=True) if pairs else []
    write_tables(out, rows, comparisons, records)
    result = {
        "n": rows[0].n,
        "benchmarks": list(rows[0].benchmarks),
        "methods": {row.method: scores_of(row) for row in rows},
        "answer_loss": mean_losses(records),
        "out": str(out),
    }
    return result, rows, comparisons


def scores_of(row: SummaryRow) -> dict[str, float | None]:
    """Return what ``--json`` shows of a method: percent and milliseconds."""
    return {
        "em": row.em.mean,
        "f1": row.f1.mean,
        "adapt_ms": row.adapt_ms,
        "answer_ms": row.answer_ms,
    }
