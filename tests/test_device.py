"""One device for everything: on the meta device nothing can be read back, so nothing may cross."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from raggd.adaptation.base_adapter import load_base, save_base
from raggd.adaptation.optimizer import Trainer
from raggd.adaptation.predictors.base import MLPPredictor, load_predictor, save_predictor
from raggd.backbone import device, load
from raggd.backbone.batch import last_positions, make_batch
from raggd.backbone.device import choose_device, choose_dtype
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, stack_updates
from raggd.data.prompts import Prompt
from raggd.evaluation.price import shape_config
from raggd.methods.answering import shared_update
from raggd.methods.base import Adapted
from raggd.methods.predicted import PredictedUpdate
from raggd.records import RaggdError, SupportSet
from raggd.settings import BackboneSettings, HyperTuningSettings
from tiny import make_backbone, random_base, random_update

META = torch.device("meta")
CPU = torch.device("cpu")


class Crossings(TorchDispatchMode):
    """Counts numbers (not token ids) that are copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = [a for a in args if isinstance(a, Tensor) and a.is_floating_point()]
        if isinstance(result, Tensor) and sources and func._opname in {"_to_copy", "copy_"}:
            self.count += any(s.device != result.device for s in sources)
        return result


def made(tmp_path: Path) -> tuple[Backbone, BaseAdapter, MLPPredictor]:
    """A backbone on the meta device, and files of its weights as a run loads them."""
    backbone = make_backbone()
    backbone.model.set_attn_implementation("eager")  # the fused one asks whether a mask is full
    base = random_base(backbone)
    save_base(tmp_path / "base.safetensors", base)
    predictor = MLPPredictor(base.spec, base.fingerprint, base.spec.d_in, 8, 4)
    save_predictor(tmp_path / "predictor.safetensors", predictor)
    backbone.model.to(META)
    return backbone, base, predictor


def job(
    backbone: Backbone, base: BaseAdapter, predictor: Any, supports: list[SupportSet]
) -> Callable[[], None]:
    """Adapt to two support sets, attach both updates to a batch and read it."""

    def work() -> None:
        method = PredictedUpdate("rag-gd", backbone, base, predictor, 160, "w")
        updates = method.predict(supports)
        rows = [Adapted(base, updates.row(i)) for i in range(2)]
        batch = make_batch([Prompt((8, 9, 10), 0, 0)] * 2, backbone)
        with attach(backbone, base, shared_update(rows)), torch.no_grad():
            backbone.model(
                batch.tokens,
                attention_mask=batch.mask,
                position_ids=batch.positions,
                logits_to_keep=last_positions(batch.tokens, 1),
            )

    return work


def test_nothing_crosses_between_devices(tmp_path: Path, supports: list[SupportSet]) -> None:
    backbone, _, _ = made(tmp_path)
    base = load_base(tmp_path / "base.safetensors").to(backbone.device)
    predictor = load_predictor(tmp_path / "predictor.safetensors", backbone.device)
    with Crossings() as crossings:
        job(backbone, base, predictor, supports[:2])()
    assert crossings.count == 0
    assert {t.device for f in base.factors.values() for t in f} == {META}
    # what was left on the processor is found: a base by counting, a predictor by torch's refusal
    away = load_base(tmp_path / "base.safetensors")
    with Crossings() as crossings:
        job(backbone, away, predictor, supports[:2])()
    assert crossings.count > 0
    elsewhere = load_predictor(tmp_path / "predictor.safetensors")
    with pytest.raises(RuntimeError):
        job(backbone, base, elsewhere, supports[:2])()


def test_a_moved_base_keeps_its_name() -> None:
    base = random_base(make_backbone())
    assert base.to(CPU) is base
    moved = base.to(META)
    assert moved.device == META
    assert moved.fingerprint == base.fingerprint  # taken before: on meta it could not be
    assert stack_updates([random_update(base).to(META)] * 2).factors["q"].a.device == META


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu"), (True, False, "cuda")],
)
def test_auto_takes_the_best_device(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == expected


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(RaggdError, match="no driver"):
        choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RaggdError, match="built without"):
        choose_device("cuda:0")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RaggdError, match="no GPU of Apple"):
        choose_device("mps")


def test_a_card_without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(RaggdError, match="Tesla T4 does not compute in it"):
        choose_dtype(BackboneSettings(dtype="bfloat16"), card)
    assert choose_dtype(BackboneSettings(), card) == torch.float16
    assert choose_dtype(BackboneSettings(dtype="nf4"), card) == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_dtype(BackboneSettings(), card) == torch.bfloat16


def test_a_backbone_that_does_not_fit_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = device.weight_bytes(shape_config("qwen2.5-7b"))
    assert needed["bfloat16"] == pytest.approx(15.23e9, rel=0.01)
    assert needed["nf4"] == pytest.approx(5.85e9, rel=0.03)
    device.refuse_if_short("big", needed, "bfloat16", 24e9)
    with pytest.raises(RaggdError, match=r"16\.7 GB .* in bfloat16, 12\.0 GB are free.*'nf4'"):
        device.refuse_if_short("big", needed, "bfloat16", 12e9)
    with pytest.raises(RaggdError, match="smaller backbone"):
        device.refuse_if_short("big", needed, "nf4", 6e9)
    device.refuse_if_short("big", needed, "nf4", 12e9)
    tied = device.weight_bytes(shape_config("qwen2.5-0.5b"))
    assert tied["bfloat16"] == pytest.approx(0.988e9, rel=0.01)
    # loading asks, and makes nothing when the answer is no
    monkeypatch.setattr(load, "choose_device", lambda _: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1e9, 8e9))
    monkeypatch.setattr(load, "_from_pretrained", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RaggdError, match="graphics memory"):
        load.load_backbone(BackboneSettings(name="smollm2-135m-instruct"))


def test_memory_that_runs_out_keeps_the_checkpoint(tmp_path: Path) -> None:
    settings = HyperTuningSettings(steps=4)
    weight = torch.zeros(3, requires_grad=True)

    def differentiate(step: int) -> float:
        if step == 2 and short.now:
            raise torch.OutOfMemoryError("CUDA out of memory")
        loss = (weight - 1).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    short = SimpleNamespace(now=True)
    trainer = Trainer({"w": weight}, settings, identity="x")
    with pytest.raises(RaggdError, match=r"step 2 of 4.*hyper_tuning\.batch"):
        trainer.run(differentiate, tmp_path / "c", lambda *_: None)
    kept = (tmp_path / "c").read_bytes()
    torn = Trainer({"w": weight}, settings, identity="x")
    torn._adam.step = lambda *_: differentiate(2)  # type: ignore[assignment]  # in the midst of it
    with pytest.raises(RaggdError, match="whole"):
        torn.run(lambda _: 1.0, tmp_path / "c", lambda *_: None)
    assert (tmp_path / "c").read_bytes() == kept
    short.now = False
    again = Trainer({"w": weight}, settings, identity="x")
    again.run(differentiate, tmp_path / "c", lambda *_: None)
    assert again.step == 4
    assert len(again.history) == 4
