"""`raggd data resample`: a corpus of any size, for measurements of growth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raggd.cli_options import Assignments, Config, Corpus, Json, with_corpus
from raggd.cli_options import load_parts as _parts


def data_resample(
    passages: Annotated[int, typer.Option(min=1, help="Passages to generate.")],
    out: Annotated[Path, typer.Option(help="JSON Lines file to write.")],
    corpus: Corpus = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Write a large corpus of real sentences put together anew."""
    from raggd.console import emit_json, progress_bar, say
    from raggd.retrieval.memory import show_size
    from raggd.workflows.data import run_data_resample

    with progress_bar() as bar:
        parts = _parts(config, with_corpus(corpus, assignments), bar)
        result = run_data_resample(parts, passages, out, seed)
    if as_json:
        emit_json(result)
        return
    say(f"{result['passages']} passages, {show_size(result['bytes'])}: {result['file']}")


def register(data_app: typer.Typer) -> None:
    """Add the command to ``raggd data``."""
    data_app.command("resample")(data_resample)
