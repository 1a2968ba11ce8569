"""`raggd serve`: the server and its page; `raggd serve-load`: what it can take."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from raggd.cli.options import Assignments, Config, Json, Out, load_parts
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
    config: Config = None,
    assignments: Assignments = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="The address as one JSON object on standard output.")
    ] = False,
) -> None:
    """Serve an OpenAI-compatible API and a page; every row of a batch may carry its own update."""
    from raggd.cli.console import complain, emit_json, progress_bar, say

    _require_extra()
    from raggd.serving.gate import is_local
    from raggd.serving.run import serve as run

    changes = list(assignments or [])
    for name, value in (("data.corpus", corpus), ("serving.host", host), ("serving.port", port)):
        if value is not None:
            plain = value if isinstance(value, int) else str(value)
            changes.append(f"{name}={json.dumps(plain, ensure_ascii=False)}")
    with progress_bar() as bar:
        parts = load_parts(config, changes, bar)
        where = parts.settings.serving.host
        if not api_key and not is_local(where):
            complain(
                f"raggd: serving on {where} without a key: everyone who can reach this machine "
                "can use it. Set RAGGD_API_KEY."
            )

        def ready(address: str) -> None:
            bar.hide()
            if as_json:
                emit_json({"url": address})
            else:
                say(f"raggd serves on {address} (the page is there; the API is {address}/v1)")
            sys.stdout.flush()

        run(parts, key=api_key or None, ready=ready)


def _require_extra() -> None:
    missing = [
        n for n in ("fastapi", "uvicorn", "prometheus_client", "httpx") if find_spec(n) is None
    ]
    if missing:
        raise RaggdError(
            f"the server needs {' and '.join(missing)}: install raggd with its extra, `pip install "
            '"raggd[serve]"`.'
        )


load_app = typer.Typer(help="Measure a running server from outside.", no_args_is_help=True)


@load_app.command()
def throughput(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds per comparison.")] = 5,
    out: Out = Path("runs/serve"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Eight different updates in a batch against none, and against one after another."""
    _require_extra()
    from raggd.cli.console import emit_json, progress_bar, say
    from raggd.workflows.serve_load import run_throughput

    with progress_bar() as bar:
        record = run_throughput(config, assignments or [], out, rounds, bar)
    if as_json:
        emit_json(record)
        return
    for kind in ("natural", "long"):
        for name, words in (
            ("mixed_vs_plain", "8 updates in a batch / the same batch without"),
            ("mixed_vs_bare", "8 updates in a batch / the bare model"),
            ("mixed_vs_in_a_row", "8 updates in a batch / one after another"),
        ):
            found = record[kind][name]
            say(
                f"{kind} answers, throughput of {words}: {found['ratio']:.2f} "
                f"({found['low']:.2f} to {found['high']:.2f})"
            )


@load_app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long.")] = 30,
    visitors: Annotated[int, typer.Option(min=1, help="Clients at once.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="Log-probabilities this close count as the same.")
    ] = 1e-3,
    out: Out = Path("runs/serve"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Mixed load with hang-ups, impatience and garbage; every answer is checked by its content."""
    _require_extra()
    from raggd.cli.console import emit_json, progress_bar, say
    from raggd.workflows.serve_load import soak as run

    with progress_bar() as bar:
        record = run(
            config,
            assignments or [],
            out,
            minutes=minutes,
            visitors=visitors,
            tolerance=tolerance,
            bar=bar,
        )
    if as_json:
        emit_json(record)
    else:
        for name, count in record["counts"].items():
            say(f"{count:>7} {name}")
        say(
            f"{record['right_per_second']} right answers a second, p95 {record['ms']['p95']} ms",
            f"memory: {record['memory']}",
            f"at the end: {record['end']}",
            "good" if record["good"] else "NOT good",
        )
    if not record["good"]:
        sys.exit(1)


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: the program's commands.
    """
    app.command()(serve)
    app.add_typer(load_app, name="serve-load")
