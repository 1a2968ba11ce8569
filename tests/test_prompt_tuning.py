"""Prompt tuning: where the soft prefix stands, what it learns, and that it resumes bitwise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from raggd.adaptation import optimizer
from raggd.adaptation.optimizer import Session
from raggd.adaptation.soft_prefix import (
    SoftPrefix,
    check_prefix,
    fresh_prefix,
    load_prefix,
    save_prefix,
    train_prefix,
)
from raggd.adaptation.targets import answered_prompt
from raggd.backbone.batch import answer_losses, last_states, make_batch, model_inputs
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError, SupportSet
from raggd.settings import PromptTuningSettings, TrainingSettings

TRAINING = PromptTuningSettings(steps=6, batch=2, learning_rate=0.05)
COMMON = TrainingSettings(accumulate=2)


def train(
    backbone: Backbone,
    examples: list[Prompt],
    checkpoint: Path,
    settings: PromptTuningSettings = TRAINING,
    common: TrainingSettings = COMMON,
    stop: int = 0,
) -> tuple[SoftPrefix, list[float]]:
    def progress(_: str, step: int, __: int | None) -> None:
        if step == stop:
            raise KeyboardInterrupt

    return train_prefix(backbone, examples, Session(settings, checkpoint, common, progress))


def random_vectors(backbone: Backbone, tokens: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, backbone.model.config.hidden_size, generator=generator)


@torch.no_grad()
def plain_loss(backbone: Backbone, prompt: Prompt, vectors: Tensor) -> Tensor:
    """The answer's mean negative log-likelihood from embeddings put together by hand."""
    embedded = backbone.model.get_input_embeddings()(torch.tensor([prompt.tokens]))
    whole = torch.cat([vectors[None], embedded], 1)
    scores = backbone.model(inputs_embeds=whole).logits[0].log_softmax(-1)
    first, before = len(prompt.tokens) - prompt.answer_tokens, len(vectors)
    picked = [scores[before + i - 1, prompt.tokens[i]] for i in range(first, len(prompt.tokens))]
    return -torch.stack(picked).mean()


def test_a_prefix_stands_before_every_prompt(
    tiny_backbone: Backbone, examples: list[Prompt]
) -> None:
    vectors = random_vectors(tiny_backbone)
    assert len({len(p.tokens) for p in examples}) > 1
    with torch.no_grad():
        batch = make_batch(examples, tiny_backbone, vectors)
        losses = answer_losses(tiny_backbone, batch)
        bare = answer_losses(tiny_backbone, make_batch(examples, tiny_backbone))
        wanted = torch.stack([plain_loss(tiny_backbone, p, vectors) for p in examples])
    assert float((losses - bare).abs().min()) > 1e-3
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    for row, prompt in enumerate(examples):
        assert int(batch.mask[row].sum()) == len(prompt.tokens) + len(vectors)
        assert int(batch.positions[row, -1]) == len(prompt.tokens) + len(vectors) - 1
        first = int(batch.mask[row].argmax())
        embedded = model_inputs(tiny_backbone, batch)["inputs_embeds"][row]
        assert torch.equal(embedded[first : first + len(vectors)], vectors)


def test_embeddings_of_the_first_words_as_a_prefix_are_those_words(
    tiny_backbone: Backbone, examples: list[Prompt]
) -> None:
    words = 4
    opening = examples[0].tokens[:words]
    examples = [p for p in examples if p.tokens[:words] == opening]
    assert len(examples) > 3
    cut = [replace(p, tokens=p.tokens[words:]) for p in examples]
    vectors = tiny_backbone.model.get_input_embeddings()(torch.tensor(opening)).detach()
    with torch.no_grad():
        got = answer_losses(tiny_backbone, make_batch(cut, tiny_backbone, vectors))
        wanted = answer_losses(tiny_backbone, make_batch(examples, tiny_backbone))
        states = last_states(tiny_backbone, make_batch(cut, tiny_backbone, vectors))
        without = answer_losses(tiny_backbone, make_batch(cut, tiny_backbone))
    assert not torch.allclose(without, wanted, atol=1e-3)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
    plain = last_states(tiny_backbone, make_batch(examples, tiny_backbone))
    torch.testing.assert_close(states, plain, atol=1e-5, rtol=1e-5)


