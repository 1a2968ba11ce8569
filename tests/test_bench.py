"""`raggd bench`: the arithmetic of paired timing with a clock of our own; no real times."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest

from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.predictors.mean import MeanPredictor
from raggd.adaptation.predictors.store import save_predictor
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.evaluation import bench
from raggd.evaluation.bench import paired
from raggd.files import read_json
from raggd.methods.weights import BASE_FILE, PREDICTOR_FILE
from raggd.records import RaggdError
from raggd.settings import load_settings
from raggd.workflows.bench import run_bench
from tiny import random_base, random_update
from workflow_fixtures import changed, parts_with, settings_text, write_data

RATIOS = {"adapt_vs_tt_sgd", "adapt_vs_floor", "mixed_vs_none", "mixed_vs_bare"}


class FakeClock:
    """Time passes only when work says so."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def work(self, name: str, milliseconds: Sequence[float]) -> Callable[[], None]:
        durations: Iterator[float] = iter(milliseconds)

        def run() -> None:
            self.order.append(name)
            self.now += next(durations) / 1000

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def test_pairs_alternate_after_one_warm_up(clock: FakeClock) -> None:
    paired(clock.work("a", [1] * 9), clock.work("b", [1] * 9), rounds=4)
    assert "".join(clock.order) == "ab" + "ab" + "ba" + "ab" + "ba"


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_ratios_are_of_the_same_round_and_leave_the_warm_up_out(
    clock: FakeClock, rounds: int
) -> None:
    a = [9000.0, 10.0, 60.0, 20.0, 90.0, 40.0][: rounds + 1]
    b = [0.001, 20.0, 10.0, 80.0, 30.0, 40.0][: rounds + 1]
    found = paired(clock.work("a", a), clock.work("b", b), rounds)
    ratios = [one / two for one, two in zip(a[1:], b[1:], strict=True)]
    assert found.ratio == pytest.approx(median(ratios))
    assert (found.low, found.high) == pytest.approx((min(ratios), max(ratios)))
    assert found.a_ms == pytest.approx(median(a[1:]))
    assert found.b_ms == pytest.approx(median(b[1:]))
    assert found.rounds == rounds
    if rounds == 5:
        assert found.ratio != pytest.approx(found.a_ms / found.b_ms), "not a ratio of medians"


def test_no_rounds_is_refused() -> None:
    with pytest.raises(RaggdError, match="at least one round, got 0"):
        paired(lambda: None, lambda: None, 0)


@pytest.fixture
def parts(tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assembly:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    base, weights = random_base(tiny_backbone), tmp_path / "weights"
    save_base(weights / BASE_FILE, base)
    mean = MeanPredictor(base.spec, base.fingerprint, random_update(base).vector())
    save_predictor(weights / PREDICTOR_FILE, mean)
    path = tmp_path / "settings.toml"
    text = settings_text(write_data(tmp_path / "data"), weights=str(weights))
    path.write_text(text, encoding="utf-8")
    return parts_with(load_settings(path), tiny_backbone)


def test_the_record_holds_the_ratios(parts: Assembly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run_bench(parts, out, rounds=2, only=None)
    assert read_json(out / "bench.json", what="bench record") == record
    assert set(record["ratios"]) == set(record["details"]) == RATIOS
    for name, found in record["details"].items():
        assert found["rounds"] == 2
        assert found["low"] <= found["ratio"] <= found["high"]
        assert record["ratios"][name] == pytest.approx(found["ratio"], abs=1e-4)
    assert record["tt_sgd_steps"] == parts.settings.target.steps
    assert record["settings"] == parts.settings.model_dump()
    assert record["backbone"] == "tiny"
    assert {"dtype", "device", "cores", "threads", "versions", "command"} <= set(record)


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("adaptation", {"adapt_vs_tt_sgd", "adapt_vs_floor"}),
        ("mixed-batch", {"mixed_vs_none", "mixed_vs_bare"}),
    ],
)
def test_one_group_alone(parts: Assembly, tmp_path: Path, only: str, names: set[str]) -> None:
    assert set(run_bench(parts, tmp_path / "out", 1, only)["ratios"]) == names


def test_an_unknown_group_is_refused_before_any_work(parts: Assembly, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="did you mean 'mixed-batch'"):
        run_bench(parts, tmp_path / "out", 1, "mixed-bach")
    nothing = parts_with(changed(parts.settings, "evaluation", benchmarks=[]), parts.backbone)
    with pytest.raises(RaggdError, match="no benchmark is named"):
        run_bench(nothing, tmp_path / "out", 1, None)
    assert not (tmp_path / "out").exists()
