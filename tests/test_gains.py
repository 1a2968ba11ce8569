"""Measured gains are those of the attached update; the gated predictor scales or withholds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from raggd.adaptation.predictors import gate as gate_module
from raggd.adaptation.predictors.base import MLPPredictor
from raggd.adaptation.predictors.gate import (
    Gate,
    Trial,
    fit_gate,
    load_gate,
    measure_gains,
    save_gate,
    trial_losses,
)
from raggd.adaptation.targets import encode_supports
from raggd.backbone.batch import answer_losses
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.files import save_tensors
from raggd.methods.predicted import PredictedUpdate
from raggd.records import RaggdError, SupportSet

SCALES = [0.5, 2.0]


@pytest.fixture
def predictor(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> MLPPredictor:
    """A predictor whose updates differ from set to set."""
    states = encode_supports(tiny_backbone, base, supports, 200)
    made = MLPPredictor(base.spec, base.fingerprint, states.shape[-1], 8, 4)
    vectors = torch.stack([tiny.random_update(base, seed=i).vector() for i in range(3)])
    made.fit_units(states, vectors, 0)
    torch.nn.init.normal_(made.head, std=0.5)
    return made.eval().requires_grad_(False)


def trials(supports: list[SupportSet]) -> list[Trial]:
    others = [
        supports[(i + 1) % 3].demonstrations + supports[(i + 2) % 3].demonstrations
        for i in range(len(supports))
    ]
    return [(s, SupportSet("x", probes)) for s, probes in zip(supports, others, strict=True)]


def test_losses_are_those_of_the_scaled_update(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], predictor: MLPPredictor
) -> None:
    trial = trials(supports)[0]
    states, losses = trial_losses(tiny_backbone, base, predictor, trial, SCALES, 200)
    assert losses.shape == (3, 4)
    update = predictor.predict(states[None]).row(0)
    from raggd.adaptation.targets import support_batch

    rest = trial[1:]
    for row, scale in enumerate([0.0, *SCALES]):
        with torch.no_grad(), attach(tiny_backbone, base, update * scale):
            alone = answer_losses(tiny_backbone, support_batch(tiny_backbone, rest, 200))
        torch.testing.assert_close(losses[row], alone)
    assert (losses[0] - losses[2]).abs().max() > 1e-2


def test_measuring_resumes_and_refuses_files_of_another_run(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    supports: list[SupportSet],
    predictor: MLPPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted = trials(supports)

    def measure(folder: Path, identity: str = "one") -> tuple[torch.Tensor, torch.Tensor]:
        return measure_gains(tiny_backbone, base, predictor, wanted, SCALES, 200, folder, identity)

    whole = measure(tmp_path / "whole")
    assert whole[1].shape == (3, 3, 4)
    assert not torch.equal(whole[1][0], whole[1][1])
    measure(tmp_path / "cut")
    (tmp_path / "cut" / "trial-00002.safetensors").unlink()
    resumed = measure(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(whole, resumed, strict=True))

    def fail(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(gate_module, "trial_losses", fail)
    assert torch.equal(measure(tmp_path / "whole")[1], whole[1])
    with pytest.raises(RaggdError, match="belongs to another run"):
        measure(tmp_path / "whole", "other")
    wanted.reverse()
    with pytest.raises(RaggdError, match="belongs to another run"):
        measure(tmp_path / "whole")


def constant_gate(states: torch.Tensor, gain: list[list[float]]) -> Gate:
    return fit_gate(states, torch.tensor(gain), torch.tensor(SCALES), caution=0.0)


def test_a_gated_prediction_is_the_prediction_at_the_chosen_scale(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], predictor: MLPPredictor
) -> None:
    states = encode_supports(tiny_backbone, base, supports, 200)
    plain = predictor.predict(states)
    twice = constant_gate(states, [[0.1, 0.5]] * 3).scaled(plain, states)
    torch.testing.assert_close(twice.vector(), 2 * plain.vector())
    never = constant_gate(states, [[-0.1, -0.5]] * 3).scaled(plain, states)
    assert plain.vector().abs().max() > 0.1
    assert not never.vector().any()
    method = PredictedUpdate("rag-gd-gated", tiny_backbone, base, predictor, 200, "w")
    gated = replace(method, gate=constant_gate(states, [[0.1, 0.5]] * 3))
    torch.testing.assert_close(gated.predict(supports).vector(), twice.vector())


def test_a_stored_gate_chooses_the_same_and_belongs_to_its_predictor(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(40, 3, 8, generator=generator)
    gate = replace(fit_gate(states, states[:, 0, :2], torch.tensor(SCALES)), caution=0.25)
    save_gate(tmp_path / "gate.safetensors", gate, "abc")
    again = load_gate(tmp_path / "gate.safetensors", "abc")
    assert again.caution == 0.25
    assert set(gate.choose(states).tolist()) == {0.0, *SCALES}
    assert torch.equal(again.choose(states), gate.choose(states))
    with pytest.raises(RaggdError, match=r"predictor abc.*in use is other.*raggd train gate"):
        load_gate(tmp_path / "gate.safetensors", "other")
    save_tensors(tmp_path / "x.safetensors", {"center": states}, {"kind": "raggd gate"})
    with pytest.raises(RaggdError, match="is not a raggd gate"):
        load_gate(tmp_path / "x.safetensors", "abc")
