"""`raggd bench`: shapes without weights, and the prices it finds; no real time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from raggd.backbone.generate import decode, read_prompts
from raggd.backbone.interface import attach
from raggd.cli import app
from raggd.evaluation.price import (
    SHAPES,
    Lengths,
    NoText,
    measure_price,
    random_backbone,
    random_prompts,
    random_weights,
    shape_config,
    without_text,
)
from raggd.records import RaggdError
from raggd.settings import BackboneSettings
from tiny import hooks_of, make_backbone

FLOAT = BackboneSettings(device="cpu", dtype="float32")


def test_a_shape_becomes_a_backbone_that_runs() -> None:
    backbone = random_backbone("tiny", FLOAT)
    assert backbone.dtype == torch.float32
    assert not any(p.is_meta for p in backbone.model.parameters())
    assert not any(b.is_meta for b in backbone.model.buffers())
    base, predictor = random_weights(backbone, rank=2)
    tokens = torch.arange(10, 30)[None]
    plain = backbone.model(tokens).logits
    assert plain.isfinite().all()
    with attach(backbone, base):
        assert not torch.allclose(backbone.model(tokens).logits, plain)
    update = predictor.predict(torch.randn(1, 3, base.spec.d_in))
    assert update.rows == 1
    assert float(update.vector().abs().max()) > 0


def test_tied_weights_stay_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, values = SHAPES["tiny"]
    monkeypatch.setitem(SHAPES, "tied", (kind, (*values[:-1], True)))
    model = random_backbone("tied", FLOAT).model
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    model = random_backbone("tiny", FLOAT).model
    assert model.get_input_embeddings().weight is not model.get_output_embeddings().weight


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_configurations(name: str) -> None:
    config = shape_config(name)
    assert config.hidden_size % config.num_attention_heads == 0
    assert config.num_attention_heads % config.num_key_value_heads == 0


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(RaggdError, match="did you mean 'qwen2"):
        random_backbone("qwen2.5-7", FLOAT)
    with pytest.raises(RaggdError, match="needs a GPU"):
        random_backbone("tiny", BackboneSettings(device="cpu", dtype="nf4"))


def test_prices_are_of_the_work_they_name() -> None:
    backbone = random_backbone("tiny", FLOAT)
    base, predictor = random_weights(backbone, rank=2)
    lengths = Lengths(demonstrations=2, support=20, prompt=24, answer=4, steps=2)
    said: list[str] = []
    found = measure_price(
        backbone, base, predictor, lengths, 2, lambda label, *_: said.append(label)
    )
    assert found["lengths"]["steps"] == 2
    assert {"RAG-GD", "TT-SGD, K = 2", "8 x 4 tokens, updates"} <= set(found["ms"])
    assert set(found["ratios"]) == {
        "RAG-GD / one forward pass",
        "RAG-GD / TT-SGD",
        "1 rows: base / bare",
        "1 rows: updates / base",
        "8 rows: base / bare",
        "8 rows: updates / base",
        "decoding step / reading the weights",
    }
    for ratio in found["ratios"].values():
        assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
        assert ratio["rounds"] == 2
    assert hooks_of(backbone) == 0
    assert said
    assert json.dumps(found)


def test_no_text_ends_no_answer() -> None:
    assert NoText().decode([3, 4]) == "3 4"
    backbone = make_backbone()
    assert backbone.stops == [2]
    silent = without_text(backbone)
    assert silent.stops == [-1]
    assert (silent.fingerprint, silent.model) == (backbone.fingerprint, backbone.model)
    prompts = random_prompts(silent, 2, 12, 0)
    answers = decode(silent, read_prompts(silent, prompts), 9)
    assert [len(answer.split()) for answer in answers] == [9, 9]


def test_the_command_prints_plain_numbers(tmp_path: Path) -> None:
    options = ["--support", "20", "--prompt", "20", "--answer", "2", "--rounds", "1"]
    changes = ["--set", "backbone.device='cpu'", "--set", "backbone.dtype='float32'"]
    record = tmp_path / "price.json"
    command = ["bench", "--shape", "tiny", *options, *changes, "--out", str(record)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "RAG-GD / TT-SGD" in shown.stdout
    assert "e+" not in shown.stdout
    assert {"ms", "ratios", "lengths", "command", "versions"} <= set(json.loads(record.read_text()))
