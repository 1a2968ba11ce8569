"""Commands that measure: `evaluate`, `demo`, `audit`, `study`, `replay`, `report`, `bench`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Cluster,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Out,
    Workers,
    WorkerThreads,
    cluster_options,
    names_in,
    note,
    opened,
    out_file,
    out_folder,
    progress_bar,
    refuse_idle,
    show,
)
from raggd.files import write_json
from raggd.provenance import origin
from raggd.records import RaggdError

if TYPE_CHECKING:
    from raggd.report.tables import Table


DEMO_SECONDS = 240  # that the demo may take, where nobody says how many questions it shall ask
Names = Annotated[str, typer.Option(help="Only these, separated by commas. Default: all.")]


def _show(result: dict[str, Any], tables: Sequence[Table], as_json: bool, *words: str) -> None:
    show(result, as_json, "\n".join(table.to_text() for table in tables).rstrip(), *words)


def demo(
    out: Out = Path("runs/demo"),
    questions: Annotated[
        int | None,
        typer.Option(min=20, help="Test questions in all. Default: those of about four minutes."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the main job on real questions: retrieve, adapt, answer, compare. Minutes, no GPU."""
    from raggd.assembly import Assembly
    from raggd.study.evaluate import demo_in, demo_settings, run_demo

    with progress_bar() as bar:
        if questions is None:
            parts, chosen = demo_in(DEMO_SECONDS, bar)
            note(chosen)
        else:
            parts = Assembly(demo_settings(questions), bar)
        result, report = run_demo(parts, out)
    words = (
        "",
        f"{result['n']} questions in {result['seconds']:.0f} s. "
        f"The page with the evidence side by side: {out / 'demo.html'}",
        "Ask about your own documents: "
        'raggd ask "your question" --corpus FOLDER --demonstrations examples.jsonl',
    )
    _show(result, report.tables, as_json, *words)


def evaluate(
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas. Default: the usual comparison.")
    ] = "",
    contracts: Annotated[
        str,
        typer.Option(help="Judge form and content: of known,new,unseen or of refusals among them."),
    ] = "",
    count: Annotated[
        int | None, typer.Option(min=1, help="Questions per contract and source; default 6.")
    ] = None,
    shown: Annotated[
        int | None,
        typer.Option("--examples", min=1, max=16, help="Examples of a contract; default 3."),
    ] = None,
    prepared: Annotated[
        Path | None, typer.Option(help="Take the contracts' questions from a prepared file.")
    ] = None,
    out: Out = Path("runs/evaluation"),
    questions: Annotated[
        Path | None, typer.Option(help="Your own answered questions, or a folder of sets of them.")
    ] = None,
    demonstrations: Demonstrations = None,
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Score methods on benchmarks, or on your own questions: does adapting help, and which way?"""
    from raggd.evaluation import contracts as judging
    from raggd.report.own import contract_tables
    from raggd.study.evaluate import run_evaluate, run_own, usual_methods

    if contracts:
        own = {"questions": questions, "demonstrations": demonstrations}
        refuse_idle("contracts bring their own", **own)
        refuse_idle("a prepared file holds its passages", corpus=corpus if prepared else None)
    else:
        refuse_idle("they go with --contracts", count=count, examples=shown, prepared=prepared)
    named = names_in(methods) if methods else None
    words: list[str] = []
    with opened(config, assignments, corpus) as rag:
        parts = rag.parts
        if contracts:
            chosen = judging.usual_methods(parts) if named is None else named
            told = (count or 6, out, prepared, shown or 3)
            result = judging.run_contracts(parts, names_in(contracts), chosen, *told)
            tables = contract_tables(result)
        elif questions or demonstrations:
            result, scored = run_own(parts, questions, demonstrations, named or [], out)
            tables, words = scored.tables, ["", scored.advice]
        else:
            chosen = usual_methods(parts) if named is None else named
            result, report = run_evaluate(parts, chosen, out)
            tables = report.tables
    _show(result, tables, as_json, *words)


def audit(
    method: Annotated[str, typer.Option(help="A predictor of ours to audit; default rag-gd.")] = "",
    constant: Annotated[
        str, typer.Option(help="The tuned constant beside it: a method, or a folder's adapter.")
    ] = "",
    adapters: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder with one PEFT adapter per support set, by its id."),
    ] = None,
    dump: Annotated[
        Path | None,
        typer.Option(
            callback=out_file, help="Only write the support sets that adapters are needed of."
        ),
    ] = None,
    out: Out = Path("runs/audit"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Tell what reading the demonstrations is worth, for a predictor of ours or anyone's."""
    from raggd.evaluation.audit import run_audit, write_sets
    from raggd.report.own import audit_table

    if dump is not None:
        only = {"method": method, "constant": constant, "adapters": adapters}
        refuse_idle("the support sets are the same for all", **only)
        with opened(config, assignments) as rag:
            count = write_sets(rag.parts, dump)
        show({"file": str(dump), "sets": count}, as_json, f"{count} support sets: {dump}")
        return
    if adapters is not None:
        refuse_idle("the folder's adapters are audited", method=method)
    with opened(config, assignments) as rag:
        result = run_audit(rag.parts, method or "rag-gd", constant, adapters, out)
    _show(result, [audit_table(result)], as_json)


