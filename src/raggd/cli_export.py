"""Commands that carry support sets and updates to other engines: `supports`, `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

supports_app = typer.Typer(help="Keep answered questions under an id.", no_args_is_help=True)
export_app = typer.Typer(
    help="Write base adapter and update in the form of another engine.", no_args_is_help=True
)

Corpus = Annotated[
    Path | None, typer.Option(help="Your documents; without it, the embedded Wikipedia leads.")
]
Demonstrations = Annotated[
    Path | None,
    typer.Option(help='Lines of {"question": ..., "answer": ...} to adapt from; three do.'),
]
Support = Annotated[str | None, typer.Option(help="Id of a stored support set instead.")]
Update = Annotated[Path | None, typer.Option(help="File of a saved update instead.")]
Config = Annotated[
    Path | None, typer.Option("--settings", help="TOML file; unknown keys are refused.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="SECTION.NAME=VALUE, applied last. Repeatable.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]


def parts_for(
    corpus: Path | None, config: Path | None, assignments: list[str] | None, bar: Any
) -> Any:
    """Make the parts of a command that may name its own corpus.

    Args:
        corpus: file or folder of documents; None: what the settings say.
        config: TOML file of settings.
        assignments: ``section.name=value``, applied last.
        bar: shows progress.

    Returns:
        The assembly.
    """
    from raggd.assembly import Assembly
    from raggd.settings import load_settings

    changes = list(assignments or [])
    if corpus is not None:
        changes.append(f"data.corpus={json.dumps(str(corpus), ensure_ascii=False)}")
    return Assembly(load_settings(config, changes), bar)


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
    from raggd.console import emit_json, progress_bar, say
    from raggd.workflows.export import Chosen, run_export_peft

    chosen = Chosen(demonstrations, support, update)
    with progress_bar() as bar:
        result = run_export_peft(parts_for(corpus, config, assignments, bar), folder, chosen)
    if as_json:
        emit_json(result)
    else:
        say(
            f"{_what(result)} of rank {result['rank']} in {result['folder']}",
            f"load it over {result['backbone']}",
        )


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
    from raggd.console import emit_json, progress_bar, say
    from raggd.workflows.export import Chosen, run_export_gguf

    chosen = Chosen(demonstrations, support, update)
    with progress_bar() as bar:
        result = run_export_gguf(parts_for(corpus, config, assignments, bar), file, chosen)
    emit_json(result) if as_json else say(f"{_what(result)} in {result['file']}")


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
    from raggd.console import emit_json, progress_bar, say
    from raggd.workflows.supports import run_supports_add

    with progress_bar() as bar:
        result = run_supports_add(parts_for(corpus, config, assignments, bar), file)
    if as_json:
        emit_json(result)
    else:
        say(f"{result['id']}: {result['demonstrations']} demonstrations in {result['file']}")


@supports_app.command("list")
def supports_list(as_json: Json = False) -> None:
    """List the support sets that are kept."""
    from raggd.console import emit_json, say
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
