"""Commands that score methods: `raggd evaluate`, `raggd demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.options import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Out,
    load_parts,
    names_in,
    with_corpus,
)

if TYPE_CHECKING:
    from raggd.report.small import SmallReport


DEMO_SECONDS = 240
"""That the demo may take, where nobody says how many questions it shall ask."""


def _show(result: dict[str, Any], report: SmallReport, as_json: bool, *words: str) -> None:
    from raggd.cli.console import show

    texts = [part for table in report.tables for part in (table.to_text(), "")]
    show(result, as_json, *texts[:-1], *words)


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
    from raggd.cli.console import note, progress_bar
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
    _show(result, report, as_json, *words)


def evaluate(
    methods: Annotated[
        str, typer.Option(help="Names, separated by commas. Default: the usual comparison.")
    ] = "",
    contracts: Annotated[
        str, typer.Option(help="Judge form and content instead: known, new, unseen, or several.")
    ] = "",
    count: Annotated[int, typer.Option(min=1, help="Questions per contract and source.")] = 6,
    shown: Annotated[
        int, typer.Option("--examples", min=1, max=16, help="Examples of a contract.")
    ] = 3,
    prepared: Annotated[Path | None, typer.Option(help="Questions of a prepared file.")] = None,
    out: Out = Path("runs/evaluation"),
    questions: Annotated[
        Path | None, typer.Option(help="Your own answered questions instead of benchmarks.")
    ] = None,
    demonstrations: Demonstrations = None,
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Score methods on benchmarks, or on your own questions: does adapting help, and which way?"""
    from raggd.cli.console import progress_bar, show
    from raggd.report.contracts import contract_tables
    from raggd.study.contracts import USUAL, run_contracts
    from raggd.study.evaluate import run_evaluate, usual_methods
    from raggd.study.own import run_own

    if contracts:
        with progress_bar() as bar:
            parts = load_parts(config, assignments, bar)
            named = names_in(methods) if methods else USUAL
            sets = names_in(contracts)
            result = run_contracts(parts, sets, named, count, out, bar, prepared, shown)
        show(result, as_json, *contract_tables(result))
        return
    with progress_bar() as bar:
        parts = load_parts(config, with_corpus(corpus, assignments), bar)
        if questions or demonstrations:
            named = names_in(methods)
            found, own = run_own(parts, questions, demonstrations, named, out, bar)
            texts = [part for table in own.tables for part in (table.to_text(), "")]
            show(found, as_json, *texts, own.advice)
            return
        names = names_in(methods) if methods else usual_methods(parts)
        scores, report = run_evaluate(parts, names, out, bar)
    _show(scores, report, as_json)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command()(demo)
    app.command()(evaluate)
