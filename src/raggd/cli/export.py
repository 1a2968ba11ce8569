"""Commands that carry support sets and updates to other engines: `supports`, `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from raggd.cli.shared import (
    Assignments,
    Config,
    Corpus,
    Demonstrations,
    Json,
    Support,
    Update,
    complain,
    counted,
    load_rag,
    opened,
    refuse_idle,
    show,
    support_from,
)
from raggd.records import RaggdError

supports_app = typer.Typer(help="Keep answered questions under an id.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(help="Of the support set, as `raggd supports list` shows it.")]


def export(
    form: Annotated[
        Literal["peft", "gguf"], typer.Argument(help="peft (for vLLM too), or gguf (llama.cpp).")
    ],
    path: Annotated[Path, typer.Argument(help="Folder (peft) or file (gguf) to write.")],
    demonstrations: Demonstrations = None,
    support: Support = None,
    update: Update = None,
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write a LoRA for another engine. Without an update, the base adapter alone."""
    if not demonstrations:
        refuse_idle("passages are found for --demonstrations alone", corpus=corpus)
    with opened(config, assignments, corpus) as rag:
        chosen = support_from(rag, (demonstrations, support, update))
        state = rag.state(update) if update else rag.adapt(chosen)
        result: dict[str, Any] = {
            "adapted": state.update is not None or state.prefix is not None,
            "left_out": "prefix" if state.prefix else "",
            "examples": len(state.shown),
        }
        if form == "peft":
            made = rag.export_peft(path, state)
            result |= {"folder": str(made.folder), "rank": made.rank, "backbone": made.backbone}
            where = f" of rank {made.rank} in {made.folder}, over {made.backbone}"
            prompt = f"{made.folder / 'chat_template.jinja'} (vllm serve --chat-template)"
        else:
            file = rag.export_gguf(path, state)
            result |= {"file": str(file), "bytes": file.stat().st_size}
            where = f" in {file}"
            beside = file.with_name(f"{file.stem}.chat_template.jinja")
            prompt = f"{beside} (llama-server --jinja --chat-template-file)"
    what = "base adapter and update" if result["adapted"] else "base adapter"
    lines = [f"{what}{where}", f"its prompt: {prompt}"]
    if state.shown:
        told = f"{counted(len(state.shown), 'example')} stand in the template"
        instead = "left out: the prefix that was read; {} in its place"
        lines.append(instead.format(told) if state.prefix else told)
    show(result, as_json, *lines)


@supports_app.command("add")
def supports_add(
    file: Annotated[Path, typer.Argument(help='Lines of {"question": ..., "answer": ...}.')],
    corpus: Corpus = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Find the passages of answered questions and keep all of it under an id."""
    with opened(config, assignments, corpus) as rag:
        support = rag.store.add(rag.support(file)).support
    path, number = rag.store.file(support.id), len(support.demonstrations)
    result = {"id": support.id, "demonstrations": number, "file": str(path)}
    show(result, as_json, f"{support.id}: {counted(number, 'demonstration')} in {path}")


@supports_app.command("list")
def supports_list(
    config: Config = None, assignments: Assignments = None, as_json: Json = False
) -> None:
    """List the support sets that are kept; `raggd serve` has the same."""
    store = load_rag(config, assignments).store
    entries: list[dict[str, Any]] = []
    for name in store.names():
        try:
            shown = store.stored(name).support.demonstrations
        except RaggdError as error:
            complain(f"raggd: {error}")
            continue
        question = shown[0].question
        entries.append({"id": name, "demonstrations": len(shown), "question": question})
    lines = [
        f"{e['id']}  {counted(e['demonstrations'], 'demonstration')}, e.g. {e['question']}"
        for e in entries
    ]
    result = {"folder": str(store.folder), "supports": entries}
    show(result, as_json, *(lines or [f"no support sets in {store.folder}"]))


@supports_app.command("dump")
def supports_dump(name: Id, config: Config = None, assignments: Assignments = None) -> None:
    """Write a support set as lines that `--demonstrations` reads."""
    for shown in load_rag(config, assignments).store.stored(name).support.demonstrations:
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
    load_rag(config, assignments).store.remove(*names)
    show({"removed": names}, as_json, f"removed {', '.join(names)}")
