"""README as a newcomer walks it: its commands in a fresh clone. `python -m benchmarks.walk`.

Each must end with 0 and print what README shows under it; numbers, which vary by machine, may be
any numbers there. What is not run is named, with its reason.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Annotated

import httpx
import typer

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|(.*?)\|.*\n", re.MULTILINE)
_QUOTED = re.compile(r"`([^`]+)`")
_NAME = re.compile(r"[a-z][a-z-]*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_RAGGD = ".venv/bin/raggd"
SKIPPED = {
    "make test": "runs for ten minutes, and on every change",
    "make walk": "is this one",
    "make docs": "installs what makes pages",
    "make gpu-check": "needs a graphics card",
    f"{_RAGGD} demo --questions": "`make demo` again, for longer",
}
"""Commands that begin so are not run, and why."""
DOCUMENT = (
    "# Pumps\n\nThe warranty ends after 24 months.\n\nBroken pumps go to a workshop in Turin.\n"
)
DOZEN = 12
"""Of one's own questions, the fewest that can be asked and shown in turn."""
SERVED_AT = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Step:
    """A command line or a piece of Python, and the lines that README shows as its output."""

    command: str
    shown: tuple[str, ...] = ()
    python: bool = False


def _typed(block: str) -> Iterator[Step]:
    for part in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
        command, *shown = part.splitlines()
        yield Step(command, tuple(line for line in shown if line.strip()))


def _in_cell(cell: str) -> Iterator[str]:
    # "`raggd train base`, `predictor`" are two commands; what is an option or in capitals is none
    words: list[str] = []
    for quoted in _QUOTED.findall(cell):
        name = list(takewhile(_NAME.fullmatch, quoted.split()))
        words = name[1:] if name[:1] == ["raggd"] else [*words[:-1], *name]
        yield " ".join(words)


