"""`raggd serve`: the server and its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


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
    config: Annotated[
        Path | None, typer.Option("--settings", help="TOML file; unknown keys are refused.")
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="SECTION.NAME=VALUE, applied last.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The address as one JSON object on standard output.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API and a page; every row of a batch may carry its own update."""
    from raggd.assembly import Assembly
    from raggd.console import complain, emit_json, progress_bar, say
    from raggd.records import RaggdError
    from raggd.settings import load_settings

    try:
        from raggd.serving.run import is_local
        from raggd.serving.run import serve as run
    except ModuleNotFoundError as error:
        raise RaggdError(
            f"the server needs {error.name}: install raggd with its extra, `pip install "
            '"raggd[serve]"`.'
        ) from error

    changes = list(assignments or [])
    for name, value in (("data.corpus", corpus), ("serving.host", host), ("serving.port", port)):
        if value is not None:
            plain = value if isinstance(value, int) else str(value)
            changes.append(f"{name}={json.dumps(plain, ensure_ascii=False)}")
    settings = load_settings(config, changes)
    if not api_key and not is_local(settings.serving.host):
        complain(
            f"raggd: serving on {settings.serving.host} without a key: everyone who can reach this "
            "machine can use it. Set RAGGD_API_KEY."
        )
    with progress_bar() as bar:

        def ready(address: str) -> None:
            bar.hide()
            if as_json:
                emit_json({"url": address})
            else:
                say(f"raggd serves on {address} (the page is there; the API is {address}/v1)")

        run(Assembly(settings, bar), key=api_key or None, ready=ready)


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: the program's commands.
    """
    app.command()(serve)
