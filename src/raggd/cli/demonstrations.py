"""Commands for those without labels: `demonstrations make`, `demonstrations compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.options import (
    Assignments,
    Config,
    Corpus,
    Json,
    Out,
    load_parts,
    names_in,
    with_corpus,
)

if TYPE_CHECKING:
    from raggd.making.drafts import Draft

demonstrations_app = typer.Typer(
    help="Demonstrations from your passages, when you have no answered questions.",
    no_args_is_help=True,
)


@demonstrations_app.command("make")
def make(
    corpus: Corpus = None,
    out: Annotated[Path, typer.Option(help="JSON Lines file to write.")] = Path(
        "demonstrations.jsonl"
    ),
    count: Annotated[int, typer.Option(min=1, help="Demonstrations wanted.")] = 6,
    review: Annotated[
        bool, typer.Option("--review", help="Show each one: yes, no, edit, or stop.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Another seed tries other passages.")] = 0,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Propose questions and answers from passages; keep those that the model can answer."""
    from raggd.cli.console import progress_bar, show
    from raggd.making.make import run_make

    if review:  # a moving bar would write over the questions to the reviewer
        parts = load_parts(config, with_corpus(corpus, assignments), None)
        result = run_make(parts, out, count, seed, _ask)
    else:
        with progress_bar() as bar:
            parts = load_parts(config, with_corpus(corpus, assignments), bar)
            result = run_make(parts, out, count, seed, None, bar)
    tried = result["yield"]
    show(
        result,
        as_json,
        f"{result['made']} demonstrations in {result['out']} "
        f"({tried['passages']} passages, {tried['drafts']} questions drafted)",
        "Read them before you use them: raggd ask ... --demonstrations " + result["out"],
    )


def _ask(proposal: Draft) -> Draft | None:
    from raggd.making.make import ReviewStoppedError, edited

    passage = proposal.passage
    for line in ("", f"[{passage.title}] {passage.text}", "", f"Question: {proposal.question}"):
        typer.echo(line, err=True)
    typer.echo(f"Answer:   {proposal.answer}", err=True)
    choice = ""
    while choice not in {"y", "n", "e", "s"}:
        choice = typer.prompt("Keep it? y(es), n(o), e(dit), s(top)", "y", err=True)[:1].lower()
    if choice == "s":
        raise ReviewStoppedError
    if choice == "e":
        question = typer.prompt("Question", proposal.question, err=True)
        return edited(proposal, question, typer.prompt("Answer", proposal.answer, err=True))
    return proposal if choice == "y" else None


@demonstrations_app.command("compare")
def compare(
    benchmarks: Annotated[
        str, typer.Option(help="Held-out tasks, separated by commas.")
    ] = "popqa,bamboogle",
    out: Out = Path("runs/made"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Measure updates from made demonstrations against gold ones and none."""
    from raggd.cli.console import progress_bar, show
    from raggd.study.made import run_compare

    with progress_bar() as bar:
        parts = load_parts(config, assignments, bar)
        result, tables = run_compare(parts, names_in(benchmarks), out, bar)
    show(result, as_json, *(f"{table.to_text()}\n" for table in tables))


def register(app: Any) -> None:
    """Add the commands to the program."""
    app.add_typer(demonstrations_app, name="demonstrations")
