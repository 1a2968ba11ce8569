"""Base training: what it learns, when it stops, and that it resumes bitwise."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from raggd.adaptation import optimizer
from raggd.adaptation.base_adapter import fresh_base, load_base, save_base, train_base
from raggd.adaptation.optimizer import Session
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, tensors_of
from raggd.data.prompts import Prompt
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError
from raggd.settings import BaseTrainingSettings, TrainingSettings

TRAINING = BaseTrainingSettings(steps=6, batch=2, learning_rate=0.02)
COMMON = TrainingSettings(accumulate=2)


def _train(
    backbone: Backbone,
    examples: list[Prompt],
    checkpoint: Path,
    settings: BaseTrainingSettings = TRAINING,
    common: TrainingSettings = COMMON,
    stop: int = 0,
) -> tuple[BaseAdapter, list[float]]:
    def progress(label: str, step: int, steps: int | None) -> None:
        assert steps == settings.steps
        name, loss = label.split(", loss ")
        assert name == checkpoint.name
        assert math.isfinite(float(loss))
        if step == stop:
            raise KeyboardInterrupt

    spec = tiny.spec_of(backbone)
    return train_base(backbone, spec, examples, Session(settings, checkpoint, common, progress))


def test_a_fresh_base_changes_nothing_and_depends_on_the_seed(tiny_backbone: Backbone) -> None:
    spec = tiny.spec_of(tiny_backbone)
    base = fresh_base(spec, tiny_backbone.fingerprint, 0)
    assert all(not f.b.any() for f in base.factors.values())
    assert all(0 < f.a.abs().max() <= 32**-0.5 for f in base.factors.values())
    assert fresh_base(spec, tiny_backbone.fingerprint, 0).fingerprint == base.fingerprint
    assert fresh_base(spec, tiny_backbone.fingerprint, 1).fingerprint != base.fingerprint


def test_training_lowers_the_loss_and_leaves_the_backbone_alone(
    tiny_backbone: Backbone, examples: list[Prompt], tmp_path: Path
) -> None:
    before = {n: p.clone() for n, p in tiny_backbone.model.named_parameters()}
    settings = TRAINING.model_copy(update={"steps": 15})
    base, history = _train(tiny_backbone, examples, tmp_path / "c", settings)
    assert len(history) == 15
    batch = make_batch(examples, tiny_backbone)
    with torch.no_grad():
        bare = answer_losses(tiny_backbone, batch).mean()
        with attach(tiny_backbone, base):
            trained = answer_losses(tiny_backbone, batch).mean()
    assert float(trained) < float(bare) - 0.5
    for name, parameter in tiny_backbone.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None
    for name, tensor in tensors_of(base.factors).items():
        assert not tensor.requires_grad
        assert (tensor.abs().amax((-2, -1)) > 0).all(), f"a layer of {name} was not trained"


@pytest.mark.parametrize("stop", [1, 4])
def test_training_that_was_stopped_continues_bitwise(
    tiny_backbone: Backbone,
    examples: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    whole, history = _train(tiny_backbone, examples, tmp_path / "whole")
    monkeypatch.setattr(optimizer, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        _train(tiny_backbone, examples, tmp_path / "c", stop=stop)
    assert (tmp_path / "c").exists() == (stop > 1)  # written after the step before
    if stop > 1:
        assert load_tensors(tmp_path / "c")[1]["step"] == str(stop - 1)
    resumed, again = _train(tiny_backbone, examples, tmp_path / "c")
    assert again == history
    assert resumed.fingerprint == whole.fingerprint
    for name, tensor in tensors_of(whole.factors).items():
        assert torch.equal(tensors_of(resumed.factors)[name], tensor)
    finished, _ = _train(tiny_backbone, examples, tmp_path / "c")  # nothing is left to do
    assert finished.fingerprint == whole.fingerprint
    other = COMMON.model_copy(update={"seed": 1})
    elsewhere, _ = _train(tiny_backbone, examples, tmp_path / "d", common=other)
    assert elsewhere.fingerprint != whole.fingerprint


def test_a_checkpoint_of_other_settings_data_or_weights_is_refused(
    tiny_backbone: Backbone, examples: list[Prompt], tmp_path: Path
) -> None:
    settings = TRAINING.model_copy(update={"steps": 1})
    _train(tiny_backbone, examples, tmp_path / "c", settings)
    changed = settings.model_copy(update={"learning_rate": 0.01})
    for other in (TrainingSettings(seed=1, accumulate=2), TrainingSettings()):
        with pytest.raises(RaggdError, match="belongs to another run"):
            _train(tiny_backbone, examples, tmp_path / "c", settings, other)
    with pytest.raises(RaggdError, match="belongs to another run"):
        _train(tiny_backbone, examples, tmp_path / "c", changed)
    with pytest.raises(RaggdError, match="belongs to another run"):
        _train(tiny_backbone, examples[::-1], tmp_path / "c", settings)
    with pytest.raises(RaggdError, match="belongs to another run"):
        _train(tiny.make_backbone(seed=1), examples, tmp_path / "c", settings)


def test_accumulated_batches_are_one_larger_batch(
    tiny_backbone: Backbone, examples: list[Prompt], tmp_path: Path
) -> None:
    """All six examples in one step, as one batch of 6 or as 3 of 2."""
    whole = TRAINING.model_copy(update={"steps": 1, "batch": 6})
    parts = whole.model_copy(update={"batch": 2})
    once, thrice = TrainingSettings(), TrainingSettings(accumulate=3)
    one, loss_of_one = _train(tiny_backbone, examples, tmp_path / "a", whole, once)
    three, loss_of_three = _train(tiny_backbone, examples, tmp_path / "b", parts, thrice)
    two, _ = _train(tiny_backbone, examples, tmp_path / "c", parts)
    assert loss_of_three == pytest.approx(loss_of_one, rel=1e-5)  # the mean, not the sum

    def step(base: BaseAdapter) -> Tensor:
        return torch.cat([f.b.flatten() for f in base.factors.values()])

    torch.testing.assert_close(step(one), step(three), atol=1e-4, rtol=1e-3)
    assert not torch.allclose(step(one), step(two), atol=1e-3)


def test_training_stops_where_a_layer_gets_no_gradient(
    examples: list[Prompt], tmp_path: Path
) -> None:
    backbone = tiny.make_backbone()
    attention = backbone.model.model.layers[1].self_attn
    attention.register_forward_hook(lambda _, __, out: (out[0] * 0, *out[1:]))
    with pytest.raises(RaggdError, match=r"no gradient reaches the adapter in layers \[1\]"):
        _train(backbone, examples, tmp_path / "c")
    assert not (tmp_path / "c").exists()
    assert tiny.hooks_of(backbone) == 0


def test_no_examples_are_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no training examples"):
        _train(tiny_backbone, [], tmp_path / "c")


def test_a_base_adapter_survives_its_file(base: BaseAdapter, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_base(path, base)
    loaded = load_base(path)
    assert (loaded.spec, loaded.backbone) == (base.spec, base.backbone)
    assert loaded.fingerprint == base.fingerprint
    for name, tensor in tensors_of(base.factors).items():
        assert torch.equal(tensors_of(loaded.factors)[name], tensor)


def test_a_changed_or_foreign_base_file_is_refused(base: BaseAdapter, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    save_base(path, base)
    tensors, metadata = load_tensors(path)
    tensors["k.a"][0, 0, 0] += 1e-3
    save_tensors(path, tensors, metadata)
    with pytest.raises(RaggdError, match=f"the header says {base.fingerprint}"):
        load_base(path)
    save_tensors(path, tensors, {"kind": "something else"})
    with pytest.raises(RaggdError, match="not a raggd base adapter"):
        load_base(path)
    del tensors["v.b"]
    save_tensors(path, tensors, metadata)
    with pytest.raises(RaggdError, match=r"'v\.b' is missing"):
        load_base(path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RaggdError, match="truncated or damaged"):
        load_base(path)
