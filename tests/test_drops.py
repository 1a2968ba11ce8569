"""Drops of the answer loss are paired means; their multiples are of TT-SGD's on the same draws."""

from __future__ import annotations

import numpy as np
import pytest

from raggd.evaluation.statistics import Sample
from raggd.report.contrasts import ANSWERABLE, loss_drops
from raggd.report.study_tables import drops_table
from raggd.report.tables import NOTHING
from test_study_report import made_up


def _world(better: float, worse: float) -> dict[str, np.ndarray]:
    # exact match is 1 - loss in these blocks
    rng = np.random.default_rng(3)
    base = 0.3 * rng.random((2, 60))
    return {"base": base, "tt-sgd": base + 0.1 + 0.01 * rng.random((2, 60)),
            "rag-gd": base + better, "mean-update": base + worse}  # fmt: skip


def test_drops_and_multiples() -> None:
    found = {(d.subset, d.method): d for d in loss_drops([made_up(_world(0.21, -0.05))])}
    subsets = {subset for subset, _ in found}
    assert subsets == {"all", "training tasks", "held-out tasks", ANSWERABLE}
    assert found[ANSWERABLE, "rag-gd"].n == 80  # two questions of three
    assert {method for _, method in found} == {"tt-sgd", "rag-gd", "mean-update"}
    ours, sgd = found["all", "rag-gd"], found["all", "tt-sgd"]
    assert (ours.n, ours.drop.mean) == (120, pytest.approx(0.21))
    assert sgd.drop.mean == pytest.approx(0.105, abs=0.002)
    assert sgd.times is not None
    assert sgd.times.mean == sgd.times.low == sgd.times.high == 1
    assert ours.times is not None
    assert ours.times.mean == pytest.approx(ours.drop.mean / sgd.drop.mean)
    assert 1.9 < ours.times.low < ours.times.mean < ours.times.high < 2.1
    worse = found["all", "mean-update"]
    assert worse.drop.high < 0
    assert worse.times is not None
    assert worse.times.high < 0


def test_no_multiple_of_what_is_not_surely_there() -> None:
    world = _world(0.2, 0.0)
    world["tt-sgd"] = world["base"] + np.where(np.arange(60) % 2, 0.1, -0.1)
    found = loss_drops([made_up(world)])
    assert found
    assert all(drop.times is None for drop in found)
    without = {name: scores for name, scores in world.items() if name != "tt-sgd"}
    assert loss_drops([made_up(without)]) == []


def test_the_table_has_a_row_for_each_method() -> None:
    table = drops_table(loss_drops([made_up(_world(0.21, -0.05))]))
    assert [column.heading for column in table.columns[2:4]] == ["Drop, all", "x TT-SGD"]
    assert len(table.rows) == 3
    (worse,) = (row for row in table.rows if row[2].startswith("-0.050 ["))
    assert set(worse[3::2]) == {NOTHING}  # a rise of the loss is no multiple of a drop
    assert table.rows[1][2].startswith("0.105 [") or table.rows[0][2].startswith("0.105 [")


def test_ratios_of_one_column_to_itself_and_to_a_multiple() -> None:
    values = np.random.default_rng(0).random(50) + 1
    twice = Sample("ab", np.stack([values, 2 * values], 1), resamples=200)
    same, double = twice.intervals(over="a").values()
    assert (same.mean, same.low, same.high) == (1, 1, 1)
    assert (double.low, double.high) == (pytest.approx(2), pytest.approx(2))
    other = np.random.default_rng(1).random(50) + 1
    both = Sample("ab", np.stack([values, other], 1), resamples=400)
    spread = both.intervals(over="a")["b"]
    assert spread.low < spread.mean < spread.high
    assert spread.mean == pytest.approx(other.mean() / values.mean())
