"""Commands that carry support sets and updates to other engines: `supports`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli.options import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    load_parts,
    with_corpus,
)

supports_app = typer.Typer(help="Keep answered questions under an id.", no_args_is_help=True)
export_app = typer.Typer(
    help="Write base adapter and update in the form of another engine.", no_args_is_help=True
)

Support = Annotated[str | None, typer.Option(help="Id of a stored support set instead.")]
Update = Annotated[Path | None, typer.Option(help="File of a saved update instead.")]
Source = tuple[Path | None, str | None, Path | None]
"""Where the update comes from: file of demonstrations, id of a support set, file of an update."""


def _exported(
    form: str, to: Path, source: Source, assignments: list[str], config: Path | None
) -> dict[str, Any]:
    from raggd.cli.console import progress_bar
    from raggd.workflows import export

    with progress_bar() as bar:
        parts = load_parts(config, assignments, bar)
        return export.run_export(parts, form, to, export.Chosen(*source))


@export_app.command("peft")
def export_peft(
    folder: Annotated[Path, typer.Argument(help="Folder to write.")],
    demonstrations: Demonstrations = None,
    support: Support = None,
    update: Update = None,
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write a PEFT LoRA: for peft, vLLM and others. Without an update, the base adapter alone."""
    from raggd.cli.console import show

    source = (demonstrations, support, update)
    result = _exported("peft", folder, source, with_corpus(corpus, assignments), config)
    where = f"{_what(result)} of rank {result['rank']} in {result['folder']}"
    show(result, as_json, where, f"load it over {result['backbone']}")


@export_app.command("gguf")
def export_gguf(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    demonstrations: Demonstrations = None,
    support: Support = None,
    update: Update = None,
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write a GGUF LoRA for llama.cpp. Without an update, the base adapter alone."""
    from raggd.cli.console import show

    source = (demonstrations, support, update)
    result = _exported("gguf", file, source, with_corpus(corpus, assignments), config)
    show(result, as_json, f"{_what(result)} in {result['file']}")


def _what(result: dict[str, Any]) -> str:
    return "base adapter and update" if result["adapted"] else "base adapter"


@supports_app.command("add")
def supports_add(
    file: Annotated[Path, typer.Argument(help='Lines of {"question": ..., "answer": ...}.')],
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Find the passages of answered questions and keep all of it under an id."""
    from raggd.cli.console import progress_bar, show
    from raggd.workflows.supports import run_supports_add

    with progress_bar() as bar:
        result = run_supports_add(load_parts(config, with_corpus(corpus, assignments), bar), file)
    line = f"{result['id']}: {result['demonstrations']} demonstrations in {result['file']}"
    show(result, as_json, line)


@supports_app.command("list")
def supports_list(as_json: Json = False) -> None:
    """List the support sets that are kept."""
    from raggd.cli.console import emit_json, say
    from raggd.workflows.supports import run_supports_list

    result = run_supports_list()
    if as_json:
        emit_json(result)
        return
    for entry in result["supports"]:
        say(f"{entry['id']}  {entry['demonstrations']} demonstrations, e.g. {entry['question']}")
    if not result["supports"]:
        say(f"no support sets in {result['folder']}")


def register(app: typer.Typer) -> None:
    """Add the commands to the program.

    Args:
        app: the program's commands.
    """
    app.add_typer(supports_app, name="supports")
    app.add_typer(export_app, name="export")
