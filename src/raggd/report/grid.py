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

from raggd.data.benchmarks import BENCHMARKS
from raggd.files import read_json
from raggd.methods.spec import SPECS
from raggd.records import RaggdError

PLAN_FILE = "study.json"
Costs = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Answer:
    """One scored answer; `draw` is the number of its support draw."""

    question: str
    draw: int
    em: float
    f1: float
    loss: float | None
    answerable: bool | None


@dataclass(frozen=True, slots=True)
class Cell:
    """What is there of one cell: answers by draw, of which an unfinished one lacks the last."""

    answers: tuple[tuple[Answer, ...], ...]
    costs: Costs
    complete: bool
    path: str


@dataclass(frozen=True, slots=True)
class Block:
    """All methods of one backbone and retriever, on the same questions.

    Methods and benchmarks are those with answers. Costs are means over benchmarks, only of complete
    cells; of several seeds answers stand one after another.
    """

    backbone: str
    retriever: str
    methods: tuple[str, ...]
    benchmarks: tuple[str, ...]
    answers: Mapping[str, Mapping[str, tuple[tuple[int, Answer], ...]]]
    costs: Mapping[str, Costs]

    @property
    def name(self) -> str:
        """How tables call it."""
        return f"{self.backbone}, {self.retriever}"

    def has(self, method: str, benchmarks: Sequence[str]) -> bool:
        """Return whether a method answered all of some benchmarks."""
        return all(name in self.answers.get(method, {}) for name in benchmarks)


@dataclass(frozen=True, slots=True)
class Grid:
    """A study's folder, read: blocks that have answers, cells planned, paths of missing records.

    `draws` are the support draws that are shown, by block and benchmark.
    """

    settings: Mapping[str, Any]
    blocks: tuple[Block, ...]
    planned: int
    missing: tuple[str, ...]
    draws: Mapping[tuple[str, str], int] = field(default_factory=dict)


def _answers(predictions: Sequence[Mapping[str, Any]]) -> tuple[tuple[Answer, ...], ...]:
    by_support: dict[str, list[Answer]] = {}
    for p in predictions:
        mine = by_support.setdefault(p["support_id"], [])
        mine.append(
            Answer(
                p["question_id"],
                list(by_support).index(p["support_id"]),
                p["em"],
                p["f1"],
                p.get("answer_loss"),
                p.get("answerable"),
            )
        )
    return tuple(tuple(mine) for mine in by_support.values())


