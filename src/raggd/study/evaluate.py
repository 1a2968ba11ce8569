"""Small studies on the runner that all share: `evaluate`, `demo`, `replay`, one's own questions."""

from __future__ import annotations

import operator
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raggd.assembly import Assembly
from raggd.backbone.load import differences
from raggd.data.benchmarks import choose_by_hash
from raggd.data.prompts import answer_tokens
from raggd.data.questions import read_demonstrations
from raggd.evaluation.forms import infer_form
from raggd.evaluation.price import look, questions_for
from raggd.evaluation.runner import Item, Task, asked_items, support_sets, task_of
from raggd.files import write_text
from raggd.methods.spec import HEADLINE, METHODS, SPECS, can_run
from raggd.progress import Progress
from raggd.records import Prediction, Question, RaggdError, RunRecord, SupportSet, known_names
from raggd.report.build import SmallReport
from raggd.report.grid import load_grid
from raggd.report.own import OwnReport, own_report, sets_report
from raggd.report.page import ExampleCase
from raggd.retrieval.base import Retriever
from raggd.settings import Settings, changed
from raggd.study.plan import StudySettings, all_cells, check_benchmarks, study_of
from raggd.study.run import StudyRunner, Turn, read_record

CASES = 12


def usual_methods(parts: Assembly) -> list[str]:
    """Return what is compared where nobody names methods: those of short tables that can run."""
    able = [name for name in HEADLINE if can_run(name, parts.weights)]
    return [name for name in METHODS if name in {*able, parts.adapting}]


def small_study(settings: Settings, methods: Sequence[str]) -> StudySettings:
    """Return the study of one run, with names checked and each named once."""
    check_benchmarks(settings, settings.evaluation.benchmarks)
    return study_of(settings, known_names("method", methods, METHODS))


def run_evaluate(
    parts: Assembly, methods: Sequence[str], out: Path
) -> tuple[dict[str, Any], SmallReport]:
    """Score methods on the benchmarks of the settings: the JSON result, and the report."""
    study = small_study(parts.settings, methods)
    StudyRunner(study, out, parts.progress, loaded=parts).run(replace=True)
    report = SmallReport(load_grid(out))
    report.write(out)
    return report.result | {"out": str(out)}, report


