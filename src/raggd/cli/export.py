"""Commands that carry support sets and updates to other engines: `supports`, `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.options import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Source,
    Support,
    Update,
    counted,
    load_rag,
    support_from,
    with_corpus,
)

if TYPE_CHECKING:
    from raggd.api import Rag
    from raggd.methods.base import Adapted
    from raggd.methods.store import Store

supports_app = typer.Typer(help="Keep answered questions under an id.", no_args_is_help=True)
export_app = typer.Typer(
    help="Write base adapter and update in the form of another engine.", no_args_is_help=True
)
Id = Annotated[str, typer.Argument(help="Of the support set, as `raggd supports list` shows it.")]


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
    from raggd.cli.console import progress_bar, show

    with progress_bar() as bar:
        rag = load_rag(config, with_corpus(corpus, assignments), bar)
        adapted = _chosen(rag, (demonstrations, support, update))
        made = rag.export_peft(folder, adapted)
    result = {"folder": str(made.folder), "rank": made.rank, "backbone": made.backbone}
    result |= _about(adapted)
    where = f"{_what(result)} of rank {made.rank} in {made.folder}"
    prompt = f"its prompt: {made.folder / 'chat_template.jinja'} (vllm serve --chat-template)"
    show(result, as_json, where, f"load it over {made.backbone}", prompt, *_left_out(result))


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
    from raggd.cli.console import progress_bar, show

    with progress_bar() as bar:
        rag = load_rag(config, with_corpus(corpus, assignments), bar)
        adapted = _chosen(rag, (demonstrations, support, update))
        made = rag.export_gguf(file, adapted)
    result = {"file": str(made), "bytes": made.stat().st_size, **_about(adapted)}
    beside = made.with_name(f"{made.stem}.chat_template.jinja")
    prompt = f"its prompt: {beside} (llama-server --jinja --chat-template-file)"
    show(result, as_json, f"{_what(result)} in {made}", prompt, *_left_out(result))


def _chosen(rag: Rag, source: Source) -> Adapted | None:
    support = support_from(rag, source)
    if not any(source):
        return None
    return rag.state(source[2]) if source[2] else rag.adapt(support)


def _about(adapted: Adapted | None) -> dict[str, Any]:
    if adapted is None:
        return {"adapted": False, "left_out": "", "examples": 0}
    left_out = "prefix" if adapted.prefix else ""
    changed = adapted.update is not None or adapted.prefix is not None
    return {"adapted": changed, "left_out": left_out, "examples": len(adapted.shown)}


def _left_out(result: dict[str, Any]) -> list[str]:
    shown = counted(result["examples"], "example")
    if result["left_out"]:
        return [f"left out: the prefix that was read; {shown} stand in the template in its place"]
    return [f"{shown} stand in the template"] if result["examples"] else []


def _what(result: dict[str, Any]) -> str:
    return "base adapter and update" if result["adapted"] else "base adapter"


def _store(config: Path | None, assignments: list[str] | None) -> Store:
    return load_rag(config, assignments, None).store


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

    with progress_bar() as bar:
        rag = load_rag(config, with_corpus(corpus, assignments), bar)
        support = rag.store.add(rag.support(file)).support
    path, number = rag.store.file(support.id), len(support.demonstrations)
    result = {"id": support.id, "demonstrations": number, "file": str(path)}
    show(result, as_json, f"{support.id}: {counted(number, 'demonstration')} in {path}")


@supports_app.command("list")
def supports_list(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """List the support sets that are kept; `raggd serve` has the same."""
    from raggd.cli.console import complain, show
    from raggd.records import RaggdError

    store = _store(config, assignments)
    entries: list[dict[str, Any]] = []
    for name in store.names():
        try:
            shown = store.stored(name).support.demonstrations
        except RaggdError as error:
            complain(f"raggd: {error}")
            continue
        entry = {"id": name, "demonstrations": len(shown), "question": shown[0].question}
        entries.append(entry)
    lines = [
        f"{e['id']}  {counted(e['demonstrations'], 'demonstration')}, e.g. {e['question']}"
        for e in entries
    ]
    result = {"folder": str(store.folder), "supports": entries}
    show(result, as_json, *(lines or [f"no support sets in {store.folder}"]))


@supports_app.command("dump")
def supports_dump(name: Id, config: Config = None, assignments: Assignments = None) -> None:
    """Write a support set as lines that `--demonstrations` reads."""
    for shown in _store(config, assignments).stored(name).support.demonstrations:
        line = {"question": shown.question, "answer": shown.answer}
        typer.echo(json.dumps(line, ensure_ascii=False))


@supports_app.command("remove")
def supports_remove(
    names: Annotated[list[str], typer.Argument(help="Ids of support sets.")],
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Delete support sets and all that was adapted to them."""
    from raggd.cli.console import show

    store = _store(config, assignments)
    for name in names:  # all or none
        store.stored(name)
    for name in names:
        store.remove(name)
    show({"removed": names}, as_json, f"removed {', '.join(names)}")


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(supports_app, name="supports")
    app.add_typer(export_app, name="export")
