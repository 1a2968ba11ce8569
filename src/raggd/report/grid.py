"""A study's folder as a grid of answers: from records, or from the part files of unfinished cells.

Within a block (one backbone, one retriever) all methods are shown on the same questions. While a
study runs, methods are at most a draw apart; the draws that most methods have are shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from raggd.data.benchmarks import BENCHMARKS, HELD_OUT
from raggd.evaluation.statistics import Interval
from raggd.files import read_json
from raggd.methods.spec import SPECS
from raggd.records import RaggdError, part_path

PLAN_FILE, ALIGNMENT_FILE = "study.json", "alignment.json"
"""A study's settings and cells; how a backbone's predictors match true updates."""
Costs = Mapping[str, float]  # of a question, by name


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One scored answer; `draw` is the number of its support draw under the seed."""

    question: str
    seed: int
    draw: int
    em: float
    f1: float
    loss: float | None
    answerable: bool | None


Answers = Mapping[str, Mapping[str, Sequence[ScoredAnswer]]]
"""By method and benchmark; of several seeds answers stand one after another."""


CellAnswers = tuple[list[ScoredAnswer], Costs | None]
"""What is there of one cell, draw by draw; an unfinished one lacks draws and costs."""


@dataclass(frozen=True, slots=True)
class StudyBlock:
    """All methods of a backbone and retriever, on the same questions; costs of complete cells."""

    backbone: str
    retriever: str
    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    answers: Answers
    costs: Mapping[str, Costs]
    resamples: int = 10_000  # behind every interval of its scores
    averages: dict[tuple[tuple[str, ...], str], dict[str, Interval]] = field(
        init=False, default_factory=dict, repr=False, compare=False
    )
    """Known ones, by benchmarks and metric, then by method (see `contrasts.average`)."""

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.backbone}, {self.retriever}"

    def has(self, method: str, benchmarks: Sequence[str]) -> bool:
        """Return whether a method answered all of some benchmarks."""
        return all(name in self.answers.get(method, {}) for name in benchmarks)


@dataclass(frozen=True, slots=True)
class Grid:
    """A study's folder, read: blocks that have answers, cells planned, paths of missing records."""

    settings: Mapping[str, Any]
    blocks: tuple[StudyBlock, ...]
    planned: int
    missing: tuple[str, ...]


def _scored(predictions: Sequence[Mapping[str, Any]], seed: int) -> list[ScoredAnswer]:
    draws: dict[str, int] = {}  # by their support sets
    found = []
    for p in predictions:
        draw = draws.setdefault(p["support_id"], len(draws))
        scores = (p["em"], p["f1"], p.get("answer_loss"), p.get("answerable"))
        found.append(ScoredAnswer(p["question_id"], seed, draw, *scores))
    return found


