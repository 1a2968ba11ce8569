"""`raggd evaluate --questions`: does adapting help on one's own questions? A small study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.data.benchmarks import choose_by_hash
from raggd.data.prompts import answer_tokens
from raggd.data.questions import read_demonstrations
from raggd.evaluation.forms import infer_form
from raggd.evaluation.runner import Item, Task
from raggd.evaluation.tasks import support_sets
from raggd.files import write_text
from raggd.methods.spec import FILES_OF, METHODS, SPECS
from raggd.progress import Progress
from raggd.records import Question, RaggdError, SupportSet, known_names
from raggd.report.own import OwnReport, own_report
from raggd.retrieval.base import Retriever
from raggd.retrieval.evidence import evidence_for, make_demonstrations
from raggd.study.check import check_cells
from raggd.study.folder import locked, read_record, write_plan
from raggd.study.plan import all_cells
from raggd.study.runner import StudyRunner, Turn, at_once
from raggd.study.settings import study_of

FOLDS = 4
"""Parts of the demonstrations in cross-validation: each is asked, adapted to the other three."""
FEWEST = 12
"""Answered questions from which cross-validation is done."""
DRAWS = 3
"""Support sets at most where demonstrations come apart from the questions."""


def own_methods(parts: Assembly) -> list[str]:
    """Return what is compared: the base, few shot, what adapts by default, its best rival."""
    adapting = parts.adapting
    rival = SPECS[adapting].control
    there = all((parts.weights / file).is_file() for file in FILES_OF.get(rival, ("",)))
    wanted = {"base", "base-few-shot", adapting, *([rival] if rival and there else [])}
    return [name for name in METHODS if name in wanted]


def _folds(
    questions: Sequence[Question], size: int, seed: int
) -> list[tuple[list[Question], list[Question]]]:
    # (asked, shown): a part of the questions, and a support set of the others
    ranked = choose_by_hash(questions, len(questions), seed)
    folds = []
    for number in range(FOLDS):
        asked = ranked[number::FOLDS]
        ids = {question.id for question in asked}
        rest = [question for question in ranked if question.id not in ids]
        folds.append((asked, choose_by_hash(rest, size, seed + number)))
    return folds


def _draws(
    questions: Sequence[Question], shown: Sequence[Question], size: int, seed: int
) -> list[tuple[list[Question], list[Question]]]:
    # disjoint support sets as far as the demonstrations reach; each serves a share of the questions
    ranked = choose_by_hash(shown, len(shown), seed)
    count = max(1, min(DRAWS, len(ranked) // size, len(questions)))
    asked = choose_by_hash(questions, len(questions), seed)
    return [(asked[i::count], ranked[i * size : i * size + size]) for i in range(count)]


def own_task(
    name: str,
    questions: Sequence[Question],
    shown: Sequence[Question],
    retriever: Retriever,
    k: int,
    size: int,
    seed: int,
) -> Task:
    """Make a task of one's own questions.

    Args:
        name: of the task.
        questions: to be scored.
        shown: demonstrations; none: the questions are cross-validated.
        retriever: finds evidence.
        k: passages per question.
        size: demonstrations per support set, at most.
        seed: of the choice.

    Returns:
        The task; a draw is a fold, or a share of the questions with its support set.

    Raises:
        RaggdError: there are too few questions to be cross-validated.
    """
    if not shown and len(questions) < FEWEST:
        raise RaggdError(
            f"{len(questions)} answered questions are too few to be asked and shown in turn: give "
            f"{FEWEST} or more, or demonstrations of their own by --demonstrations."
        )
    dealt = _draws(questions, shown, size, seed) if shown else _folds(questions, size, seed)
    supports = support_sets(name, [demonstrations for _, demonstrations in dealt], retriever, k)
    draws = []
    for (asked, _), support in zip(dealt, supports, strict=True):
        passages = evidence_for(asked, retriever, k)
        golds = make_demonstrations(asked, retriever, k)
        items = zip(asked, passages, golds, strict=True)
        draws.append(tuple(Item(q, found, gold, support) for q, found, gold in items))
    return Task(name, "own", tuple(draws), retriever.fingerprint)


def _without(questions: Sequence[Question], shown: Sequence[Question]) -> list[Question]:
    texts = {question.text for question in shown}
    return [question for question in questions if question.text not in texts]


def run_own(
    parts: Assembly,
    questions: Path | None,
    demonstrations: Path | None,
    methods: Sequence[str],
    out: Path,
    progress: Progress,
) -> tuple[dict[str, Any], OwnReport]:
    """Score methods on one's own questions and say whether to adapt, and with what.

    Args:
        parts: settings with the corpus; backbone, weights.
        questions: JSON Lines of answered questions; None: the demonstrations, cross-validated.
        demonstrations: to adapt to; None: the questions, cross-validated.
        methods: names; none: `own_methods`.
        out: folder of the study.
        progress: told what is running.

    Returns:
        The JSON result and the report.

    Raises:
        RaggdError: no file is named, or no question is left beside the demonstrations.
    """
    named = questions or demonstrations
    if named is None:
        raise RaggdError("name a file of answered questions by --questions or --demonstrations.")
    settings = parts.settings
    names = known_names("method", methods, METHODS) if methods else own_methods(parts)
    label = "".join(c if c.isalnum() else "-" for c in named.stem) or "own"
    shown = read_demonstrations(demonstrations) if questions and demonstrations else []
    asked = _without(read_demonstrations(named), shown)
    if not asked:
        raise RaggdError(f"every question of {named} is also a demonstration: none is left to ask.")
    k, size = settings.retrieval.top_k, settings.target.demonstrations
    task = own_task(label, asked, shown, parts.retriever, k, size, settings.evaluation.seed)
    report = score_task(parts, task, names, out, progress)
    write_text(out / "summary.md", "\n".join(table.to_markdown() for table in report.tables))
    how = f"{len(task.draws)} folds" if not shown else f"{len(task.draws)} support sets"
    return report.result | {"out": str(out), "support": how}, report


def set_task(support: SupportSet, asked: Sequence[Question], retriever: Retriever, k: int) -> Task:
    """Make a task of a support set: other questions, or its own, each adapted to all but it.

    Raises:
        RaggdError: there are no other questions, and one example alone.
    """
    shown = support.demonstrations
    if asked:
        golds = make_demonstrations(asked, retriever, k)
        items = zip(asked, evidence_for(asked, retriever, k), golds, strict=True)
        draws = [tuple(Item(q, found, gold, support) for q, found, gold in items)]
        return Task("own", "own", tuple(draws), retriever.fingerprint)
    if len(shown) < 2:
        raise RaggdError("one example cannot be asked and shown: give two or more, or questions.")
    draws = []
    for at, gold in enumerate(shown):
        rest = SupportSet(support.task, (*shown[:at], *shown[at + 1 :]))
        question = Question(f"{at}-{gold.id}", gold.question, (gold.answer,), support.task)
        draws.append((Item(question, gold.passages, gold, rest),))
    return Task("own", "own", tuple(draws), retriever.fingerprint)


def score_task(
    parts: Assembly,
    task: Task,
    names: Sequence[str],
    out: Path,
    progress: Progress,
    turn: Turn = at_once,
) -> OwnReport:
    """Score methods on a task of one's own, in a folder; what needs the model goes by `turn`.

    Raises:
        RaggdError: the folder holds another study, or a method cannot answer.
    """
    settings, label = parts.settings, task.benchmark
    asked = [item.question for draw in task.draws for item in draw]
    # every method may write what the longest answer of the questions takes, and as much again
    tokens = max(
        len(answer_tokens(parts.backbone.tokenizer, answer)) for q in asked for answer in q.answers
    )
    sampled = settings.evaluation.model_copy(
        update={
            "benchmarks": [label],
            "whole": [],
            "draws": len(task.draws),
            "support": "task",
            "max_answer_tokens": max(settings.evaluation.max_answer_tokens, 2 * tokens),
        }
    )
    study = study_of(settings.model_copy(update={"evaluation": sampled}), names)
    cells = all_cells(study)
    with locked(out):
        check_cells(study, cells, pools=False)
        write_plan(study, out)
        runner = StudyRunner(study, out, progress, loaded=parts, tasks={label: task}, turn=turn)
        runner.run(cells)
        runner.refuse_failures(len(cells))
    records = [read_record(out / cell.path) for cell in cells]
    supports = {draw[0].support.id: draw[0].support for draw in task.draws}
    forms = {name: infer_form(support.demonstrations) for name, support in supports.items()}
    return own_report(records, {q.id: q for q in asked}, forms, parts.adapting)
