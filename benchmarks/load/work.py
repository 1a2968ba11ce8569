"""What is asked under load, and a server of one's own to ask it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from raggd.adaptation.targets import draw_supports
from raggd.assembly import Assembly
from raggd.data.answers import choose_answer
from raggd.data.benchmarks import choose_by_hash, known_benchmarks, scored_questions, support_pool
from raggd.records import RaggdError

SETS = 8
_START_S = 600


@dataclass(frozen=True, slots=True)
class Workload:
    """What is asked: questions, and demonstrations of `SETS` support sets and of spare ones."""

    benchmark: str
    questions: tuple[str, ...]
    supports: tuple[tuple[dict[str, str], ...], ...]


def make_workload(parts: Assembly, questions: int, spare: int = 0) -> Workload:
    """Draw questions and support sets, `spare` ones too, from the settings' first benchmark.

    It is the same at every call, and loads no model.
    """
    name = known_benchmarks(parts.settings.evaluation.benchmarks)[0]
    asked = choose_by_hash(scored_questions(parts.source, name), questions, 0)
    size = parts.settings.target.demonstrations
    drawn = draw_supports(support_pool(parts.source, name), size, SETS + spare, 0)
    supports = tuple(
        tuple({"question": q.text, "answer": choose_answer(q.answers, ())} for q in each)
        for each in drawn
    )
    return Workload(name, tuple(q.text for q in asked), supports)


@dataclass
class OwnServer:
    """A server that was started for a measurement."""

    url: str
    process: subprocess.Popen[str]

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=300)


@contextmanager
def own_server(config: Path | None, assignments: Sequence[str], log: Path) -> Iterator[OwnServer]:
    """Start ``raggd serve`` on a free port, its standard error going to `log`.

    Raises:
        RaggdError: it did not start.
    """
    with tempfile.TemporaryDirectory(prefix="raggd-load-") as folder:
        changes = [f"serving.supports={json.dumps(folder)}", *assignments]
        command = [sys.executable, "-c", "from raggd.cli import main; main()", "serve", "--json"]
        command += ["--port", "0", *(["--settings", str(config)] if config else [])]
        command += [part for change in changes for part in ("--set", change)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as sink:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True)
            try:
                line = process.stdout.readline() if process.stdout else ""
                if not line:
                    raise RaggdError(f"the server did not start; {log} says why.")
                url = json.loads(line)["url"]
                _wait_until_ready(url)
                yield OwnServer(url, process)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait(timeout=300)


def _wait_until_ready(url: str) -> None:
    for _ in range(_START_S):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(1)
    raise RaggdError(f"the server at {url} was not ready within {_START_S} s.")