def demo_settings(questions: int = 120, draws: int = 3) -> Settings:
    """Return the demo's settings: embedded data and backbone, shipped weights."""
    return changed(Settings(), "evaluation", questions=max(1, questions // 2), draws=draws)


def demo_methods(parts: Assembly) -> list[str]:
    """Return the methods of the demo."""
    return [name for name in usual_methods(parts) if name != "mean-tuned"]


def demo_in(seconds: float, progress: Progress) -> tuple[Assembly, str]:
    """Choose as many questions as this machine answers in some seconds; say what was chosen."""
    parts = Assembly(demo_settings(), progress)
    methods = demo_methods(parts)
    steps = [SPECS[name].gradient_steps for name in methods]
    sgd_steps = sum(s or parts.settings.target.steps for s in steps if s is not None)
    encoded = sum(SPECS[name].encoded for name in methods)
    backbone = parts.backbone
    progress("looking at the machine", 0, None)
    one = look(backbone)
    pace = one.of(len(methods), encoded, sgd_steps)
    questions, draws = questions_for(seconds, pace)
    minutes = pace.seconds(questions, 2 * draws) / 60
    words = (
        f"This machine answers a question in {one.answer:.2f} s: {questions} questions and "
        f"{draws} support set{'s' if draws > 1 else ''} per benchmark, about "
        f"{max(1, round(minutes))} min. --questions chooses another number."
    )
    return Assembly(demo_settings(questions, draws), progress, backbone=backbone), words


def choose_cases(
    tasks: Sequence[Task], records: Sequence[RunRecord], count: int, adapted: str
) -> list[ExampleCase]:
    """Choose questions to show: a third that `adapted` made better, a third worse, then others."""
    answers: dict[tuple[str, str], dict[str, Prediction]] = {}
    for record in records:
        for p in record.predictions:
            answers.setdefault((record.benchmark, p.question_id), {})[record.method] = p
    better, worse, same = list[ExampleCase](), list[ExampleCase](), list[ExampleCase]()
    for item in (item for task in tasks for item in task.items):
        given = answers[item.question.task, item.question.id]
        gain = given[adapted].f1 - given["base"].f1
        kind = better if gain > 0 else worse if gain < 0 else same
        shown: ExampleCase = {
            "question": item.question,
            "passages": item.passages,
            "predictions": given,
            "support": item.support,
        }
        kind.append(shown)
    third = max(1, count // 3)
    return (better[:third] + worse[:third] + same + better[third:] + worse[third:])[:count]


def run_demo(parts: Assembly, out: Path) -> tuple[dict[str, Any], SmallReport]:
    """Retrieve, adapt and answer with every method; write tables and the page ``demo.html``."""
    started, settings = time.monotonic(), parts.settings
    methods = demo_methods(parts)
    result, report = run_evaluate(parts, methods, out)
    records = [read_record(out / cell.path) for cell in all_cells(small_study(settings, methods))]
    tasks = [task_of(parts, name) for name in settings.evaluation.benchmarks]
    names = " and ".join(settings.evaluation.benchmarks)
    page = report.page(
        "raggd demo: adapting a frozen language model in one forward pass",
        f"{result['n']} real test questions of {names}, none of them seen in training, answered by "
        f"{settings.backbone.name} from the {settings.retrieval.top_k} passages that BM25 finds "
        "among 10,033 Wikipedia leads. Every method sees the same questions, passages and "
        "demonstrations.",
        f"{settings.evaluation.draws} support set(s) of {settings.target.demonstrations} "
        "demonstrations per benchmark each serve their share of the questions; the cost shown is "
        "the median of one adaptation. Made by `raggd demo`.",
        choose_cases(tasks, records, CASES, parts.adapting),
        parts.adapting,
    )
    write_text(out / "demo.html", page)
    seconds = round(time.monotonic() - started, 1)
    return {"n": result["n"], "seconds": seconds, "methods": result["methods"]}, report


FOLDS = 4  # of the cross-validation: each is asked, adapted to the other three
FEWEST = 12  # answered questions from which cross-validation is done
DRAWS = 3  # support sets at most where demonstrations come apart from the questions


def own_methods(parts: Assembly) -> list[str]:
    """Return what is compared: the base, few shot, what adapts by default, its best rival."""
    adapting = parts.adapting
    rival = SPECS[adapting].control
    rivals = [rival] if rival and can_run(rival, parts.weights) else []
    wanted = {"base", "base-few-shot", adapting, *rivals}
    return [name for name in METHODS if name in wanted]


def own_task(
    name: str, questions: Sequence[Question], shown: Sequence[Question], parts: Assembly
) -> Task:
    """Make a task of one's own questions, in draws: each a support set and the questions it serves.

    Support sets are disjoint, as many as the demonstrations reach for; without demonstrations the
    questions are cross-validated, in folds.

    Raises:
        RaggdError: there are too few questions to be cross-validated.
    """
    if not shown and len(questions) < FEWEST:
        raise RaggdError(
            f"{len(questions)} answered questions are too few to be asked and shown in turn: give "
            f"{FEWEST} or more, or demonstrations of their own by --demonstrations."
        )
    settings, retriever, k = parts.settings, parts.retriever, parts.settings.retrieval.top_k
    size, seed = settings.target.demonstrations, settings.evaluation.seed
    asked = choose_by_hash(questions, len(questions), seed)
    if shown:
        pool = choose_by_hash(shown, len(shown), seed)
        count = max(1, min(DRAWS, len(pool) // size, len(asked)))
        sets = [pool[draw * size : draw * size + size] for draw in range(count)]
    else:
        count, sets = FOLDS, []
        for fold in range(FOLDS):
            ids = {question.id for question in asked[fold::FOLDS]}
            others = [question for question in asked if question.id not in ids]
            sets.append(choose_by_hash(others, size, seed + fold))
    draws = (
        tuple(asked_items(asked[draw::count], [support], retriever, k))
        for draw, support in enumerate(support_sets(name, sets, retriever, k))
    )
    return Task(name, "own", tuple(draws), retriever.fingerprint)


def run_own(
    parts: Assembly,
    questions: Path | None,
    demonstrations: Path | None,
    methods: Sequence[str],
    out: Path,
) -> tuple[dict[str, Any], OwnReport]:
    """Score methods on one's own questions and say whether to adapt, and with what.

    ``questions`` is JSON Lines of answered questions; None, or no ``demonstrations``: the file
    that is given is cross-validated. A folder holds sets, ``NAME.questions.jsonl`` with its
    ``NAME.examples.jsonl``, each a study of its own below `out`. No ``methods``: `own_methods`.

    Raises:
        RaggdError: no file is named, or no question is left beside the demonstrations.
    """
    names = known_names("method", methods, METHODS) if methods else own_methods(parts)
    if questions is None or not questions.is_dir():
        report = _run_set(parts, questions, demonstrations, names, out)
        return report.result | {"out": str(out)}, report
    files = sorted(questions.glob("*.questions.jsonl"))
    if not files or demonstrations:
        raise RaggdError(
            f"{questions} is a folder: it is to hold NAME.questions.jsonl and NAME.examples.jsonl, "
            "and --demonstrations does not go with it."
        )
    reports = {}
    for file in files:
        label = file.name.removesuffix(".questions.jsonl")
        shown = file.with_name(f"{label}.examples.jsonl")
        reports[label] = _run_set(parts, file, shown, names, out / label)
    report = sets_report(reports)
    report.write(out)
    return report.result | {"out": str(out)}, report


def _run_set(
    parts: Assembly,
    questions: Path | None,
    demonstrations: Path | None,
    names: Sequence[str],
    out: Path,
) -> OwnReport:
    named = questions or demonstrations
    if named is None:
        raise RaggdError("name a file of answered questions by --questions or --demonstrations.")
    label = "".join(c if c.isalnum() else "-" for c in named.name.split(".")[0]) or "own"
    shown = read_demonstrations(demonstrations) if questions and demonstrations else []
    known = {question.text for question in shown}
    asked = [question for question in read_demonstrations(named) if question.text not in known]
    if not asked:
        raise RaggdError(f"every question of {named} is also a demonstration: none is left to ask.")
    task = own_task(label, asked, shown, parts)
    report = score_task(parts, task, names, out, parts.progress)
    report.result["support"] = f"{len(task.draws)} {'support sets' if shown else 'folds'}"
    report.write(out)
    return report


def set_task(support: SupportSet, asked: Sequence[Question], retriever: Retriever, k: int) -> Task:
    """Make a task of a set: other questions, or each of its own by the rest; one is refused."""
    shown = support.demonstrations
    if asked:
        items = tuple(asked_items(asked, [support], retriever, k))
        return Task("own", "own", (items,), retriever.fingerprint)
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
    turn: Turn = operator.call,
) -> OwnReport:
    """Score methods on a task of one's own, in a folder; what needs the model goes by `turn`."""
    settings, label = parts.settings, task.benchmark
    asked = [item.question for item in task.items]
    # every method may write what the longest answer of the questions takes, and as much again
    tokens = max(
        len(answer_tokens(parts.backbone.tokenizer, answer)) for q in asked for answer in q.answers
    )
    most = max(settings.evaluation.max_answer_tokens, 2 * tokens)
    sampled = {"benchmarks": [label], "whole": [], "draws": len(task.draws), "support": "task"}
    study = study_of(changed(settings, "evaluation", max_answer_tokens=most, **sampled), names)
    runner = StudyRunner(study, out, progress, loaded=parts, tasks={label: task}, turn=turn)
    runner.run(replace=True)
    records = [read_record(out / cell.path) for cell in all_cells(study)]
    supports = {draw[0].support.id: draw[0].support for draw in task.draws}
    forms = {name: infer_form(support.demonstrations) for name, support in supports.items()}
    return own_report(records, {q.id: q for q in asked}, forms, parts.adapting)


# sections that answers depend on; the others are of trainings and of the server
_DECIDING = ("backbone", "data", "retrieval", "adapter", "target", "evaluation")
# settings that older records hold, with the value at which they changed nothing
_REMOVED = {
    ("retrieval", "url"): "",
    ("retrieval", "index_path"): "",
    ("retrieval", "ivf_from"): 1_000_000,
}


def _study_of(record: RunRecord, source: Path) -> StudySettings:
    recorded = {
        section: {
            name: value
            for name, value in record.settings.get(section, {}).items()
            if ((section, name), value) not in _REMOVED.items()
        }
        for section in _DECIDING
    }
    try:
        settings = Settings.model_validate(recorded)
    except ValidationError as error:
        raise RaggdError(
            f"the settings in {source} are not those of this version of raggd "
            f"({error.errors()[0]['msg']}): use the version that the record names."
        ) from error
    only = changed(settings, "evaluation", benchmarks=[record.benchmark])
    return study_of(only, [record.method])


def replay(source: Path, progress: Progress) -> dict[str, Any]:
    """Compute the record in a file anew from its settings and compare answers."""
    record = read_record(source)
    if record.split == "own":
        raise RaggdError(
            f"{source} is of questions of your own, which no record holds: give their file to "
            "`raggd evaluate --questions` again."
        )
    study = _study_of(record, source)
    with tempfile.TemporaryDirectory() as scratch:
        StudyRunner(study, Path(scratch), progress).run()
        again = read_record(Path(scratch) / all_cells(study)[0].path)
    now = {p.question_id: p.answer for p in again.predictions}
    different = [
        {"question": p.question_id, "record": p.answer, "now": now.get(p.question_id)}
        for p in record.predictions
        if now.get(p.question_id) != p.answer
    ]
    hashes = {
        name: (then, again.hashes[name])
        for name, then in sorted(record.hashes.items())
        if name in again.hashes and name != "cell"
    }
    return {
        "record": str(source),
        "questions": len(record.predictions),
        "same": len(record.predictions) - len(different),
        "different": different,
        "changed": [
            f"{name}: {then} in the record, {here} now"
            for name, (then, here) in hashes.items()
            # older records name the backbone's weights alone
            if (differences(then, here) if name == "backbone" else then != here)
        ],
    }