def _part_predictions(folder: Path, benchmark: str, method: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        draw = len({p["support_id"] for p in found}) if found else 0
        path = folder / "parts" / f"{benchmark}-{draw:03d}-{method}.json"
        if not path.is_file():
            return found
        new = read_json(path, what="part file")["predictions"]
        if {p["support_id"] for p in new} & {p["support_id"] for p in found}:
            return found  # draws that share a support set cannot be told apart without the record
        found += new


def _cell(out: Path, entry: Mapping[str, Any]) -> Cell | None:
    path = out / entry["path"]
    if path.is_file():
        record = read_json(path, what="run record")
        costs = {name: float(value) for name, value in record.get("cost", {}).items()}
        return Cell(_answers(record["predictions"]), costs, complete=True, path=entry["path"])
    folder = out / entry["backbone"] / entry["retriever"] / f"seed-{entry['seed']}"
    found = _part_predictions(folder, entry["benchmark"], entry["method"])
    return Cell(_answers(found), {}, complete=False, path=entry["path"]) if found else None


def _shown_draws(cells: Sequence[Cell]) -> int:
    # the number of draws that shows most: methods that have so many, times draws
    depths = [len(cell.answers) for cell in cells]
    return max(set(depths), key=lambda depth: (sum(d >= depth for d in depths) * depth, depth))


def _mean_costs(cells: Sequence[Cell]) -> Costs:
    complete = [cell.costs for cell in cells if cell.complete]
    names = set.intersection(*(set(costs) for costs in complete)) if complete else set()
    return {name: fmean(costs[name] for costs in complete) for name in sorted(names)}


def _ordered(methods: Sequence[str]) -> tuple[str, ...]:
    known = [name for name in SPECS if name in methods]
    return (*known, *(name for name in dict.fromkeys(methods) if name not in SPECS))


def _block(
    backbone: str, retriever: str, cells: Mapping[tuple[int, str, str], Cell]
) -> tuple[Block, dict[str, int]]:
    answers: dict[str, dict[str, tuple[tuple[int, Answer], ...]]] = {}
    draws: dict[str, int] = {}
    benchmarks = tuple(dict.fromkeys(benchmark for _, benchmark, _ in cells))
    for benchmark in benchmarks:
        for seed in dict.fromkeys(s for s, b, _ in cells if b == benchmark):
            mine = {m: c for (s, b, m), c in cells.items() if (s, b) == (seed, benchmark)}
            shown = draws[benchmark] = _shown_draws(list(mine.values()))
            for method, cell in mine.items():
                if len(cell.answers) >= shown:
                    known = answers.setdefault(method, {}).get(benchmark, ())
                    new = tuple((seed, a) for draw in cell.answers[:shown] for a in draw)
                    answers[method][benchmark] = known + new
    costs = {
        method: _mean_costs([cell for (_, _, m), cell in cells.items() if m == method])
        for method in answers
    }
    methods = _ordered(list(answers))
    return Block(backbone, retriever, methods, benchmarks, answers, costs), draws


def _records(out: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    # run records that lie in a folder without a plan, e.g. of an older version's evaluation
    for path in sorted(out.glob("*.json")):
        record = read_json(path, what="run record")
        if isinstance(record, dict) and {"predictions", "benchmark", "method"} <= set(record):
            yield (
                {name: record[name] for name in ("backbone", "seed", "benchmark", "method")}
                | {
                    "retriever": record["settings"]["retrieval"]["retriever"],
                    "path": path.name,
                },
                record,
            )


def _entries(out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    path = out / PLAN_FILE
    records = [] if path.is_file() else list(_records(out))
    if records:
        order = list(BENCHMARKS)
        records.sort(key=lambda pair: (*order, pair[0]["benchmark"]).index(pair[0]["benchmark"]))
        return records[0][1]["settings"], [entry for entry, _ in records]
    if not path.is_file():
        raise RaggdError(
            f"{out} holds no study (no {PLAN_FILE}): give the folder that `raggd study` wrote to."
        )
    plan = read_json(path, what="study plan")
    try:
        return plan["settings"], list(plan["cells"])
    except (KeyError, TypeError) as error:
        raise RaggdError(f"{path} is not the plan of a study ({error}).") from error


def load_grid(out: Path) -> Grid:
    """Read a study's folder; the study may be unfinished.

    Raises:
        RaggdError: there is no study, or nothing was answered yet, or a file is damaged.
    """
    settings, entries = _entries(out)
    blocks: dict[tuple[str, str], dict[tuple[int, str, str], Cell]] = {}
    missing = []
    for entry in entries:
        try:
            cell = _cell(out, entry)
        except (KeyError, TypeError, ValueError) as error:
            raise RaggdError(
                f"{out / entry['path']} (or a part of it) is not what a study writes ({error!r}): "
                "remove it and run the study again."
            ) from error
        if cell is None or not cell.complete:
            missing.append(entry["path"])
        if cell is not None:
            mine = blocks.setdefault((entry["backbone"], entry["retriever"]), {})
            mine[entry["seed"], entry["benchmark"], entry["method"]] = cell
    if not blocks:
        raise RaggdError(f"nothing was answered yet in {out}: run the study first.")
    built = [_block(*key, cells) for key, cells in blocks.items()]
    draws = {(b.name, name): n for b, counts in built for name, n in counts.items()}
    return Grid(settings, tuple(b for b, _ in built), len(entries), tuple(missing), draws)


def held_out(benchmark: str) -> bool:
    """Return whether a benchmark is never trained on."""
    return benchmark in BENCHMARKS and BENCHMARKS[benchmark].held_out


def subsets(benchmarks: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Split benchmarks as tables report them: ``all``, ``training tasks``, ``held-out tasks``."""
    named = {
        "all": tuple(benchmarks),
        "training tasks": tuple(name for name in benchmarks if not held_out(name)),
        "held-out tasks": tuple(name for name in benchmarks if held_out(name)),
    }
    yield from ((name, chosen) for name, chosen in named.items() if chosen)
