"""`raggd cache`: what is kept in the cache folder, and making room."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated, Any

import typer

from raggd.cli.options import Json
from raggd.records import RaggdError

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
    from raggd.cli.console import show
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
    from raggd.cli.console import show
    from raggd.retrieval.base import parse_size, show_size
    from raggd.retrieval.cache import prune_cache

    if older_than is None and keep is None:
        raise RaggdError("say what may go: --older-than DAYS, --keep SIZE, or both.")
    gone = prune_cache(older_than, parse_size(keep) if keep else None)
    freed = sum(entry.bytes for entry in gone)
    result = {"bytes": freed, "removed": _views(gone)}
    show(result, as_json, *_lines(gone), f"{show_size(freed)} freed")
