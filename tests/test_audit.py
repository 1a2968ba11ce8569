"""The audit: a network that reads is told from one that learned a constant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raggd.adaptation.export import mean_adapter, read_peft, write_peft
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, dense, effective_weight
from raggd.evaluation.audit import (
    STATES,
    Audited,
    audit,
    audit_result,
    audited_sets,
    mean_state,
    random_text,
    reading_worth,
)
from raggd.evaluation.runner import Item, Task
from raggd.methods.base import Adapted
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet
from raggd.settings import Settings
from tiny import random_base, random_update
from workflow_fixtures import parts_with


def _task(name: str, draws: int = 2, questions: int = 3) -> Task:
    passage = Passage("p", "the river flows north to Lima", "river")
    parts = []
    for draw in range(draws):
        shown = Demonstration(f"{name}{draw}", f"where is {name} {draw}", (passage,), "Lima")
        support = SupportSet(name, (shown,))
        gold = Demonstration("g", "what", (passage,), "Lima")
        parts.append(
            tuple(
                Item(Question(f"{name}{i}", "what is Lima", ("Lima",)), (passage,), gold, support)
                for i in range(questions)
            )
        )
    return Task(name, "test", tuple(parts), "stub")


def _states(base: BaseAdapter, reads: bool) -> Callable[[SupportSet], Adapted]:
    def state(support: SupportSet) -> Adapted:
        return Adapted(base, random_update(base, seed=int(support.id, 16) % 97 if reads else 5))

    return state


def test_a_constant_is_worth_nothing_and_a_reader_something(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    tasks = [_task("a"), _task("b")]
    constant, parts = (
        Adapted(base, random_update(base, seed=5)),
        parts_with(Settings(), tiny_backbone),
    )
    for reads in (False, True):
        done = audit(parts, tasks, _states(base, reads), constant)
        assert len(done) == 12 * len(STATES)
        worth = reading_worth(done, "loss")
        assert set(worth) == set(STATES[1:])
        apart = max(abs(d.mean) for d in worth.values())
        assert (apart > 1e-3) == reads
        result = audit_result(done)
        assert result["means"]["a"]["right"]["n"] == 6
        assert set(result["worth"]) == {"all", "a", "b"}


def test_what_reading_is_worth_is_right_minus_control() -> None:
    audited = [
        Audited("a", i // 4, state, float(state == "right"), 0.5, 1.0 - (state == "right"))
        for state in ("right", "mean")
        for i in range(8)
    ]
    assert reading_worth(audited, "em")["mean"].mean == 1.0
    assert reading_worth(audited, "loss")["mean"].mean == -1.0


def test_random_text_has_the_shape_of_the_set_and_none_of_its_sense() -> None:
    support = _task("a").draws[0][0].support
    other = random_text(support)
    assert other == random_text(support)
    assert other.id != support.id
    for shown, own in zip(other.demonstrations, support.demonstrations, strict=True):
        assert len(shown.question.split()) == len(own.question.split())
        assert len(shown.passages) == len(own.passages)
    sets = audited_sets([_task("a"), _task("b", 3)])
    assert len(sets["random-text"]) == 5
    with pytest.raises(RaggdError, match="at least two benchmarks"):
        audited_sets([_task("a")])


def test_an_adapter_of_another_system_is_read_as_it_was_written(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    write_peft(tmp_path / "one", tiny_backbone, base)
    read = read_peft(tmp_path / "one", tiny_backbone)
    for projection, whole in effective_weight(base).items():
        torch.testing.assert_close(dense(effective_weight(read)[projection]), dense(whole))
    config = tmp_path / "one" / "adapter_config.json"
    raw = json.loads(config.read_text())
    config.write_text(json.dumps({**raw, "lora_alpha": 2 * raw["lora_alpha"]}))
    twice = read_peft(tmp_path / "one", tiny_backbone)
    q, doubled = (dense(effective_weight(x)["q"]) for x in (base, twice))
    torch.testing.assert_close(doubled, 2 * q)
    for more in ({"alpha_pattern": {"q_proj": 8}}, {"use_dora": True}):  # another scale, unsaid
        config.write_text(json.dumps({**raw, **more}))
        with pytest.raises(RaggdError, match=f"has {next(iter(more))}: the audit reads"):
            read_peft(tmp_path / "one", tiny_backbone)
    config.write_text(json.dumps({**raw, "r": None}))
    with pytest.raises(RaggdError, match="names no rank"):
        read_peft(tmp_path / "one", tiny_backbone)
    with pytest.raises(RaggdError):
        read_peft(tmp_path / "none", tiny_backbone)


def test_the_mean_of_adapters_is_the_mean_of_products(tiny_backbone: Backbone) -> None:
    adapters = [random_base(tiny_backbone, seed=i) for i in range(3)]
    mean = effective_weight(mean_adapter(adapters))
    for projection in ("q", "k", "v"):
        wanted = sum(dense(effective_weight(a)[projection]) for a in adapters) / 3
        torch.testing.assert_close(dense(mean[projection]), wanted)
    apart = torch.stack([a.factors["q"].b for a in adapters]).mean(0) @ torch.stack(
        [a.factors["q"].a for a in adapters]
    ).mean(0)
    assert not torch.allclose(dense(mean["q"]), adapters[0].spec.scaling * apart, atol=1e-3)
    assert mean_state([Adapted(a) for a in adapters]).base is not None


def test_a_prefix_has_no_mean(base: BaseAdapter) -> None:
    update = random_update(base)
    mean = mean_state([Adapted(base, update), Adapted(base, update * 3.0)])
    assert mean.update is not None
    torch.testing.assert_close(mean.update.vector(), (update * 2.0).vector())
    with pytest.raises(RaggdError, match="no mean"):
        mean_state([replace(Adapted(), base=None)])
