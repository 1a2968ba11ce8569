"""Predictors, their files, and their training on stored targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from raggd.adaptation import optimizer
from raggd.adaptation.optimizer import Session
from raggd.adaptation.predictors.base import (
    MeanPredictor,
    MLPPredictor,
    check_predictor,
    load_predictor,
    mean_predictor,
    save_predictor,
    spread,
    unit_scales,
)
from raggd.adaptation.targets import Targets, denoised, encode_supports
from raggd.adaptation.training import train_predictor
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    AdapterSpec,
    BaseAdapter,
    Update,
    factors_of,
    total_cosine,
    update_from_vector,
)
from raggd.files import load_tensors, save_tensors
from raggd.methods.predicted import PredictedUpdate
from raggd.records import RaggdError, SupportSet
from raggd.settings import PredictorSettings, TrainingSettings

SPEC = AdapterSpec(layers=2, d_in=4, d_out=(4, 2, 2), rank=2, alpha=4.0)
WIDTH = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(
    seed: int = 0, count: int = 6, base: str = "base"
) -> tuple[MLPPredictor, Tensor, Tensor]:
    """An untrained predictor with its training states and targets."""
    states, vectors = normal(count, 3, WIDTH, seed=1), 1e-3 * normal(count, SPEC.size, seed=2)
    predictor = MLPPredictor(SPEC, base, WIDTH, hidden=8, latent=4)
    predictor.fit_units(states, vectors, seed)
    return predictor, states, vectors


def trained() -> tuple[MLPPredictor, Tensor]:
    """A predictor whose head is not zero, as after training."""
    predictor, states, _ = fitted()
    with torch.no_grad():
        predictor.head.copy_(0.5 * normal(SPEC.size, 4, seed=7))
    return predictor, states


def test_the_mean_is_the_same_for_everyone() -> None:
    vectors = normal(5, SPEC.size)
    mean = mean_predictor(SPEC, "base", vectors.bfloat16())
    update = mean.predict(normal(3, 2, WIDTH))
    assert (update.rows, update.base) == (3, "base")
    torch.testing.assert_close(update.vector()[0], vectors.bfloat16().float().mean(0))
    assert torch.equal(update.vector()[0], update.vector()[2])
    assert torch.equal(update.row(1).vector(), mean.predict(torch.zeros(1, 1, 1)).row(0).vector())


def test_an_untrained_predictor_is_the_mean_update() -> None:
    predictor, states, vectors = fitted()
    got = predictor.predict(normal(4, 3, WIDTH, seed=9)).vector()
    assert vectors.std() > 1e-4
    wanted = mean_predictor(SPEC, "base", vectors).predict(states[:4]).vector()
    torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-5)


def test_a_trained_predictor_depends_on_the_mean_state_alone() -> None:
    predictor, states = trained()
    got = predictor.predict(states).vector()
    assert not torch.allclose(got[0], got[1], atol=1e-5)
    torch.testing.assert_close(predictor.predict(states.flip(1)).vector(), got)
    pooled = predictor.predict(states.mean(1, keepdim=True)).vector()
    torch.testing.assert_close(pooled, got)
    torch.testing.assert_close(predictor.predict(states[2:3]).vector()[0], got[2])
    assert predictor.forward(states).vector().requires_grad
    assert not got.requires_grad


def test_the_network_is_standardise_enter_gelu_leave_head() -> None:
    predictor, states = trained()
    pooled = states.mean(1)
    units = (pooled - pooled.mean(0)) / pooled.std(0, correction=0)
    hidden = units @ predictor.enter.weight.mT + predictor.enter.bias
    code = torch.nn.functional.gelu(hidden) @ predictor.leave.weight.mT + predictor.leave.bias
    rows = (code @ predictor.head.mT + predictor.bias) * spread(SPEC, predictor.scales)
    torch.testing.assert_close(predictor.predict(states).vector(), rows.detach())
    assert predictor.code(states).shape == (6, 4)


def test_units_are_the_root_mean_square_by_tensor_and_layer() -> None:
    vectors = normal(7, SPEC.size)
    scales = unit_scales(SPEC, vectors)
    assert scales.shape == (6, SPEC.layers)
    factors = update_from_vector(SPEC, vectors, "").factors
    wanted = factors["k"].b[:, 1].square().mean().sqrt()
    torch.testing.assert_close(scales[3, 1], wanted)
    wide = update_from_vector(SPEC, spread(SPEC, scales), "").factors["k"].b
    assert (wide[1] == scales[3, 1]).all()
    assert (wide[0] == scales[3, 0]).all()
    assert float(unit_scales(SPEC, torch.zeros(2, SPEC.size)).min()) > 0


def test_the_seed_decides_the_first_weights() -> None:
    one, two, other = fitted(0)[0], fitted(0)[0], fitted(1)[0]
    assert torch.equal(one.enter.weight, two.enter.weight)
    assert not torch.equal(one.enter.weight, other.enter.weight)


def test_predictors_survive_their_files(tmp_path: Path) -> None:
    """Large parts are stored in half precision: 11 bits in the MLP, 8 in the mean."""
    predictor, states = trained()
    mean = mean_predictor(SPEC, "base", 1e-7 * normal(3, SPEC.size))  # real updates are small
    for name, own, close in (("mlp", predictor, 2**-10), ("mean", mean, 2**-8)):
        path = tmp_path / f"{name}.safetensors"
        save_predictor(path, own)
        loaded = load_predictor(path)
        assert type(loaded) is type(own)
        assert (loaded.spec, loaded.base) == (SPEC, "base")
        before, after = own.predict(states).vector(), loaded.predict(states).vector()
        assert before.norm() > 0
        assert (after - before).norm() < close * before.norm()
    loaded_mlp = load_predictor(tmp_path / "mlp.safetensors")
    assert isinstance(loaded_mlp, MLPPredictor)
    assert not any(p.requires_grad for p in loaded_mlp.parameters())
    assert load_tensors(tmp_path / "mlp.safetensors")[0]["head"].dtype == torch.float16


def test_damaged_or_foreign_predictor_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "predictor.safetensors"
    predictor, _ = trained()
    save_predictor(path, predictor)
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, {**metadata, "shape": "[5, 9, 4]"})
    with pytest.raises(RaggdError, match="do not fit its header"):
        load_predictor(path)
    del tensors["head"]
    save_tensors(path, tensors, metadata)
    with pytest.raises(RaggdError, match="do not fit its header"):
        load_predictor(path)
    save_tensors(path, tensors, {"kind": "raggd base adapter"})
    with pytest.raises(RaggdError, match="not a raggd predictor"):
        load_predictor(path)
    mean = mean_predictor(SPEC, "base", normal(2, SPEC.size))
    for wrong in ({"vector": mean.vector[:-1]}, {"other": mean.vector}):
        save_predictor(path, mean)
        save_tensors(path, wrong, load_tensors(path)[1])
        with pytest.raises(RaggdError, match="do not fit its header"):
            load_predictor(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RaggdError, match="truncated or damaged"):
        load_predictor(path)


def test_a_predictor_of_another_base_is_refused_and_both_are_named(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    foreign = MeanPredictor(base.spec, "0123456789abcdef", torch.zeros(base.spec.size))
    names = f"0123456789abcdef.*{base.fingerprint}"
    with pytest.raises(RaggdError, match=names):
        check_predictor(foreign, base)
    with pytest.raises(RaggdError, match=names):
        PredictedUpdate("rag-gd", tiny_backbone, base, foreign, 200, "w")
    check_predictor(replace(foreign, base=base.fingerprint), base)


def test_predicting_encodes_the_supports_under_the_base(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    predictor = MLPPredictor(base.spec, base.fingerprint, 32, hidden=8, latent=4)
    states = encode_supports(tiny_backbone, base, supports, 200)
    predictor.fit_units(states, 1e-2 * normal(3, base.spec.size), 0)
    with torch.no_grad():
        predictor.head.copy_(normal(base.spec.size, 4, seed=3))
    method = PredictedUpdate("rag-gd", tiny_backbone, base, predictor, 200, "w")
    got = method.predict(supports)
    assert (got.rows, got.base) == (3, base.fingerprint)
    assert not torch.allclose(got.vector()[0], got.vector()[1])
    torch.testing.assert_close(got.vector(), predictor.predict(states).vector())
    for i, support in enumerate(supports):
        alone = method.predict([support]).vector()[0]
        torch.testing.assert_close(got.vector()[i], alone, atol=1e-5, rtol=1e-4)
    mean = mean_predictor(base.spec, base.fingerprint, got.vector())
    assert replace(method, predictor=mean).predict(supports).rows == 3


# ---- training on stored targets

FIT = PredictorSettings(latent=8, steps=60, batch=4, learning_rate=5e-3)


def learnable(base: BaseAdapter, count: int = 12) -> Targets:
    """Targets that a predictor can find: the state says which of two directions it is."""
    directions = 1e-3 * normal(2, base.spec.size, seed=4)
    sides = [i % 2 for i in range(count)]
    states = normal(count, 2, WIDTH, seed=5) * 0.1
    states[:, :, 0] += torch.tensor(sides)[:, None] * 2.0
    noise = 2e-4 * normal(count, base.spec.size, seed=6)
    return Targets(
        vectors=(directions[sides] + noise).bfloat16(),
        states=states,
        tasks=tuple("ab"[s] for s in sides),
        support_ids=tuple(f"s{i}" for i in range(count)),
        demonstration_ids=tuple((f"q{i}",) for i in range(count)),
        base=base.fingerprint,
        identity="store",
    )


@pytest.fixture(scope="module")
def small_base() -> BaseAdapter:
    tensors = tiny.random_tensors(SPEC, 3, 0.3)
    return BaseAdapter(SPEC, factors_of(tensors), "backbone")


def cosine_to(base: BaseAdapter, update: Update, vectors: Tensor) -> Tensor:
    wanted = update_from_vector(base.spec, vectors.float(), base.fingerprint)
    return total_cosine(base, update, wanted)


@pytest.mark.parametrize("space", ["product", "factor"])
def test_training_finds_what_the_states_tell(
    small_base: BaseAdapter, tmp_path: Path, space: str
) -> None:
    targets = learnable(small_base)
    settings = FIT.model_copy(update={"space": space})
    predictor, history = train_predictor(small_base, targets, Session(settings, tmp_path / "c"))
    assert len(history) == settings.steps
    assert sum(history[-5:]) < 0.5 * sum(history[:5])
    mean = mean_predictor(SPEC, small_base.fingerprint, targets.vectors)
    by_mean = cosine_to(small_base, mean.predict(targets.states), targets.vectors).mean()
    by_predictor = cosine_to(small_base, predictor.predict(targets.states), targets.vectors).mean()
    assert by_predictor > by_mean + 0.1


def states_equal(left: MLPPredictor, right: MLPPredictor) -> bool:
    other = right.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in left.state_dict().items())


def test_denoised_training_is_training_on_the_denoised_view(
    small_base: BaseAdapter, tmp_path: Path
) -> None:
    settings = FIT.model_copy(update={"steps": 3})
    clean = settings.model_copy(update={"denoise": True})
    targets = learnable(small_base)
    aimed, _ = train_predictor(small_base, targets, Session(clean, tmp_path / "a"))
    view, _ = train_predictor(small_base, denoised(targets), Session(settings, tmp_path / "b"))
    own, _ = train_predictor(small_base, targets, Session(settings, tmp_path / "c"))
    assert not states_equal(aimed, own)
    assert states_equal(aimed, view)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("stop", [1, 7])
def test_predictor_training_that_was_stopped_continues_bitwise(
    small_base: BaseAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    settings = FIT.model_copy(update={"steps": 12})
    targets = learnable(small_base)
    whole, history = train_predictor(small_base, targets, Session(settings, tmp_path / "w"))
    monkeypatch.setattr(optimizer, "CHECKPOINT_SECONDS", -1.0)

    def progress(_: str, step: int, __: int | None) -> None:
        if step == stop:
            raise _StopError

    with pytest.raises(_StopError):
        train_predictor(small_base, targets, Session(settings, tmp_path / "c", progress=progress))
    resumed, again = train_predictor(small_base, targets, Session(settings, tmp_path / "c"))
    assert again == history
    assert states_equal(resumed, whole)
    other = TrainingSettings(seed=1)
    elsewhere, _ = train_predictor(small_base, targets, Session(settings, tmp_path / "e", other))
    assert not states_equal(elsewhere, whole)


def test_a_checkpoint_of_another_predictor_run_is_refused(
    small_base: BaseAdapter, tmp_path: Path
) -> None:
    settings = FIT.model_copy(update={"steps": 1})
    targets = learnable(small_base)
    train_predictor(small_base, targets, Session(settings, tmp_path / "c"))
    changed: Sequence[tuple[Targets, PredictorSettings]] = [
        (targets, settings.model_copy(update={"learning_rate": 0.5})),
        (targets.take(range(10)), settings),
        (replace(targets, identity="another store"), settings),
    ]
    for data, configured in changed:
        with pytest.raises(RaggdError, match="belongs to another run"):
            train_predictor(small_base, data, Session(configured, tmp_path / "c"))


def test_targets_of_another_base_or_too_few_are_refused(
    small_base: BaseAdapter, tmp_path: Path
) -> None:
    targets = learnable(small_base)
    foreign = replace(targets, base="0123456789abcdef")
    with pytest.raises(RaggdError, match=f"0123456789abcdef.*{small_base.fingerprint}"):
        train_predictor(small_base, foreign, Session(FIT, tmp_path / "c"))
    with pytest.raises(RaggdError, match="at least two targets"):
        train_predictor(small_base, targets.take([0]), Session(FIT, tmp_path / "c"))
    assert not (tmp_path / "c").exists()
