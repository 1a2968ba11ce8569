"""The PEFT folder: peft itself loads it and computes the same logits."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import raggd
from raggd.adaptation.export import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    lora_factors,
    opening_turns,
    write_peft,
    write_prompt,
)
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Factors, Update, dense, effective_weight
from raggd.data.prompts import render_turns, user_text
from raggd.files import load_tensors
from raggd.records import Demonstration, Passage, RaggdError, SupportSet
from raggd.settings import load_settings
from tiny import make_backbone, random_base, random_update, random_updates
from workflow_fixtures import files_under

TOKENS = torch.tensor([[5, 40, 41, 12, 30, 31, 8, 9], [7, 8, 22, 23, 24, 50, 51, 6]])


@torch.no_grad()
def ours(backbone: Backbone, base: BaseAdapter | None, update: Update | None = None) -> Tensor:
    with attach(backbone, base, update):
        logits: Tensor = backbone.model(TOKENS).logits
    return logits.float()


@torch.no_grad()
def by_peft(backbone: Backbone, folder: Path) -> Tensor:
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(backbone.model), str(folder))
    logits: Tensor = model.eval()(TOKENS).logits
    return logits.float()


def test_peft_gives_the_same_logits(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    update = random_update(base)
    bare, alone = ours(tiny_backbone, None), ours(tiny_backbone, base)
    adapted = ours(tiny_backbone, base, update)
    assert float((alone - bare).abs().max()) > 0.1
    assert float((adapted - alone).abs().max()) > 0.1
    first = write_peft(tmp_path / "base", tiny_backbone, base)
    second = write_peft(tmp_path / "update", tiny_backbone, base, update)
    assert (first.rank, second.rank) == (2, 6)
    torch.testing.assert_close(by_peft(tiny_backbone, first.folder), alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(by_peft(tiny_backbone, second.folder), adapted, atol=2e-5, rtol=1e-5)


def test_the_factors_multiply_to_base_and_update(base: BaseAdapter) -> None:
    update = random_update(base)
    wanted = effective_weight(base, update)
    for projection, factors in lora_factors(base, update).items():
        torch.testing.assert_close(dense(factors), dense(wanted[projection]), atol=1e-5, rtol=1e-5)
        assert factors.a.shape[-2] == 3 * base.spec.rank


def rounded(factors: Factors) -> Tensor:
    """The product of factors that an engine keeps in bfloat16."""
    return dense(Factors(factors.a.bfloat16().float(), factors.b.bfloat16().float()))


def test_a_small_update_survives_an_engine_in_bfloat16(base: BaseAdapter) -> None:
    # what rank concatenation is for: A + dA in bfloat16 would lose most of a small dA
    update = random_update(base, size=2e-4)
    whole, alone = effective_weight(base, update)["q"], effective_weight(base)["q"]
    wanted = dense(whole) - dense(alone)
    apart = rounded(lora_factors(base, update)["q"]) - rounded(alone)
    summed = rounded(whole) - rounded(alone)
    assert float((apart - wanted).norm() / wanted.norm()) < 0.01
    assert float((summed - wanted).norm() / wanted.norm()) > 0.5


def test_peft_on_a_bfloat16_model_differs_by_rounding_only(tmp_path: Path) -> None:
    backbone = make_backbone(dtype=torch.bfloat16)
    base = random_base(backbone)
    update = random_update(base)
    folder = write_peft(tmp_path / "a", backbone, base, update).folder
    mine, theirs = ours(backbone, base, update), by_peft(backbone, folder)
    moved = float((mine - ours(backbone, base)).std())
    assert float((mine - theirs).std()) < 0.1 * moved


def test_the_folder_names_its_model_and_its_base(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    written = write_peft(tmp_path, tiny_backbone, base)
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config["base_model_name_or_path"] == written.backbone == "tiny"
    assert config["r"] == config["lora_alpha"] == 2
    tensors, metadata = load_tensors(tmp_path / WEIGHTS_FILE)
    assert metadata["raggd_base"] == base.fingerprint
    assert len(tensors) == 3 * 3 * 2
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_an_export_may_be_written_again_but_replaces_nothing_else(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    write_peft(tmp_path / "a", tiny_backbone, base)
    write_peft(tmp_path / "a", tiny_backbone, base, random_update(base))
    assert json.loads((tmp_path / "a" / CONFIG_FILE).read_text())["r"] == 6
    for hidden in (".DS_Store", f".{CONFIG_FILE}.killed"):  # of a desktop, of a killed export
        (tmp_path / "a" / hidden).touch()
    write_peft(tmp_path / "a", tiny_backbone, base)
    precious = tmp_path / "a" / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(RaggdError, match=r"holds other files \(thesis.txt\)"):
        write_peft(tmp_path / "a", tiny_backbone, base)
    with pytest.raises(RaggdError, match="is a file"):
        write_peft(precious, tiny_backbone, base)
    with pytest.raises(RaggdError, match="cannot write"):
        write_peft(precious / "b", tiny_backbone, base)
    assert precious.read_text() == "years of work"


def test_what_does_not_belong_together_is_refused(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    other = random_base(tiny_backbone, seed=5)
    with pytest.raises(RaggdError, match="the update starts from base adapter"):
        write_peft(tmp_path / "a", tiny_backbone, base, random_update(other))
    with pytest.raises(RaggdError, match="the base adapter was made for backbone"):
        write_peft(tmp_path / "a", make_backbone(seed=3), base)
    with pytest.raises(RaggdError, match="a batch of 2 updates"):
        write_peft(tmp_path / "a", tiny_backbone, base, random_updates(base, 2))
    assert not (tmp_path / "a").exists()


SHOWN = (
    Demonstration("1", 'who said "no" ?', (Passage("p", "Lima said\nno.", "a 'title'"),), "L\\ima"),
    Demonstration("2", "who ?", (), "{{ nobody }}"),
)


@pytest.mark.parametrize("template", ["own", "refusing", "none"])
@pytest.mark.parametrize("shown", [(), SHOWN])
def test_the_template_renders_what_raggd_asks(
    shown: tuple[Demonstration, ...], template: str, tmp_path: Path
) -> None:
    backbone = make_backbone(seed=1)
    tokenizer = backbone.tokenizer
    if template == "none":
        tokenizer.chat_template = None
    elif template == "refusing":
        own = tokenizer.chat_template
        tokenizer.chat_template = (
            "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system') }}"
            "{%- endif -%}" + own
        )
    turns = opening_turns(tokenizer, shown, "Answer as shown.")
    write_prompt(tmp_path, tokenizer, turns)
    assert files_under(tmp_path) == ["chat_template.jinja", "prompt.txt"]
    passages = [Passage("p", "The red city lies near Lima.", "Guide")]
    asked = {"role": "user", "content": user_text("what lies near Lima ?", passages)}
    wanted = render_turns(tokenizer, [*turns, asked])
    jinja = (tmp_path / "chat_template.jinja").read_text(encoding="utf-8")

    def stock(turns: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                turns, chat_template=jinja, tokenize=False, add_generation_prompt=True
            )
        )

    assert stock([asked]) == wanted
    text = (tmp_path / "prompt.txt").read_text(encoding="utf-8")
    assert "{question}" in text
    assert "Answer as shown." in text
    if template != "refusing":  # whoever brings a system turn is left alone
        other = stock([{"role": "system", "content": "Be rude."}, asked])
        assert "Answer as shown." not in other
        assert "Be rude." in other


@pytest.mark.backbone
@pytest.mark.xdist_group("backbone")
def test_peft_on_the_real_backbone(tmp_path: Path) -> None:
    rag = raggd.load(settings=load_settings(assignments=["backbone.dtype=float32"]))
    backbone, base = rag.parts.backbone, rag.parts.base
    shown = [Demonstration(f"d{i}", f"who is {i} ?", (), f"king {i}") for i in range(3)]
    update = rag.adapt(SupportSet("own", tuple(shown))).update
    adapted = ours(backbone, base, update)
    moved = float((adapted - ours(backbone, base)).abs().max())
    folder = rag.export_peft(tmp_path / "a", update).folder
    assert moved > 0.1
    assert float((adapted - by_peft(backbone, folder)).abs().max()) < 1e-3 * moved
