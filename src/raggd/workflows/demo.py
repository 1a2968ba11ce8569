"""`raggd demo`: the main job on real questions, on any machine, in minutes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.evaluation.runner import Item, Task
from raggd.files import write_text
from raggd.records import Prediction, RunRecord
from raggd.report.figures import cost_accuracy_figure
from raggd.report.page import Case, demo_page, details_of, make_case
from raggd.report.summary import Comparison, SummaryRow, compare, summary_rows
from raggd.settings import EvaluationSettings, Settings
from raggd.workflows.evaluate import (
    build_tasks,
    run_tasks,
    scores_of,
    standard_pairs,
    write_tables,
)

DEMO_METHODS = ("vanilla-rag", "base", "mean-update", "tt-sgd", "rag-gd")
"""And what the weights' best predictor makes, where that is another."""
CASES = 12
Progress = Callable[[str, int, int], None]


def demo_settings(questions: int = 120) -> Settings:
    """Make the demo's settings: embedded data and backbone, shipped weights.

    Args:
        questions: in all, half NQ and half TriviaQA.

    Returns:
        The settings.
    """
    evaluation = EvaluationSettings(
        benchmarks=["nq", "triviaqa"], questions=max(1, questions // 2), draws=3
    )
    return Settings(evaluation=evaluation)


def _answers_of(item: Item, records: Sequence[RunRecord]) -> dict[str, Prediction]:
    return {
        record.method: p
        for record in records
        for p in record.predictions
        if p.question_id == item.question.id and record.benchmark == item.question.task
    }


def choose_cases(
    tasks: Sequence[Task], records: Sequence[RunRecord], count: int, adapted: str
) -> list[Case]:
    """Choose questions to show: those that the update changed first, better or worse.

    Args:
        tasks: with their items.
        records: of all methods on them.
        count: how many.
        adapted: the method whose answers are compared with the base adapter's.

    Returns:
        The cases: a third of them better and a third worse where there are so many, the rest
        unchanged ones, then further changed ones.
    """
    items = [item for task in tasks for draw in task.draws for item in draw]
    answers = {item.question.id: _answers_of(item, records) for item in items}

    def change(item: Item) -> float:
        given = answers[item.question.id]
        return given[adapted].f1 - given["base"].f1

    better = [item for item in items if change(item) > 0]
    worse = [item for item in items if change(item) < 0]
    same = [item for item in items if change(item) == 0]
    third = max(1, count // 3)
    chosen = better[:third] + worse[:third]
    chosen = (chosen + same + better[third:] + worse[third:])[:count]
    return [make_case(i.question, i.passages, answers[i.question.id], i.support) for i in chosen]


def _page(
    settings: Settings,
    tasks: Sequence[Task],
    records: Sequence[RunRecord],
    rows: Sequence[SummaryRow],
    comparisons: Sequence[Comparison],
    adapted: str,
) -> str:
    backbone = settings.backbone.name
    notes = [
        f"{rows[0].n} real test questions of NQ and TriviaQA, none of them seen in training, "
        f"answered by {backbone} from the {settings.retrieval.top_k} passages that BM25 finds "
        "among 10,033 Wikipedia leads.",
        f"Every method sees the same questions, passages and demonstrations. "
        f"{settings.evaluation.draws} support sets of {settings.target.demonstrations} "
        "demonstrations per benchmark each serve their share of the questions; the cost shown is "
        "the median of one adaptation.",
    ]
    return demo_page(
        title="raggd demo: adapting a frozen language model in one forward pass",
        rows=rows,
        figure_svg=cost_accuracy_figure(rows),
        cases=choose_cases(tasks, records, CASES, adapted),
        notes=notes,
        command="raggd demo",
        comparisons=comparisons,
        details=details_of(records),
        after=adapted,
    )


def run_demo(
    parts: Assembly, out: Path, progress: Progress
) -> tuple[dict[str, Any], list[SummaryRow], list[Comparison]]:
    """Retrieve, adapt and answer with every method; write the table and the page.

    Args:
        parts: of `demo_settings`.
        out: folder for records, tables and ``demo.html``.
        progress: told what is running, questions done and in all.

    Returns:
        The JSON result (``n``, ``seconds``, ``methods``), the rows, and the comparisons.
    """
    started = time.monotonic()
    settings = parts.settings
    tasks = build_tasks(parts)
    methods = list(dict.fromkeys([*DEMO_METHODS, parts.adapting]))
    records = run_tasks(parts, tasks, methods, out, progress)
    rows = summary_rows(records)
    comparisons = compare(records, standard_pairs(methods), by_support=True)
    write_tables(out, rows, comparisons, records)
    page = _page(settings, tasks, records, rows, comparisons, parts.adapting)
    write_text(out / "demo.html", page)
    result = {
        "n": rows[0].n,
        "seconds": round(time.monotonic() - started, 1),
        "methods": {row.method: scores_of(row) for row in rows},
    }
    return result, rows, comparisons
