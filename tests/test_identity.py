"""One fingerprint of backbone and tokenizer: whatever decides an answer changes it, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tokenizers import normalizers

import tiny
from raggd.adaptation.soft_prefix import SoftPrefix, check_prefix
from raggd.backbone import load
from raggd.backbone.embedded import EMBEDDED, known_fingerprint
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone, differences, fingerprint_of, wrap_model
from raggd.records import RaggdError


def _changed(change: Callable[[Any, Any], None]) -> Backbone:
    tokenizer = tiny.tiny_tokenizer()
    model = tiny.tiny_model(len(tokenizer))
    change(model, tokenizer)
    return wrap_model(model, tokenizer, "tiny")


def _weights(model: Any, tokenizer: Any) -> None:
    model.lm_head.weight.data += 1


def _vocabulary(model: Any, tokenizer: Any) -> None:
    tokenizer.add_tokens(["Berlin"])


def _reading(model: Any, tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def _begin(model: Any, tokenizer: Any) -> None:
    tokenizer.bos_token = "<user>"


def _end(model: Any, tokenizer: Any) -> None:
    tokenizer.eos_token = "<s>"


def _generation(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = [2, 5]


def _template(model: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = tiny.NO_SYSTEM


CHANGES = [
    (_weights, ["weights"]),
    (_vocabulary, ["vocabulary"]),
    (_reading, ["vocabulary"]),
    (_begin, ["special tokens"]),
    (_end, ["end tokens (2 then, 1+2 now)"]),
    (_generation, ["end tokens (2 then, 2+5 now)"]),
    (_template, ["chat template"]),
]


@pytest.mark.parametrize(("change", "parts"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_whatever_decides_an_answer_is_refused_by_name(
    change: Callable[[Any, Any], None], parts: list[str], tiny_backbone: Backbone
) -> None:
    other = _changed(change)
    assert differences(tiny_backbone.fingerprint, other.fingerprint) == parts
    base = tiny.random_base(tiny_backbone)
    vectors = tiny_backbone.model.get_input_embeddings().weight[:2].detach()
    named = "made for backbone" if parts == ["weights"] else parts[0].partition(" (")[0]
    with pytest.raises(RaggdError, match=named), attach(other, base):
        pass
    with pytest.raises(RaggdError, match=named):
        check_prefix(other, SoftPrefix(vectors, tiny_backbone.fingerprint))
    with attach(tiny_backbone, base):  # and the right one is taken
        pass


def test_a_changed_wording_is_named(
    tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "WITH_PASSAGES", "Read and reply.")
    now = fingerprint_of(tiny_backbone.model, tiny_backbone.tokenizer)
    assert differences(tiny_backbone.fingerprint, now) == ["prompt wording"]


def test_the_date_does_not_change_it_and_a_changing_template_is_refused() -> None:
    dated = "{{ strftime_now('%d %b') }}" + tiny.TEMPLATE
    assert tiny.make_backbone(template=dated).fingerprint
    with pytest.raises(RaggdError, match="would change from time to time"):
        tiny.make_backbone(template="{{ [1, 2] | random }}" + tiny.TEMPLATE)


def test_a_base_keeps_its_fingerprint_whatever_the_tokenizer(tiny_backbone: Backbone) -> None:
    """Updates and predictors name it; the tokenizer is compared where the base is used."""
    base = tiny.random_base(tiny_backbone)
    old = replace(base, backbone=tiny_backbone.fingerprint.partition("-")[0])
    assert old.fingerprint == base.fingerprint
    assert replace(base, backbone=tiny.make_backbone(seed=1).fingerprint).fingerprint != (
        base.fingerprint
    )
    with attach(tiny_backbone, old):  # a file from before there were parts
        pass


def test_old_files_of_the_embedded_backbones_are_held_to_their_tokenizer() -> None:
    for whole in (facts["fingerprint"] for facts in EMBEDDED.values()):
        assert known_fingerprint(whole.partition("-")[0]) == whole
        assert known_fingerprint(whole) == whole
        weights, vocabulary, special, end, *rest = whole.split("-")
        other = "-".join([weights, vocabulary, special, f"{end}+9", *rest])
        assert differences(weights, whole) == []
        assert differences(weights, other) == [f"end tokens ({end} then, {end}+9 now)"]
    assert known_fingerprint("0123456789abcdef") == "0123456789abcdef"
