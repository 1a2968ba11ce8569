"""`raggd serve`: the server and its page."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from raggd.cli.options import Assignments, Config, load_parts
from raggd.records import RaggdError


def serve(
    corpus: Annotated[
        Path | None, typer.Option(help="Your documents; without it, the embedded Wikipedia leads.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [8000].")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="RAGGD_API_KEY", help="Ask for this key.", show_envvar=True),
    ] = None,
    api_keys: Annotated[
        Path | None,
        typer.Option(
            envvar="RAGGD_API_KEYS",
            help="Ask for one of the keys in this file: a name and a key on each line.",
            show_envvar=True,
        ),
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The address as one JSON object on standard output.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API and a page; every row of a batch may carry its own update."""
    from raggd.cli.console import complain, emit_json, progress_bar, say

    _require_extra()
    from raggd.api import Rag
    from raggd.serving.app import serve as run
    from raggd.serving.gate import is_local, read_keys

    keys = dict(read_keys(api_keys)) if api_keys else {}
    keys |= {"key": api_key} if api_key else {}
    changes = list(assignments or [])
    for name, value in (("data.corpus", corpus), ("serving.host", host), ("serving.port", port)):
        if value is not None:
            plain = value if isinstance(value, int) else str(value)
            changes.append(f"{name}={json.dumps(plain, ensure_ascii=False)}")
    with progress_bar() as bar:
        parts = load_parts(config, changes, bar)
        where = parts.settings.serving.host
        if not keys and not is_local(where):
            complain(
                f"raggd: serving on {where} without a key: everyone who can reach this machine "
                "can use it. Set RAGGD_API_KEY or --api-keys."
            )

        def ready(address: str) -> None:
            bar.hide()
            if as_json:
                emit_json({"url": address})
            else:
                say(f"raggd serves on {address} (the page is there; the API is {address}/v1)")
            sys.stdout.flush()

        run(Rag(parts), keys=keys or None, ready=ready)


def _require_extra() -> None:
    missing = [
        n for n in ("fastapi", "uvicorn", "prometheus_client", "httpx") if find_spec(n) is None
    ]
    if missing:
        raise RaggdError(
            f"the server needs {' and '.join(missing)}: install raggd with its extra, `pip install "
            '"raggd[serve]"`.'
        )


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(serve)
