"""`raggd demonstrations compare`: updates from made demonstrations, from gold ones, and none.

The passages are those found for the support pool's questions, less all that are evidence of a
scored question; the pool's own questions and answers are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import known_benchmarks, scored_questions, support_pool
from raggd.evaluation.runner import Task, run_task
from raggd.evaluation.tasks import support_sets, task_of
from raggd.files import read_json, write_json
from raggd.making.propose import Yield, propose
from raggd.methods.controls import ShuffledSupport
from raggd.records import Passage, Question, RaggdError, RunRecord, SupportSet, content_id
from raggd.report.losses import compare_losses, loss_comparison_table, loss_table, mean_losses
from raggd.report.summary import compare, summary_rows
from raggd.report.tables import Table, comparison_table, summary_table
from raggd.retrieval.evidence import evidence_for
from raggd.workflows.evaluate import scores_of, write_tables
from raggd.workflows.make_demonstrations import as_line, choose_passages, maker_of

MADE = "rag-gd-made"
CONTROL = {"rag-gd": "mean-update", "rag-gd-tuned": "mean-tuned"}
"""One update for all demonstrations, trained as each adapting method is."""
PASSAGES_PER_QUESTION = 10
Progress = Callable[[str, int, int], None]


def pool_passages(parts: Assembly, name: str) -> list[Passage]:
    """Find passages of a task that are no evidence for a scored question.

    Args:
        parts: data and retriever.
        name: the benchmark.

    Returns:
        The passages, by id.
    """
    pool = support_pool(parts.source, name)
    scored = scored_questions(parts.source, name)
    found = evidence_for(pool, parts.retriever, PASSAGES_PER_QUESTION)
    top_k = parts.settings.retrieval.top_k
    used = {p.id for shown in evidence_for(scored, parts.retriever, top_k) for p in shown}
    kept = {p.id: p for shown in found for p in shown if p.id not in used}
    return [kept[name] for name in sorted(kept)]


def made_pool(
    parts: Assembly, name: str, count: int, out: Path, progress: Progress
) -> tuple[list[Question], dict[str, int]]:
    """Make demonstrations for a task, or read those that were made for it before.

    Args:
        parts: settings, data, backbone, base adapter, retriever.
        name: the benchmark.
        count: demonstrations wanted.
        out: folder; ``made-<name>.json`` keeps them.
        progress: told how many are made.

    Returns:
        Questions with answers, and the yield.

    Raises:
        RaggdError: there are fewer than one support set needs.
    """
    seed, needed = parts.settings.evaluation.seed, parts.settings.target.demonstrations
    passages = pool_passages(parts, name)
    identity = content_id(
        parts.backbone.fingerprint,
        parts.base.fingerprint,
        parts.retriever.fingerprint,
        f"{count} {seed} {parts.settings.retrieval.top_k}",
        *(p.id for p in passages),
    )
    path = out / f"made-{name}.json"
    known = read_json(path, what="made demonstrations") if path.is_file() else {}
    if known.get("identity") != identity:
        counted, lines = Yield(), []
        chosen = choose_passages(passages, len(passages), seed)
        for proposal in propose(maker_of(parts, parts.retriever), chosen, seed, counted):
            lines.append(as_line(proposal))
            progress(f"{name}: making demonstrations", len(lines), count)
            if len(lines) == count:
                break
        known = {"identity": identity, "yield": asdict(counted), "demonstrations": lines}
        write_json(path, known)
    questions = [
        Question(f"{name}:made-{i}", line["question"], (line["answer"],), name)
        for i, line in enumerate(known["demonstrations"])
    ]
    if len(questions) < needed:
        raise RaggdError(
            f"only {len(questions)} demonstrations could be made from {len(passages)} passages of "
            f"'{name}', a support set needs {needed}: lower target.demonstrations."
        )
    return questions, known["yield"]


def _made_supports(
    parts: Assembly, task: Task, out: Path, progress: Progress
) -> tuple[dict[str, SupportSet], dict[str, int]]:
    settings = parts.settings
    own = list(dict.fromkeys(item.support.id for draw in task.draws for item in draw))
    size = settings.target.demonstrations
    wanted = size * min(len(own), max(1, settings.evaluation.draws))
    questions, tried = made_pool(parts, task.benchmark, wanted, out, progress)
    drawn = draw_supports(questions, size, len(own), settings.evaluation.seed)
    sets = support_sets(task.benchmark, drawn, parts.retriever, settings.retrieval.top_k)
    return dict(zip(own, sets, strict=True)), tried


def _in_its_place(made: Mapping[str, SupportSet], own: SupportSet) -> SupportSet:
    return made[own.id]


def run_compare(
    parts: Assembly, names: Sequence[str], out: Path, progress: Progress
) -> tuple[dict[str, Any], list[Table]]:
    """Score base, one update for all, RAG-GD from gold and RAG-GD from made demonstrations.

    Args:
        parts: settings, data, backbone, weights.
        names: benchmarks.
        out: folder for made demonstrations, part files and records; an interrupted run continues.
        progress: told what is running.

    Returns:
        A JSON-ready result, and the tables.
    """
    settings = parts.settings
    gold, control = parts.adapting, CONTROL[parts.adapting]
    pairs = [(MADE, "base"), (gold, "base"), (MADE, gold), (MADE, control)]
    plain = parts.methods(["base", control, gold])
    records: list[RunRecord] = []
    tried: dict[str, dict[str, int]] = {}
    for name in known_benchmarks(names):
        task = task_of(parts, name)
        made, tried[name] = _made_supports(parts, task, out, progress)
        swapped = ShuffledSupport(plain[-1], partial(_in_its_place, made), MADE)
        methods = [*plain, swapped]
        records += run_task(task, methods, parts.backbone, settings, out, progress)
    rows, comparisons = summary_rows(records), compare(records, pairs, by_support=True)
    write_tables(out, rows, comparisons, records)
    losses = compare_losses(records, pairs)
    result = {
        "n": rows[0].n,
        "methods": {row.method: scores_of(row) for row in rows},
        "answer_loss": mean_losses(records),
        "loss_differences": [asdict(difference) for difference in losses],
        "yield": tried,
        "out": str(out),
    }
    tables = [summary_table(rows), comparison_table(comparisons)]
    if losses:  # recorded with evaluation.answer_loss
        tables += [loss_table(records), loss_comparison_table(losses)]
    return result, tables
