"""The alignment report against dense algebra in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from raggd.adaptation.targets import Targets
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Update,
    factors_of,
    update_from_vector,
)
from raggd.study import alignment
from raggd.study.alignment import alignment_summary
from tiny import random_base, random_tensors, spec_of

TASKS = ("nq", "musique", "nq", "nq", "musique", "nq", "musique")


@dataclass(frozen=True)
class Lookup:
    """Predicts, for the set whose states hold the number i, row i of a table."""

    spec: AdapterSpec
    base: str
    rows: Tensor

    def predict(self, states: Tensor) -> Update:
        numbers = states[:, 0, 0].long()
        return update_from_vector(self.spec, self.rows[numbers], self.base)


def vectors_of(spec: AdapterSpec, seed: int) -> Tensor:
    tensors = random_tensors(spec, seed, 0.05, batch=(len(TASKS),))
    return Update(spec, factors_of(tensors), "").vector()


@pytest.fixture
def targets(base: BaseAdapter) -> Targets:
    count = len(TASKS)
    return Targets(
        vectors=vectors_of(base.spec, 5).to(torch.bfloat16),
        states=torch.arange(count, dtype=torch.float32)[:, None, None].expand(count, 2, 4),
        tasks=TASKS,
        support_ids=tuple(f"s{i}" for i in range(count)),
        demonstration_ids=tuple((f"d{i}", f"e{i}") for i in range(count)),
        base=base.fingerprint,
        identity="made up",
    )


def dense_change(base: BaseAdapter, vector: Tensor) -> Tensor:
    """The change of every effective weight, one flat row per projection and layer, in float64."""
    step = update_from_vector(base.spec, vector.double(), base.fingerprint).factors
    rows = []
    for projection in PROJECTIONS:
        a, b = (t.double() for t in base.factors[projection])
        da, db = step[projection]
        change = base.spec.scaling * ((b + db) @ (a + da) - b @ a)
        rows.append(change.flatten(1))
    width = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[1])) for row in rows]
    return torch.stack(padded)  # (3, layers, entries)


def test_equals_dense_algebra(
    base: BaseAdapter, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "BLOCK", 3)  # seven sets: two whole blocks and a rest
    rows = 0.5 * targets.vectors.float() + vectors_of(base.spec, 6)
    found = alignment_summary(base, targets, Lookup(base.spec, base.fingerprint, rows))

    true = torch.stack([dense_change(base, v) for v in targets.vectors])
    mine = torch.stack([dense_change(base, v) for v in rows])
    cosine = torch.cosine_similarity(mine, true, dim=-1)  # (sets, 3, layers)
    assert cosine.std() > 0.01, "all alike would hide a mix-up"

    def close(value: object, expected: Tensor | float) -> None:
        assert value == pytest.approx(float(expected), abs=2e-5)

    close(found["cosine"], cosine.mean())
    close(found["total_cosine"], torch.cosine_similarity(mine.flatten(1), true.flatten(1)).mean())
    close(found["log_norm_ratio"], (mine.norm(dim=-1) / true.norm(dim=-1)).log().mean())
    for number, name in enumerate(PROJECTIONS):
        close(found["by_projection"][name], cosine[:, number].mean())
    for number, name in enumerate(("lower", "middle", "upper")):  # three layers
        close(found["by_third"][name], cosine[:, :, number].mean())
    for task in ("nq", "musique"):
        close(found["by_task"][task], cosine[[t == task for t in TASKS]].mean())
    place = torch.tensor(found["by_place"], dtype=torch.float64)
    assert place.shape == (3, base.spec.layers)
    torch.testing.assert_close(place, cosine.mean(0), atol=1e-4, rtol=0)
    low, high = found["interval"]
    assert low < found["cosine"] < high


def test_the_truth_has_cosine_one(base: BaseAdapter, targets: Targets) -> None:
    truth = Lookup(base.spec, base.fingerprint, targets.vectors.float())
    found = alignment_summary(base, targets, truth)
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert found["total_cosine"] == pytest.approx(1, abs=1e-5)
    assert found["log_norm_ratio"] == pytest.approx(0, abs=1e-5)
    assert found["interval"] == pytest.approx([1, 1], abs=1e-5)
    assert list(found["by_task"].values()) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        pytest.param(lambda rows: rows.roll(1, 0), 0, id="another set's truth"),
        pytest.param(torch.neg, -1, id="the opposite step"),
    ],
)
def test_a_wrong_prediction_shows(
    base: BaseAdapter, targets: Targets, change: Callable[[Tensor], Tensor], sign: int
) -> None:
    wrong = Lookup(base.spec, base.fingerprint, change(targets.vectors.float()))
    truth = Lookup(base.spec, base.fingerprint, targets.vectors.float())
    assert alignment_summary(base, targets, truth)["cosine"] > 0.999
    found = alignment_summary(base, targets, wrong)
    assert found["cosine"] == pytest.approx(sign, abs=0.3)


def test_one_held_out_set_is_enough(tiny_backbone: Backbone, targets: Targets) -> None:
    base = random_base(tiny_backbone)
    assert base.spec == spec_of(tiny_backbone)
    one = targets.take([2])
    truth = Lookup(base.spec, base.fingerprint, targets.vectors.float())
    found = alignment_summary(base, one, truth)
    assert found["cosine"] == pytest.approx(1, abs=1e-5)
    assert found["interval"] == [-math.inf, math.inf]
    assert found["by_task"] == {"nq": pytest.approx(1, abs=1e-5)}
