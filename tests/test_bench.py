"""`python -m benchmarks`: paired timing with a clock of our own; no real times."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import benchmarks
import benchmarks.__main__ as bench_command
from benchmarks import answering, following, growth, targets, training
from benchmarks.adaptation import support_flops
from benchmarks.growth import fit_exponent
from benchmarks.pages import MEANING
from benchmarks.peers import merged, peft_model
from benchmarks.registry import BENCHES, find_bench
from benchmarks.run import run_bench
from benchmarks.setting import BenchSetting
from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.predictors.base import MeanPredictor, save_predictor
from raggd.adaptation.targets import support_batch
from raggd.assembly import Assembly
from raggd.backbone.generate import clean_answer
from raggd.backbone.load import Backbone
from raggd.evaluation import timing
from raggd.evaluation.timing import Ratio, Work, in_turn, ratio_of
from raggd.files import read_json
from raggd.methods.answering import answer_batch
from raggd.methods.base import Adapted
from raggd.methods.spec import BASE_FILE, EXAMPLES_FILE, PREDICTOR_FILE
from raggd.records import RaggdError
from raggd.settings import changed, load_settings
from tiny import hooks_of, random_base, random_update
from workflow_fixtures import parts_with, settings_text, write_data


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


def paired(a: Work, b: Work, rounds: int) -> Ratio:
    times = in_turn({"a": a, "b": b}, rounds)
    return ratio_of(times["a"], times["b"])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    made = FakeClock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=made.perf_counter))
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


def test_several_works_take_turns_and_keep_their_rounds(clock: FakeClock) -> None:
    works = {name: clock.work(name, [5, 1, 2, 3]) for name in "abc"}
    times = in_turn(works, 3)
    assert "".join(clock.order) == "abc" + "abc" + "cba" + "abc"
    assert {n: [round(ms) for ms in t] for n, t in times.items()} == {n: [1, 2, 3] for n in "abc"}
    clock.order.clear()
    in_turn({"a": clock.work("a", [1, 1])}, 2, warm=False)
    assert clock.order == ["a", "a"]


@given(st.floats(-2, 3), st.floats(0.01, 100))
def test_the_exponent_of_a_power_law_is_found(power: float, factor: float) -> None:
    sizes = [1, 2, 3, 5, 8]
    exponent, explained = fit_exponent(sizes, [factor * size**power for size in sizes])
    assert exponent == pytest.approx(power, abs=1e-4)
    assert explained == pytest.approx(1.0, abs=1e-3) or abs(power) < 1e-3
    noisy = [factor * size**power * (1.5 if size == 3 else 1) for size in sizes]
    assert fit_exponent(sizes, noisy)[1] < 1


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


@pytest.fixture
def setting(parts: Assembly) -> BenchSetting:
    return BenchSetting(parts, 2, lambda _: None)


def test_every_bench_is_registered_and_says_what_it_compares() -> None:
    folder = Path(benchmarks.__file__).parent
    helpers = {
        "__init__",
        "__main__",
        "command",
        "registry",
        "setting",
        "peers",
        "measured",
        "pages",
        "run",
        "measure",
    }
    alone = {"boundary_speed", "follow_ups", "gpu_check", "resample", "trainings", "versions"}
    alone |= {"claims", "walk"}  # with commands of their own
    helpers |= alone
    assert {path.stem for path in folder.glob("*.py")} - helpers == set(BENCHES)
    for name in BENCHES:
        assert find_bench(name).ABOUT
    text = inspect.getsource(bench_command)
    assert all(name in text for name in BENCHES)


def test_adaptation_finds_its_ratios(parts: Assembly, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run_bench(parts, out, rounds=2, only="adaptation")
    assert read_json(out / "bench-adaptation.json", what="bench record") == record
    names = {"adapt_vs_tt_sgd", "adapt_vs_floor", "adapt_vs_matrices", "cached_vs_answer"}
    assert names | {"few_shot_vs_answer"} <= set(record["ratios"]) == set(record["details"])
    for name, found in record["details"].items():
        assert found["low"] <= found["ratio"] <= found["high"]
        assert record["ratios"][name] == pytest.approx(found["ratio"], abs=1e-4)
        assert name in MEANING or name == "adapt_vs_tt_sgd_k2"
    assert record["tt_sgd_steps"] == parts.settings.target.steps == 2
    assert record["settings"] == parts.settings.model_dump()
    assert record["backbone"] == "tiny"
    assert {"dtype", "device", "cores", "threads", "versions", "command"} <= set(record)
    assert "adapt_vs_floor" in (out / "bench-adaptation.md").read_text().replace("\\", "")


def test_the_flops_of_the_floor_are_counted_by_token(setting: BenchSetting) -> None:
    batch = support_batch(setting.backbone, setting.supports[:1], setting.limit)
    counted = support_flops(setting.backbone, batch)
    unfused = sdpa_kernel(SDPBackend.MATH)  # the fused one is not counted on a processor
    with FlopCounterMode(display=False) as counter, torch.no_grad(), unfused:
        for row, length in enumerate(batch.mask.sum(1).tolist()):
            tokens = batch.tokens[row : row + 1, -length:]
            setting.backbone.model.base_model(input_ids=tokens, use_cache=False)
    # torch counts all pairs of an attention, we those below the diagonal
    assert 0.6 * counter.get_total_flops() < counted <= counter.get_total_flops()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "BATCHES", (1, 3))
    monkeypatch.setattr(answering, "MAIN", 3)


@pytest.mark.usefixtures("small")
def test_all_ways_of_answering_give_the_same_answers(setting: BenchSetting) -> None:
    base = setting.base
    updates = [random_update(base, seed=20 + i, size=0.4) for i in range(3)]
    factors = answering._adapters(setting, updates)
    peft = {"peft": peft_model(setting.backbone, factors, train=False)}
    rows = answering.Rows(setting, updates, peft)
    for work in rows.works().values():
        work()
    ours = rows.answers["ours"]
    assert ours.shape == (3, answering.LONG)
    assert not torch.equal(ours, rows.answers["none"])
    for name in ("peft_mixed", "peft_in_turn", "merged_in_turn"):
        assert torch.equal(ours, rows.answers[name]), name
    share = rows.agreement()
    assert share["none"] < 1
    assert share["peft_mixed"] == 1
    assert hooks_of(setting.backbone) == 0
    found = answering.run(setting)
    named = {"mixed_vs_none", "mixed_vs_peft", "mixed_vs_set_adapter", "mixed_vs_merged"}
    assert named <= set(found.ratios)
    assert {"mixed_vs_peft_1_rows", "mixed_vs_peft_short"} <= set(found.ratios)
    assert {"mixed_vs_peft_narrow"} <= set(found.ratios)


def test_following_answers_as_answering_does(setting: BenchSetting) -> None:
    random_update(setting.base).save(setting.parts.weights / EXAMPLES_FILE)
    found = following.run(setting)
    assert set(found.ratios) == {"following_vs_base", "following_vs_base_1_token"} <= set(MEANING)
    assert found.facts["examples_tokens"] > 0
    row = setting.parts.method("examples").adapt(setting.supports[:1])[0]
    (prompt,) = setting.prompts([row], 24)
    (wanted,) = answer_batch(setting.backbone, [row], [prompt], 24)
    chosen = following.answer(setting, row, prompt, 24)
    assert following.answer(setting, Adapted(setting.base), prompt, 24) != chosen
    ends = [chosen.index(stop) for stop in setting.backbone.stops if stop in chosen]
    text = setting.backbone.tokenizer.decode(chosen[: min(ends, default=24)])
    assert clean_answer(text) == wanted


def test_merged_weights_come_back(setting: BenchSetting) -> None:
    backbone, update = setting.backbone, random_update(setting.base)
    before = {n: p.clone() for n, p in backbone.model.named_parameters()}

    def stop() -> None:
        with merged(backbone, setting.base, update):
            now = backbone.model.named_parameters()
            assert any(not torch.equal(p, before[n]) for n, p in now)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert all(torch.equal(p, before[n]) for n, p in backbone.model.named_parameters())


@pytest.fixture
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (targets, training):
        monkeypatch.setattr(module, "compile_layers", lambda _: nullcontext())


@pytest.mark.usefixtures("_uncompiled")
def test_the_plain_loop_makes_the_same_targets(setting: BenchSetting) -> None:
    found = targets.run(setting)
    assert set(found.ratios) == {"targets_vs_plain"}
    assert min(found.facts["cosine_to_plain"]) > 0.999
    assert hooks_of(setting.backbone) == 0


@pytest.mark.usefixtures("_uncompiled")
def test_the_trainer_has_the_same_loss_curve(setting: BenchSetting) -> None:
    found = training.run(setting)
    ours, theirs = found.facts["loss"]["ours"], found.facts["loss"]["trainer"]
    assert len(ours) == training.STEPS
    assert ours[0] != pytest.approx(ours[-1], rel=1e-3)
    assert theirs == pytest.approx(ours, rel=1e-3)


def test_growth_has_a_fit_and_a_figure(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {axis: sizes[:2] for axis, sizes in growth.AXES.items()}
    monkeypatch.setattr(growth, "AXES", few)
    monkeypatch.setattr(growth, "TOKENS", 5)
    record = run_bench(parts, tmp_path, 1, "growth")
    grown = record["benches"]["growth"]["growth"]
    assert set(grown) == set(few)
    for axis, found in grown.items():
        assert found["sizes"] == list(few[axis])
        assert len(found["ms"]) == 2
    svg = (tmp_path / "growth.svg").read_text()
    assert svg.startswith("<svg")
    assert all(axis in svg for axis in few)


def test_an_unknown_group_is_refused_before_any_work(parts: Assembly, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="did you mean 'answering'"):
        run_bench(parts, tmp_path / "out", 1, "answring")
    nothing = parts_with(changed(parts.settings, "evaluation", benchmarks=[]), parts.backbone)
    with pytest.raises(RaggdError, match="no benchmark is named"):
        run_bench(nothing, tmp_path / "out", 1, None)
    assert not (tmp_path / "out").exists()