def study(
    file: Annotated[Path, typer.Argument(help="A study file, e.g. studies/small.toml.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=out_folder, help="Folder of the study; default runs/study-NAME."
        ),
    ] = None,
    status: Annotated[bool, typer.Option("--status", help="Count what is there; no run.")] = False,
    dry: Annotated[bool, typer.Option("--dry-run", help="Check everything; no run.")] = False,
    time_one_draw: Annotated[
        bool, typer.Option("--time-one-draw", help="As --dry-run, after one draw of each method.")
    ] = False,
    alignment: Annotated[
        bool, typer.Option("--alignment", help="Compare predicted with true updates; no run.")
    ] = False,
    backbones: Names = "",
    retrievers: Names = "",
    benchmarks: Names = "",
    methods: Names = "",
    cluster: Cluster = None,
    workers: Workers = 0,
    worker_threads: WorkerThreads = 0,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Run a study: backbones x retrievers x benchmarks x methods x seeds; again: continue it."""
    from raggd.study.plan import all_cells, load_study

    settings = load_study(file, assignments)
    folder = out or Path("runs") / f"study-{file.stem}"
    looks = {"status": status, "dry-run": dry or time_one_draw, "alignment": alignment}
    chosen = [f"--{name}" for name, given in looks.items() if given]
    if len(chosen) > 1:
        raise RaggdError(f"{' and '.join(chosen)} were both given: leave one out.")
    on_cluster = {"cluster": cluster, "workers": workers, "worker_threads": worker_threads}
    if chosen:
        refuse_idle(f"{chosen[0]} runs nothing on a cluster", **on_cluster)
    options = cluster_options(cluster, workers, worker_threads)
    cells = all_cells(
        settings,
        backbone=names_in(backbones),
        retriever=names_in(retrievers),
        benchmark=names_in(benchmarks),
        method=names_in(methods),
    )
    found: dict[str, Any]
    lines: Iterable[str]
    with progress_bar() as bar:
        if status:
            from raggd.study.dry_run import status_in_words, status_of

            found = status_of(settings, folder, cells)
            lines = status_in_words(found)
        elif dry or time_one_draw:
            from raggd.study import dry_run as look

            if time_one_draw:
                look.time_one_draw(settings, folder, cells, bar)
            found = look.dry_run(settings, folder, cells, bar)
            lines = look.in_words(found)
        elif alignment:
            from raggd.study.alignment import run_alignment

            found = run_alignment(settings, folder, cells, bar)
            lines = (
                f"{name}, {kind}, {method}: cosine {entry['cosine']:.3f}"
                for name, kinds in found.items()
                for kind, by_method in kinds.items()
                for method, entry in by_method.items()
            )
        else:
            from raggd.study.run import StudyRunner

            if options:
                from raggd.cluster.runs import run_study_on

                found = run_study_on(settings, folder, bar, options, cells)
            else:
                found = StudyRunner(settings, folder, bar).run(cells)
            found["out"] = str(folder)
            done = f"{found['complete']} of {found['cells']} cells"
            lines = [f"{done} in {folder}; {found['now']} new."]
    show(found, as_json, *lines)


def replay(
    record: Annotated[Path, typer.Argument(help="A run record (JSON) of a study or evaluation.")],
    as_json: Json = False,
) -> None:
    """Compute one run record again from its settings and compare the answers one by one."""
    from raggd.study.evaluate import replay as run

    with progress_bar() as bar:
        result = run(record, bar)
    lines = [
        f"{entry['question']}: '{entry['record']}' in the record, '{entry['now']}' now"
        for entry in result["different"]
    ]
    lines += [f"changed {line}" for line in result["changed"]]
    same = f"{result['same']} of {result['questions']} answers are the same."
    show(result, as_json, *lines, same)
    if result["different"]:
        sys.exit(1)


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study, finished or not.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", callback=out_folder, help="Folder for the report; default FOLDER/report."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap samples.")] = 10_000,
    as_json: Json = False,
) -> None:
    """Make tables, figures and one page of a study, from its records alone."""
    from raggd.report.build import write_report

    to = out or folder / "report"
    with progress_bar() as bar:
        result = write_report(folder, to, resamples, bar)
    line = f"{result['complete']} of {result['cells']} cells; the page: {to / 'study.html'}"
    show(result, as_json, line)


def bench(
    shape: Annotated[
        str | None,
        typer.Option(help="A shape with random weights, e.g. qwen2.5-7b; else your backbone."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, float16 or nf4; default: as set.")
    ] = None,
    support: Annotated[int, typer.Option(min=8, help="Tokens of each of 3 demonstrations.")] = 770,
    prompt: Annotated[int, typer.Option(min=8, help="Tokens of a question's prompt.")] = 768,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each comparison.")] = 3,
    out: Annotated[
        Path | None, typer.Option(callback=out_file, help="Write the record there, too.")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Time adapting, answering and decoding on your backbone, or on a shape with random weights."""
    from raggd.evaluation.price import Lengths, measure_price, random_backbone, random_weights

    chosen = [f"backbone.dtype='{dtype}'"] if dtype else []
    with opened(config, [*(assignments or []), *chosen]) as rag:
        parts = rag.parts
        parts.say("loading")
        backbone = random_backbone(shape, parts.settings.backbone) if shape else parts.backbone
        base, predictor = random_weights(backbone, parts.settings.adapter.rank)
        lengths = Lengths(support=support, prompt=prompt, answer=answer)
        found = measure_price(backbone, base, predictor, lengths, rounds, parts.progress)
    record = {**found, **origin()}
    if out is not None:
        write_json(out, record)
    lines = [f"{found['backbone']}, {found['dtype']}, {found['device']}"]
    lines += [f"{ms:>12,.1f} ms  {name}" for name, ms in found["ms"].items()]
    lines += [
        f"{ratio['ratio']:>12.3f}     {name} ({ratio['low']:.3f} to {ratio['high']:.3f})"
        for name, ratio in found["ratios"].items()
    ]
    show(record, as_json, *lines)
