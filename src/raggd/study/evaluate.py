"""`raggd evaluate` and `raggd demo`: small studies, on the runner that every study has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.evaluation.pace import look, questions_for
from raggd.evaluation.runner import Item, Task
from raggd.evaluation.tasks import task_of
from raggd.files import write_text
from raggd.methods.spec import FILES_OF, HEADLINE, METHODS, SPECS
from raggd.progress import Progress
from raggd.records import Prediction, RunRecord, known_names
from raggd.report.cases import Case
from raggd.report.small import SmallReport, small_report
from raggd.settings import EvaluationSettings, Settings
from raggd.study.folder import read_record
from raggd.study.plan import Part, all_cells
from raggd.study.run import run_study
from raggd.study.settings import StudySettings, check_benchmarks, study_of

CASES = 12


def usual_methods(parts: Assembly) -> list[str]:
    """Return what is compared where nobody names methods: those of short tables that can run.

    The method that adapts by default is among them, and so are the rivals whose files are there.
    """
    there = {f for n in HEADLINE for f in FILES_OF[n] if (parts.weights / f).is_file()}
    able = [name for name in HEADLINE if set(FILES_OF[name]) <= there]
    return [name for name in METHODS if name in {*able, parts.adapting}]


def small_study(settings: Settings, methods: Sequence[str]) -> StudySettings:
    """Return the study of one run, with names checked and each named once."""
    names = check_benchmarks(settings, settings.evaluation.benchmarks)
    sampled = settings.evaluation.model_copy(update={"benchmarks": names})
    settings = settings.model_copy(update={"evaluation": sampled})
    return study_of(settings, known_names("method", methods, METHODS))


def run_small(
    parts: Assembly, methods: Sequence[str], out: Path, progress: Progress
) -> SmallReport:
    """Return what methods score on the benchmarks of the settings.

    What is finished in the folder `out` is not computed again.
    """
    study = small_study(parts.settings, methods)
    run_study(study, out, Part(), progress, loaded=parts, replace=True)
    report = small_report(out)
    report.write(out)
    return report


def run_evaluate(
    parts: Assembly, methods: Sequence[str], out: Path, progress: Progress
) -> tuple[dict[str, Any], SmallReport]:
    """Return the JSON result and the report of `run_small`."""
    report = run_small(parts, methods, out, progress)
    return report.result | {"out": str(out)}, report


def demo_settings(questions: int = 120, draws: int = 3) -> Settings:
    """Return the demo's settings: embedded data and backbone, shipped weights."""
    evaluation = EvaluationSettings(
        benchmarks=["nq", "triviaqa"], questions=max(1, questions // 2), draws=draws
    )
    return Settings(evaluation=evaluation)


def demo_methods(parts: Assembly) -> list[str]:
    """Return the methods of the demo."""
    return [name for name in usual_methods(parts) if name != "mean-tuned"]


def demo_in(seconds: float, progress: Progress) -> tuple[Assembly, str]:
    """Look at the machine, and choose as many questions as it answers in some time.

    Args:
        seconds: that the demo may take.
        progress: told what is running.

    Returns:
        The demo's parts, and a sentence that says what was chosen.
    """
    parts = Assembly(demo_settings(), progress)
    methods = demo_methods(parts)
    steps = [SPECS[name].gradient_steps for name in methods]
    work = {
        "methods": len(methods),
        "encoded": sum(SPECS[name].encoded for name in methods),
        "sgd_steps": sum(s or parts.settings.target.steps for s in steps if s is not None),
    }
    backbone = parts.backbone
    progress("looking at the machine", 0, None)
    pace = look(backbone)
    questions, draws = questions_for(seconds, pace, **work)
    minutes = pace.seconds(questions, 2 * draws, **work) / 60
    words = (
        f"This machine answers a question in {pace.answer:.2f} s: {questions} questions and "
        f"{draws} support set{'s' if draws > 1 else ''} per benchmark, about "
        f"{max(1, round(minutes))} min. --questions chooses another number."
    )
    return Assembly(demo_settings(questions, draws), progress, backbone=backbone), words


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
    answers: dict[tuple[str, str], dict[str, Prediction]] = {}
    for record in records:
        for p in record.predictions:
            answers.setdefault((record.benchmark, p.question_id), {})[record.method] = p
    items = [item for task in tasks for draw in task.draws for item in draw]

    def given(item: Item) -> dict[str, Prediction]:
        return answers[item.question.task, item.question.id]

    change = {id(item): given(item)[adapted].f1 - given(item)["base"].f1 for item in items}
    better = [item for item in items if change[id(item)] > 0]
    worse = [item for item in items if change[id(item)] < 0]
    same = [item for item in items if change[id(item)] == 0]
    third = max(1, count // 3)
    chosen = better[:third] + worse[:third]
    chosen = (chosen + same + better[third:] + worse[third:])[:count]
    return [
        Case(question=i.question, passages=i.passages, predictions=given(i), support=i.support)
        for i in chosen
    ]


def run_demo(parts: Assembly, out: Path, progress: Progress) -> tuple[dict[str, Any], SmallReport]:
    """Retrieve, adapt and answer with every method; write the tables and the page.

    Args:
        parts: of `demo_settings`.
        out: folder of the study, with ``demo.html``.
        progress: told what is running.

    Returns:
        The JSON result (``n``, ``seconds``, ``methods``) and the report.
    """
    started, settings = time.monotonic(), parts.settings
    methods = demo_methods(parts)
    report = run_small(parts, methods, out, progress)
    records = [read_record(out / cell.path) for cell in all_cells(small_study(settings, methods))]
    tasks = [task_of(parts, name) for name in settings.evaluation.benchmarks]
    result = report.result
    names = " and ".join(settings.evaluation.benchmarks)
    notes = [
        f"{settings.evaluation.draws} support set(s) of {settings.target.demonstrations} "
        "demonstrations per benchmark each serve their share of the questions; the cost shown is "
        "the median of one adaptation. Made by `raggd demo`.",
    ]
    page = report.page(
        "raggd demo: adapting a frozen language model in one forward pass",
        f"{result['n']} real test questions of {names}, none of them seen in training, answered by "
        f"{settings.backbone.name} from the {settings.retrieval.top_k} passages that BM25 finds "
        "among 10,033 Wikipedia leads. Every method sees the same questions, passages and "
        "demonstrations.",
        notes,
        choose_cases(tasks, records, CASES, parts.adapting),
        parts.adapting,
    )
    write_text(out / "demo.html", page)
    seconds = round(time.monotonic() - started, 1)
    return {"n": result["n"], "seconds": seconds, "methods": result["methods"]}, report
