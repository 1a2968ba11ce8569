"""Commands that measure: `raggd evaluate`, `raggd demo`, `raggd audit`, `raggd bench`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.shared import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Out,
    names_in,
    note,
    opened,
    progress_bar,
    refuse_idle,
    show,
)
from raggd.files import write_json, write_text
from raggd.provenance import origin
from raggd.records import RaggdError, known_names

if TYPE_CHECKING:
    from raggd.assembly import Assembly
    from raggd.evaluation.runner import Task
    from raggd.methods.base import Adapted
    from raggd.records import SupportSet
    from raggd.report.tables import Table


DEMO_SECONDS = 240  # that the demo may take, where nobody says how many questions it shall ask


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
        result, report = run_demo(parts, out, bar)
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
        str, typer.Option(help="Judge form and content instead: known, new, unseen, or several.")
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
    from raggd.evaluation.contracts import USUAL, run_contracts
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
    with opened(config, assignments, corpus) as (rag, bar):
        parts = rag.parts
        if contracts:
            sets, chosen = names_in(contracts), USUAL if named is None else named
            sizes = (count or 6, shown or 3)
            result = run_contracts(parts, sets, chosen, sizes[0], out, bar, prepared, sizes[1])
            tables = contract_tables(result)
        elif questions or demonstrations:
            result, scored = run_own(parts, questions, demonstrations, named or [], out, bar)
            tables, words = scored.tables, ["", scored.advice]
        else:
            chosen = usual_methods(parts) if named is None else named
            result, report = run_evaluate(parts, chosen, out, bar)
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
        Path | None, typer.Option(help="Only write the support sets that adapters are needed of.")
    ] = None,
    out: Out = Path("runs/audit"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Tell what reading the demonstrations is worth, for a predictor of ours or anyone's."""
    from raggd.evaluation.audit import audit as run
    from raggd.evaluation.audit import audit_result
    from raggd.evaluation.runner import task_of
    from raggd.report.own import audit_table

    if dump is not None:
        only = {"method": method, "constant": constant, "adapters": adapters}
        refuse_idle("the support sets are the same for all", **only)
    elif adapters is not None:
        refuse_idle("the folder's adapters are audited", method=method)
    method = method or "rag-gd"
    with opened(config, assignments) as (rag, bar):
        parts = rag.parts
        tasks = [task_of(parts, name) for name in parts.settings.evaluation.benchmarks]
        if dump is None:
            state_of, fixed = _states(parts, method, constant, adapters)
            audited = run(parts.backbone, tasks, state_of, parts.settings, bar, fixed)
    if dump is not None:
        count = _write_sets(dump, tasks)
        show({"file": str(dump), "sets": count}, as_json, f"{count} support sets: {dump}")
        return
    result = audit_result(audited) | {"audited": str(adapters) if adapters else method}
    made: dict[str, Any] = {
        "backbone": parts.backbone.fingerprint,
        "settings": parts.settings.model_dump(),
    }
    if adapters is None:
        made["hashes"] = {m: parts.method(m).hashes for m in (method, constant) if m}
    write_json(out / "audit.json", result | origin() | made)
    _show(result, [audit_table(result)], as_json)


def _write_sets(path: Path, tasks: list[Task]) -> int:
    from raggd.evaluation.audit import audited_sets

    sets = [(name, s) for name, own in audited_sets(tasks).items() for s in own]
    lines = [{"id": s.id, "role": name, **asdict(s)} for name, s in sets]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)


def _states(
    parts: Assembly, method: str, constant: str, adapters: Path | None
) -> tuple[Callable[[SupportSet], Adapted], Any]:
    from raggd.data.questions import NOBODY
    from raggd.methods.base import Adapted, refuse_control
    from raggd.methods.spec import METHODS

    if adapters is None:
        known_names("method", [method, *([constant] if constant else [])], METHODS)
        fixed = parts.method(constant) if constant else None
        if fixed is not None and fixed.adapts:
            raise RaggdError(f"'{constant}' reads demonstrations: name a constant, e.g. mean-tuned")
        ready = parts.method(method)
        refuse_control(ready)
        one = fixed.adapt([NOBODY])[0] if fixed else None
        return lambda support: ready.adapt([support])[0], one
    from raggd.adaptation.export import read_peft

    def state(support: SupportSet) -> Adapted:
        return Adapted(read_peft(adapters / support.id, parts.backbone))

    own = Adapted(read_peft(adapters / constant, parts.backbone)) if constant else None
    return state, own


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
    out: Annotated[Path | None, typer.Option(help="Write the record there, too.")] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Time adapting, answering and decoding on your backbone, or on a shape with random weights."""
    from raggd.evaluation.price import Lengths, measure_price, random_backbone, random_weights

    chosen = [f"backbone.dtype='{dtype}'"] if dtype else []
    with opened(config, [*(assignments or []), *chosen]) as (rag, bar):
        parts = rag.parts
        bar("loading", 0, None)
        backbone = random_backbone(shape, parts.settings.backbone) if shape else parts.backbone
        base, predictor = random_weights(backbone, parts.settings.adapter.rank)
        lengths = Lengths(support=support, prompt=prompt, answer=answer)
        found = measure_price(backbone, base, predictor, lengths, rounds, bar)
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
