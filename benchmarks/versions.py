"""Are the answers the same in two environments? `python -m benchmarks.versions LEFT RIGHT`.

LEFT and RIGHT are folders that `raggd evaluate` or `raggd study` filled with records, say one under
the lowest and one under the highest version of transformers that pyproject.toml allows, with
``backbone.dtype=float32``. Questions are compared one by one.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from raggd.files import write_json
from raggd.provenance import origin
from raggd.records import RaggdError

Answers = dict[tuple[str, str, str], str]
"""Benchmark, method and question to the answer."""


def answers_in(folder: Path) -> tuple[Answers, dict[str, Any]]:
    """Read the answers in all records below a folder, and the versions and command behind them.

    Raises:
        RaggdError: there is no record.
    """
    answers: Answers = {}
    made: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"predictions", "versions", "method"} <= set(record):
            continue
        made = {name: record.get(name) for name in ("versions", "command", "created")}
        for draw, p in enumerate(record["predictions"]):
            key = (record["benchmark"], record["method"], f"{p['question_id']} {draw}")
            answers[key] = p["answer"]
    if not answers:
        raise RaggdError(f"{folder} holds no records: fill it with `raggd evaluate --out`.")
    return answers, made


def compare(left: Path, right: Path) -> dict[str, Any]:
    """Compare two folders of records of the same questions.

    Returns:
        ``left`` and ``right`` (versions, command), ``questions`` by benchmark and method, how
        many ``answers`` there are, how many are the ``same``, and the ``different`` ones.

    Raises:
        RaggdError: they were asked different questions.
    """
    (ours, before), (theirs, after) = answers_in(left), answers_in(right)
    if set(ours) != set(theirs):
        raise RaggdError(f"{left} and {right} hold answers to different questions.")
    different = [
        {"cell": key[:2], "question": key[2], "left": ours[key], "right": theirs[key]}
        for key in sorted(ours)
        if ours[key] != theirs[key]
    ]
    counts: dict[str, int] = {}
    for benchmark, method, _ in ours:
        counts[f"{benchmark}/{method}"] = counts.get(f"{benchmark}/{method}", 0) + 1
    return {
        "left": before,
        "right": after,
        "questions": counts,
        "answers": len(ours),
        "same": len(ours) - len(different),
        "different": different,
    }


def processor() -> str:
    """Name this machine's processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def main(
    left: Path,
    right: Path,
    out: Annotated[Path, typer.Option()] = Path("results/versions/versions.json"),
) -> None:
    """Compare two folders of records question by question and write what was found.

    Raises:
        Exit: with code 1 where an answer differs.
    """
    found = compare(left, right) | {"processor": processor(), **origin()}
    write_json(out, found)
    typer.echo(f"{found['same']} of {found['answers']} answers are the same ({out})")
    raise typer.Exit(code=int(bool(found["different"])))


if __name__ == "__main__":
    typer.run(main)
