"""`raggd bench` times the method on this machine, `raggd cache` shows and prunes what it keeps."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.cli.console import progress_bar, show
from raggd.cli.options import Assignments, Config, Json, load_parts
from raggd.records import RaggdError


def bench(
    shape: Annotated[
        str | None,
        typer.Option(help="A shape with random weights, e.g. qwen2.5-7b; else your backbone."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16 or nf4; default: as set."),
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
    from raggd.backbone.shapes import random_backbone
    from raggd.evaluation.price import Lengths, measure_price, random_weights
    from raggd.files import write_json
    from raggd.provenance import origin

    chosen = [f"backbone.dtype='{dtype}'"] if dtype else []
    with progress_bar() as bar:
        parts = load_parts(config, [*(assignments or []), *chosen], bar)
        bar.say("loading")
        backbone = random_backbone(shape, parts.settings.backbone) if shape else parts.backbone
        base, predictor = random_weights(backbone, parts.settings.adapter.rank)
        lengths = Lengths(support=support, prompt=prompt, answer=answer)
        found = measure_price(backbone, base, predictor, lengths, rounds, bar.say)
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


cache_app = typer.Typer(help="See and prune what is kept on disk.", no_args_is_help=True)


def _views(entries: list[Any]) -> list[dict[str, Any]]:
    return [{**asdict(entry), "path": str(entry.path)} for entry in entries]


def _lines(entries: list[Any]) -> list[str]:
    from raggd.retrieval.base import show_size

    now = time.time()
    return [
        f"{show_size(e.bytes):>10}  {(now - e.last_used) / 86400:6.1f} days  {e.kind}: {e.what}"
        for e in entries
    ]


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List what is kept, the longest unused first."""
    from raggd.files import cache_folder
    from raggd.retrieval.base import show_size
    from raggd.retrieval.cache import list_cache

    entries = list_cache()
    held = sum(entry.bytes for entry in entries)
    result = {"folder": str(cache_folder()), "bytes": held, "entries": _views(entries)}
    show(result, as_json, *_lines(entries), f"{show_size(held)} in {cache_folder()}")


@cache_app.command("prune")
def cache_prune(
    older_than: Annotated[
        float | None, typer.Option(min=0, help="Delete what was not used for so many days.")
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Delete the longest unused until the rest fits, e.g. 2GB."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete what is made again when it is needed; downloads and support sets stay.

    Raises:
        RaggdError: neither an age nor a size says what may go.
    """
    from raggd.retrieval.base import parse_size, show_size
    from raggd.retrieval.cache import prune_cache

    if older_than is None and keep is None:
        raise RaggdError("say what may go: --older-than DAYS, --keep SIZE, or both.")
    gone = prune_cache(older_than, parse_size(keep) if keep else None)
    freed = sum(entry.bytes for entry in gone)
    result = {"bytes": freed, "removed": _views(gone)}
    show(result, as_json, *_lines(gone), f"{show_size(freed)} freed")
