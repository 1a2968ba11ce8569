"""`raggd demonstrations compare`: updates from made demonstrations, from gold ones, and none.

The passages are those found for the support pool's questions, less all that are evidence of a
scored question; the pool's own questions and answers are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.adaptation.supports import draw_supports
from raggd.assembly import Assembly
from raggd.data.benchmarks import known_benchmarks, scored_questions, support_pool
from raggd.evaluation.runner import Task, support_sets
from raggd.files import read_json, write_json
from raggd.making import Yield, as_line, choose_passages, maker_of, propose
from raggd.methods.controls import ShuffledSupport
from raggd.methods.spec import SPECS
from raggd.progress import Progress
from raggd.records import Passage, Question, RaggdError, SupportSet, content_id
from raggd.report.build import small_report
from raggd.report.tables import Table
from raggd.retrieval.evidence import evidence_for
from raggd.settings import changed
from raggd.study.folder import locked, write_plan
from raggd.study.plan import all_cells
from raggd.study.runner import StudyRunner
from raggd.study.settings import study_of

MADE = "rag-gd-made"
PASSAGES_PER_QUESTION = 10


def pool_passages(parts: Assembly, name: str) -> list[Passage]:
    """Find passages of a task that are no evidence for a scored question, by id."""
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
    """Make demonstrations for a task, or read those that ``made-<name>.json`` keeps; and the yield.

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
    own = list(dict.fromkeys(item.support.id for item in task.items))
    size = settings.target.demonstrations
    wanted = size * min(len(own), max(1, settings.evaluation.draws))
    questions, tried = made_pool(parts, task.benchmark, wanted, out, progress)
    drawn = draw_supports(questions, size, len(own), settings.evaluation.seed)
    sets = support_sets(task.benchmark, drawn, parts.retriever, settings.retrieval.top_k)
    return dict(zip(own, sets, strict=True)), tried


def run_compare(
    parts: Assembly, names: Sequence[str], out: Path, progress: Progress
) -> tuple[dict[str, Any], list[Table]]:
    """Score base, one update for all, RAG-GD from gold and RAG-GD from made demonstrations.

    Made demonstrations, part files and records are kept in `out`; an interrupted run continues.
    """
    gold, made = parts.adapting, dict[str, SupportSet]()
    benchmarks = known_benchmarks(names, parts.source)
    settings = changed(parts.settings, "evaluation", benchmarks=benchmarks)
    study = study_of(settings, ["base", SPECS[gold].control, gold, MADE])

    def swapped(loaded: Assembly) -> ShuffledSupport:
        return ShuffledSupport(loaded.method(gold), lambda support: made[support.id], MADE)

    runner = StudyRunner(study, out, progress, loaded=parts, own={MADE: swapped})
    tried: dict[str, dict[str, int]] = {}
    with locked(out):
        for name in benchmarks:
            task = runner.task(study.seeds[0], study.retrievers[0].name, name)
            found, tried[name] = _made_supports(parts, task, out, progress)
            made |= found
        write_plan(study, out)
        cells = all_cells(study)
        runner.run(cells)
    report = small_report(out)
    report.write(out)
    losses = [c for c in report.found if (c.metric, c.subset) == ("loss", "all")]
    result = {
        **report.result,
        "loss_differences": [asdict(c) for c in losses],
        "yield": tried,
        "out": str(out),
    }
    return result, report.tables