def _part_predictions(folder: Path, benchmark: str, method: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        known = {p["support_id"] for p in found}
        path = folder / part_path(benchmark, len(known), method)
        if not path.is_file():
            return found
        new = read_json(path, what="part file")["predictions"]
        if {p["support_id"] for p in new} & known:
            return found  # draws that share a support set cannot be told apart without the record
        found += new


def _cell(out: Path, entry: Mapping[str, Any]) -> CellAnswers | None:
    path = out / entry["path"]
    try:
        if path.is_file():
            record = read_json(path, what="run record")
            costs = {name: float(value) for name, value in record.get("cost", {}).items()}
            return _scored(record["predictions"], entry["seed"]), costs
        folder = out / entry["backbone"] / entry["retriever"] / f"seed-{entry['seed']}"
        found = _part_predictions(folder, entry["benchmark"], entry["method"])
        return (_scored(found, entry["seed"]), None) if found else None
    except (KeyError, TypeError, ValueError) as error:
        raise RaggdError(
            f"{path} (or a part of it) is not what a study writes ({error!r}): remove it and run "
            "the study again."
        ) from error


def _block(
    labels: tuple[str, str], cells: Mapping[tuple[int, str, str], CellAnswers], resamples: int
) -> StudyBlock:
    answers: dict[str, dict[str, list[ScoredAnswer]]] = {}
    groups: dict[tuple[str, int], dict[str, list[ScoredAnswer]]] = {}
    whole: dict[str, list[Costs]] = {}  # of complete cells, by method
    for (seed, benchmark, method), (given, costs) in cells.items():
        groups.setdefault((benchmark, seed), {})[method] = given
        if costs is not None:
            whole.setdefault(method, []).append(costs)
    for (benchmark, _), by_method in groups.items():
        draws = {m: len({a.draw for a in given}) for m, given in by_method.items()}
        # the number of draws that shows most: methods that have so many, times draws
        most = max(draws.values(), key=lambda n: (sum(d >= n for d in draws.values()) * n, n))
        for method in (m for m, count in draws.items() if count >= most):
            shown = [a for a in by_method[method] if a.draw < most]
            answers.setdefault(method, {}).setdefault(benchmark, []).extend(shown)
    means = {}
    for method in answers:
        complete = whole.get(method, [])
        names = set.intersection(*map(set, complete)) if complete else set()
        means[method] = {name: fmean(found[name] for found in complete) for name in sorted(names)}
    listed = [name for name in SPECS if name in answers]
    ordered = tuple(dict.fromkeys([*listed, *answers]))
    benchmarks = tuple(dict.fromkeys(benchmark for benchmark, _ in groups))
    return StudyBlock(*labels, ordered, benchmarks, answers, means, resamples)


def _bare_records(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    # run records that lie in a folder without a plan, e.g. of an older version's evaluation
    entries, settings = [], dict[str, Any]()
    for path in sorted(out.glob("*.json")):
        record = read_json(path, what="run record")
        if isinstance(record, dict) and {"predictions", "benchmark", "method"} <= set(record):
            entry = {name: record[name] for name in ("backbone", "seed", "benchmark", "method")}
            retriever = record["settings"]["retrieval"]["retriever"]
            entries.append({**entry, "retriever": retriever, "path": path.name})
            settings[path.name] = record["settings"]
    if not entries:
        raise RaggdError(
            f"{out} holds no study (no {PLAN_FILE}): give the folder that `raggd study` wrote to."
        )
    entries.sort(key=lambda e: (*BENCHMARKS, e["benchmark"]).index(e["benchmark"]))
    return settings[entries[0]["path"]], entries


def _planned(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = out / PLAN_FILE
    if not path.is_file():
        return _bare_records(out)
    plan = read_json(path, what="study plan")
    try:
        return plan["settings"], list(plan["cells"])
    except (KeyError, TypeError) as error:
        raise RaggdError(f"{path} is not the plan of a study ({error}).") from error


def load_grid(out: Path, resamples: int = 10_000) -> Grid:
    """Read a study's folder; the study may be unfinished, but not without an answer."""
    settings, entries = _planned(out)
    blocks: dict[tuple[str, str], dict[tuple[int, str, str], CellAnswers]] = {}
    missing = []
    for entry in entries:
        cell = _cell(out, entry)
        if cell is None or cell[1] is None:
            missing.append(entry["path"])
        if cell is not None:
            mine = blocks.setdefault((entry["backbone"], entry["retriever"]), {})
            mine[entry["seed"], entry["benchmark"], entry["method"]] = cell
    if not blocks:
        raise RaggdError(f"nothing was answered yet in {out}: run the study first.")
    built = tuple(_block(labels, cells, resamples) for labels, cells in blocks.items())
    return Grid(settings, built, len(entries), tuple(missing))


def subsets(benchmarks: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Split benchmarks as tables report them: ``all``, ``training tasks``, ``held-out tasks``."""
    held = tuple(name for name in benchmarks if name in HELD_OUT)
    trained = tuple(name for name in benchmarks if name not in held)
    named = {"all": tuple(benchmarks), "training tasks": trained, "held-out tasks": held}
    yield from ((name, chosen) for name, chosen in named.items() if chosen)
