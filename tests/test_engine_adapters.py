"""Names become PEFT folders: once, for the right weights, and only raggd's names."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.export import lora_factors, peft_tensors
from raggd.adaptation.predictors.base import mean_predictor, save_predictor
from raggd.api import Rag
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.files import load_tensors
from raggd.methods.store import Store
from raggd.records import RaggdError, SupportSet
from raggd.serving.vllm import adapter_folder, adapter_number, rag_of_environment, register
from raggd.settings import Settings, changed
from tiny import random_update
from workflow_fixtures import parts_with


@pytest.fixture
def rag(tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path) -> Rag:
    """A tiny backbone with stored weights."""
    save_base(tmp_path / "weights" / "base.safetensors", base)
    vectors = random_update(base).vector()[None]
    predictor = mean_predictor(base.spec, base.fingerprint, vectors)
    save_predictor(tmp_path / "weights" / "predictor.safetensors", predictor)
    settings = changed(Settings(), "adapter", weights=str(tmp_path / "weights"))
    settings = changed(settings, "serving", supports=str(tmp_path / "supports"))
    return Rag(parts_with(settings, tiny_backbone))


@pytest.fixture
def folder(
    rag: Rag, supports: list[SupportSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """The folder of a name, of three stored support sets."""
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path))
    for support in supports:
        rag.store.add(support)
    return partial(adapter_folder, rag)


def test_a_name_gives_the_predicted_adapter_once(
    rag: Rag,
    folder: Callable[[str], Path],
    supports: list[SupportSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = folder(f"raggd/{supports[0].id}")
    found, _ = load_tensors(path / "adapter_model.safetensors")
    update = rag.adapt(supports[0]).update
    wanted = peft_tensors(rag.parts.backbone, lora_factors(rag.parts.base, update))
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)
    base, _ = load_tensors(folder("raggd/base") / "adapter_model.safetensors")
    assert any(base[name].shape != found[name].shape for name in wanted)

    def never(*_: object) -> None:
        raise AssertionError("written again")

    monkeypatch.setattr(rag, "export_peft", never)
    assert folder(f"raggd/{supports[0].id}") == path
    with pytest.raises(AssertionError, match="written again"):
        folder(f"raggd/{supports[1].id}")


@pytest.mark.parametrize("file", ["predictor.safetensors", "tuned.safetensors"])
def test_other_weights_make_another_adapter(
    rag: Rag, folder: Callable[[str], Path], supports: list[SupportSet], file: str, tmp_path: Path
) -> None:
    name = f"raggd/{supports[0].id}"
    first = folder(name)
    base = rag.parts.base
    other = mean_predictor(base.spec, base.fingerprint, random_update(base, seed=9).vector()[None])
    save_predictor(rag.parts.weights / file, other)
    again = Rag(parts_with(rag.parts.settings, rag.parts.backbone))
    second = adapter_folder(again, name)
    assert second != first
    written = [load_tensors(p / "adapter_model.safetensors")[0] for p in (first, second)]
    assert any(not written[0][name].equal(written[1][name]) for name in written[0])


def test_the_tuned_predictor_is_enough(
    rag: Rag, folder: Callable[[str], Path], supports: list[SupportSet]
) -> None:
    weights = rag.parts.weights
    (weights / "predictor.safetensors").rename(weights / "tuned.safetensors")
    assert folder(f"raggd/{supports[0].id}").is_dir()


def test_another_precision_makes_another_adapter(
    rag: Rag, tiny_backbone: Backbone, supports: list[SupportSet], folder: Callable[[str], Path]
) -> None:
    found = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        tiny_backbone.model.to(dtype)
        rounded = Rag(parts_with(rag.parts.settings, tiny_backbone))
        found.add(adapter_folder(rounded, f"raggd/{supports[0].id}"))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt", "not a model of raggd"),
        ("raggd/../../etc", "not the id of a support set"),
        ("raggd/0123456789abcdef", "no support set '0123456789abcdef'"),
    ],
)
def test_other_names_are_refused(folder: Callable[[str], Path], name: str, message: str) -> None:
    with pytest.raises(RaggdError, match=message):
        folder(name)


def test_settings_and_supports_come_from_the_environment(
    tmp_path: Path, supports: list[SupportSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path).add(supports[0])
    monkeypatch.setenv("RAGGD_SETTINGS", str(tmp_path / "absent.toml"))
    with pytest.raises(RaggdError, match=r"cannot read settings file .*absent\.toml"):
        rag_of_environment()
    monkeypatch.delenv("RAGGD_SETTINGS")
    monkeypatch.setenv("RAGGD_SUPPORTS", str(tmp_path / "none"))
    with pytest.raises(RaggdError, match="no support set"):
        adapter_folder(rag_of_environment(), f"raggd/{supports[0].id}")


def _fake_vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The three names that the plugin takes from vLLM; the real one is in tests/engine."""
    registered: dict[str, Any] = {}
    contents: dict[str, dict[str, Any]] = {
        "vllm": {},
        "vllm.logger": {"init_logger": __import__("logging").getLogger},
        "vllm.lora": {},
        "vllm.lora.request": {"LoRARequest": lambda *fields: fields},
        "vllm.lora.resolver": {
            "LoRAResolver": object,
            "LoRAResolverRegistry": type(
                "Registry", (), {"register_resolver": staticmethod(registered.__setitem__)}
            ),
        },
    }
    for name, values in contents.items():
        module = ModuleType(name)
        module.__dict__.update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return registered