def steps(readme: str) -> list[Step]:
    """Return the commands of a README: the block that clones, other blocks, running text, tables.

    Of those in tables ``--help`` is asked, since their arguments do not stand there.
    """
    blocks = _BLOCK.findall(readme)
    blocks.sort(key=lambda block: "git clone" not in block[1])  # stable: the rest as it comes
    found: list[Step] = []
    for language, text in blocks:
        found += _typed(text) if language == "console" else ()
        found += [Step(text, python=True)] if language == "python" else ()
    text = _BLOCK.sub("", readme)
    # what the demo prints stands below it as a table, to be rendered
    table = re.search(r"^\| Method \|.*\n\|.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = tuple(name.strip() for name in _ROW.findall(table[1])) if table else ()
    found = [replace(step, shown=rows) if step.command == "make demo" else step for step in found]
    known = {step.command for step in found}
    for quoted in _QUOTED.findall(_ROW.sub("", text)):
        command = re.sub("^raggd ", f"{_RAGGD} ", " ".join(quoted.split()))
        if command.startswith(("make ", f"{_RAGGD} ")) and command not in known:
            found.append(Step(command))
            known.add(command)
    named = (name for cell in _ROW.findall(text) if "`raggd" in cell for name in _in_cell(cell))
    return [*found, *(Step(f"{_RAGGD} {name} --help") for name in dict.fromkeys(named))]


def lay_out(folder: Path, readme: str) -> None:
    """Write what README asks its reader to have: documents, and the examples that it shows."""
    (folder / "my-documents").mkdir()
    (folder / "my-documents" / "pumps.md").write_text(DOCUMENT, encoding="utf-8")
    shown = "".join(text for language, text in _BLOCK.findall(readme) if language == "json")
    (folder / "examples.jsonl").write_text(shown, encoding="utf-8")
    mine = "".join(shown.replace("pump", f"pump {number}") for number in range(DOZEN))
    (folder / "mine.jsonl").write_text(mine, encoding="utf-8")


def missing(shown: tuple[str, ...], output: str) -> list[str]:
    """Return the lines that stand in no line of an output, whatever the numbers in them."""
    lines = [_NUMBER.sub("0", line) for line in output.splitlines()]
    return [s for s in shown if not any(_NUMBER.sub("0", s.strip()) in line for line in lines)]


def _run(step: Step, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    words = [f"{folder}/.venv/bin/python", "-c"] if step.python else ["bash", "-c"]
    done = subprocess.run(
        [*words, step.command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def _serve(step: Step, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    """Start the server, ask it once as a client would, look at its page, and stop it by Ctrl-C."""
    with suppress(httpx.HTTPError):
        httpx.get(SERVED_AT, timeout=5)
        return 1, f"another server answers at {SERVED_AT} already"
    started = subprocess.Popen(
        ["bash", "-c", f"exec {step.command}"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    asked = {"model": "raggd", "messages": [{"role": "user", "content": "Where do pumps go?"}]}
    answers: list[str] = []
    try:
        while started.poll() is None and not answers:
            try:
                page = httpx.get(SERVED_AT, timeout=60)
                answer = httpx.post(f"{SERVED_AT}/v1/chat/completions", json=asked, timeout=600)
                answers += [page.raise_for_status().text, answer.raise_for_status().text]
            except httpx.ConnectError:
                time.sleep(0.5)
    except httpx.HTTPError as error:
        return 1, str(error)
    finally:
        started.send_signal(signal.SIGINT)
        output = started.communicate()[0]
    # Ctrl-C is how a server ends
    return (0 if len(answers) == 2 and started.returncode in {0, 130} else 1), output


def walk(folder: Path, environment_at: Path | None, skipped: dict[str, str]) -> int:
    """Run the commands of README in a folder, say of each how it went; return how many failed."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    environment = os.environ | {"RAGGD_CACHE": str(folder / "cache"), "COLUMNS": "200"}
    here, failed = folder, 0
    for step in steps(readme):
        said = " ".join(step.command.split()) if not step.python else "(the Python shown)"
        reason = next((why for start, why in skipped.items() if said.startswith(start)), None)
        if reason is not None:
            typer.echo(f"skipped  {said}: {reason}")
            continue
        command = step.command.replace("<this repository>", str(ROOT))
        begun = time.perf_counter()
        run = _serve if f"{_RAGGD} serve" in command and "--help" not in command else _run
        code, output = run(Step(command, step.shown, step.python), here, environment)
        lines = missing(step.shown, output)
        wrong = f"ended with {code}" if code else f"did not print {lines}" if lines else ""
        typer.echo(f"{'failed' if wrong else 'ok':8}  {said}: {time.perf_counter() - begun:.1f} s")
        if wrong:
            failed += 1
            typer.echo(f"  {wrong}\n" + "\n".join(f"  | {x}" for x in output.splitlines()[-30:]))
        entered = re.search(r"&& cd (\S+)$", command)
        if entered and not code:
            here = here / entered[1]
            lay_out(here, readme)
            if environment_at is not None:  # newer than all that it is made from
                (here / ".venv").symlink_to(environment_at.absolute())
                (here / ".venv" / ".ready").touch()
                environment["PYTHONPATH"] = str(here / "src")
    return failed


def main(
    folder: Annotated[
        Path | None, typer.Option(help="To walk in, new and kept; else one that is deleted.")
    ] = None,
    environment: Annotated[
        Path | None, typer.Option(help="A virtual environment to use instead of a new one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Without what takes minutes.")] = False,
) -> None:
    """Walk through README.

    Raises:
        Exit: with code 1 where a command failed or printed something else.
    """
    skipped = SKIPPED | ({"make demo": "--quick"} if quick else {})
    at = folder or Path(tempfile.mkdtemp(prefix="raggd-walk-"))
    at.mkdir(parents=True, exist_ok=True)
    failed = walk(at, environment, skipped)
    if folder is None:
        shutil.rmtree(at)
    typer.echo(f"{failed} failed")
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    typer.run(main)