def test_a_prefix_starts_from_words_of_the_examples(
    tiny_backbone: Backbone, examples: list[Prompt]
) -> None:
    vectors = fresh_prefix(tiny_backbone, examples, 0)
    table = tiny_backbone.model.get_input_embeddings().weight
    words = {t for p in examples for t in p.tokens}
    for vector in vectors:
        (found,) = (table == vector).all(1).nonzero().flatten().tolist()
        assert found in words
        assert found not in tiny_backbone.tokenizer.all_special_ids
    assert torch.equal(vectors, fresh_prefix(tiny_backbone, examples, 0))
    assert not torch.equal(vectors, fresh_prefix(tiny_backbone, examples, 1))


def test_training_lowers_the_loss_and_leaves_the_backbone_alone(
    tiny_backbone: Backbone, examples: list[Prompt], tmp_path: Path
) -> None:
    before = {n: p.clone() for n, p in tiny_backbone.model.named_parameters()}
    settings = TRAINING.model_copy(update={"steps": 25})
    prefix, history = train(tiny_backbone, examples, tmp_path / "c", settings)
    assert len(history) == 25
    assert prefix.vectors.shape == (20, 32)
    start = fresh_prefix(tiny_backbone, examples, 0)
    with torch.no_grad():
        trained, untrained = (
            answer_losses(tiny_backbone, make_batch(examples, tiny_backbone, vectors)).mean()
            for vectors in (prefix.vectors, start)
        )
    assert float(trained) < float(untrained) - 0.3
    assert not prefix.vectors.requires_grad
    for name, parameter in tiny_backbone.model.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None


@pytest.mark.parametrize("stop", [1, 4])
def test_training_that_was_stopped_continues_bitwise(
    tiny_backbone: Backbone,
    examples: list[Prompt],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    whole, history = train(tiny_backbone, examples, tmp_path / "whole")
    monkeypatch.setattr(optimizer, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_backbone, examples, tmp_path / "c", stop=stop)
    assert (tmp_path / "c").exists() == (stop > 1)
    resumed, again = train(tiny_backbone, examples, tmp_path / "c")
    assert again == history
    assert torch.equal(resumed.vectors, whole.vectors)
    other = COMMON.model_copy(update={"seed": 1})
    elsewhere, _ = train(tiny_backbone, examples, tmp_path / "d", common=other)
    assert elsewhere.fingerprint != whole.fingerprint
    with pytest.raises(RaggdError, match="belongs to another run"):
        train(tiny_backbone, examples, tmp_path / "c", common=other)
    with pytest.raises(RaggdError, match="belongs to another run"):
        train(tiny_backbone, examples[1:], tmp_path / "c")


def test_no_examples_are_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no training examples"):
        train(tiny_backbone, [], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_prefix_is_stored_and_what_is_not_one_is_refused(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    prefix = SoftPrefix(random_vectors(tiny_backbone), tiny_backbone.fingerprint)
    path = tmp_path / "prompt.safetensors"
    save_prefix(path, prefix)
    found = load_prefix(path)
    assert torch.equal(found.vectors, prefix.vectors)
    assert found.fingerprint == prefix.fingerprint
    assert SoftPrefix(prefix.vectors, "another").fingerprint != prefix.fingerprint
    check_prefix(tiny_backbone, found)
    with pytest.raises(RaggdError, match=rf"{tiny_backbone.fingerprint}.*train prompt"):
        check_prefix(tiny_backbone, SoftPrefix(prefix.vectors, "another"))
    tensors, header = load_tensors(path)
    save_tensors(path, {"vectors": tensors["vectors"] + 1}, header)
    with pytest.raises(RaggdError, match="changed or damaged"):
        load_prefix(path)
    save_tensors(path, tensors, {"kind": "raggd base adapter"})
    with pytest.raises(RaggdError, match="is not a raggd soft prefix"):
        load_prefix(path)


def test_in_half_precision_the_prefix_keeps_its_own(
    tmp_path: Path, supports: list[SupportSet]
) -> None:
    """Parameters stay in float32 while the backbone computes in bfloat16."""
    backbone = tiny.make_backbone(dtype=torch.bfloat16)
    examples = [answered_prompt(backbone.tokenizer, d, 200) for d in supports[0].demonstrations]
    prefix, history = train(backbone, examples, tmp_path / "c")
    assert prefix.vectors.dtype == torch.float32
    assert not torch.equal(prefix.vectors, prefix.vectors.bfloat16().float())
    assert len(history) == TRAINING.steps