def test_the_resolver_knows_its_names_and_leaves_others(
    rag: Rag,
    folder: Callable[[str], Path],
    supports: list[SupportSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered = _fake_vllm(monkeypatch)
    register()
    resolver = registered["raggd"]
    resolver.rag = rag
    name = f"raggd/{supports[0].id}"
    path = str(folder(name))
    assert asyncio.run(resolver.resolve_lora("any", name)) == (name, adapter_number(path), path)
    for unknown in ("someone/else", "raggd/0123456789abcdef"):
        assert asyncio.run(resolver.resolve_lora("any", unknown)) is None
    assert 1 <= adapter_number(path) < 2**31
    assert adapter_number(path) != adapter_number(path + "x")


def _loaded_by_vllm(path: Path, cache: dict[str, torch.Tensor]) -> float:
    """What vLLM does with a folder: it folds alpha / r into B, in place, in what it has read."""
    config = json.loads((path / "adapter_config.json").read_text())
    tensors = cache or load_tensors(path / "adapter_model.safetensors")[0]
    cache.update(tensors)
    scaling = config["lora_alpha"] / config["r"]
    for name, tensor in cache.items():
        if "lora_B" in name:
            tensor.mul_(scaling)
    return float(sum(t.abs().sum() for name, t in cache.items() if "lora_B" in name))


def test_a_reload_after_eviction_does_not_scale_twice(
    rag: Rag,
    folder: Callable[[str], Path],
    supports: list[SupportSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registered = _fake_vllm(monkeypatch)
    register()
    resolver = registered["raggd"]
    resolver.rag = rag
    name = f"raggd/{supports[0].id}"
    first = asyncio.run(resolver.resolve_lora("any", name))
    made = Path(first[2])
    before = {p.name: p.read_bytes() for p in made.iterdir()}
    kept: dict[str, torch.Tensor] = {}
    once = _loaded_by_vllm(made, kept)
    # evicted and asked for again: the same request, the same bytes; and where an engine folds
    # into tensors that it kept, a scale of 1 leaves them as they are
    assert asyncio.run(resolver.resolve_lora("any", name)) == first
    assert {p.name: p.read_bytes() for p in made.iterdir()} == before
    assert _loaded_by_vllm(made, {}) == once
    assert _loaded_by_vllm(made, kept) == once
    config = json.loads(before["adapter_config.json"])
    wrong = config | {"lora_alpha": 2 * config["r"]}
    (made / "adapter_config.json").write_text(json.dumps(wrong))
    assert _loaded_by_vllm(made, kept) == pytest.approx(2 * once)  # what must not happen
