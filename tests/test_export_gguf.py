"""The GGUF LoRA: llama.cpp itself loads it and computes the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from llama_cpp import Llama, Scores, write_model
from raggd.adaptation import export as export_gguf
from raggd.adaptation.export import reordered, write_gguf
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone, wrap_model
from raggd.core.low_rank import BaseAdapter, Update
from raggd.records import RaggdError
from tiny import random_base, random_update, tiny_model, tiny_tokenizer

TOKENS = [5, 40, 41, 12, 30, 31, 8, 9, 17, 44, 21, 50]
NOISE = 0.02
"""llama.cpp keeps keys and values in float16: that much differs without any adapter too."""


def backbone_of(kind: str) -> Backbone:
    """A tiny random model of a kind, with everything about it different from its neighbour."""
    tokenizer = tiny_tokenizer()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.25,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    if kind == "llama":
        model: Any = tiny_model(**{"vocabulary": shape.pop("vocab_size")}, **shape)
    elif kind == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**shape))
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=16))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return wrap_model(model, tokenizer, f"tiny {kind}")


@torch.no_grad()
def ours(backbone: Backbone, base: BaseAdapter | None, update: Update | None = None) -> Scores:
    with attach(backbone, base, update):
        logits = backbone.model(torch.tensor([TOKENS])).logits[0, -1]
    found: Scores = torch.log_softmax(logits.float(), -1).numpy()
    return found


def distance(left: Scores, right: Scores) -> float:
    return float(np.abs(left - right).max())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_gives_the_same_logits(kind: str, tmp_path: Path) -> None:
    backbone = backbone_of(kind)
    base = random_base(backbone, size=0.15)
    update = random_update(base, size=0.15)
    vocabulary = backbone.model.config.vocab_size
    wanted = [ours(backbone, None), ours(backbone, base), ours(backbone, base, update)]
    assert min(distance(wanted[0], wanted[1]), distance(wanted[1], wanted[2])) > 1
    model = write_model(tmp_path / "model.gguf", backbone.model, kind, vocabulary)
    alone = write_gguf(tmp_path / "base.gguf", backbone, base)
    whole = write_gguf(tmp_path / "update.gguf", backbone, base, update)
    engine = Llama(model, vocabulary, alone, whole)
    for adapter, mine in enumerate(wanted, start=-1):
        theirs = engine.log_probabilities(TOKENS, adapter)
        assert distance(mine, theirs) < NOISE


def test_without_the_reordering_the_answers_differ(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    backbone = backbone_of("llama")
    base = random_base(backbone, size=0.15)
    vocabulary = backbone.model.config.vocab_size
    model = write_model(tmp_path / "model.gguf", backbone.model, "llama", vocabulary)
    monkeypatch.setattr(export_gguf, "reordered", lambda b, heads: b)
    engine = Llama(model, vocabulary, write_gguf(tmp_path / "wrong.gguf", backbone, base))
    wrong = engine.log_probabilities(TOKENS, 0)
    assert distance(ours(backbone, base), wrong) > 10 * NOISE


def test_reordering_puts_the_halves_of_a_pair_side_by_side() -> None:
    rows = torch.arange(8).reshape(8, 1)  # two heads of four: halves (0, 1) and (2, 3)
    assert reordered(rows, 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_other_kinds_of_model_are_refused(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_backbone.model.config, "model_type", "gemma3_text")
    with pytest.raises(RaggdError, match="no GGUF export for model type 'gemma3_text'"):
        write_gguf(tmp_path / "x.gguf", tiny_backbone, base)
    assert not list(tmp_path.iterdir())
