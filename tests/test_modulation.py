"""An update read from the examples' own states: what it is, that it learns, and its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from raggd.adaptation.following import Taught, Use, train_following
from raggd.adaptation.optimizer import Session
from raggd.adaptation.predictors.modulation import (
    Modulation,
    load_modulation,
    read_examples,
    save_modulation,
)
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import FOLLOW, build_prompt, prefix_tokens
from raggd.evaluation.flops import counted_costs, model_shape
from raggd.evaluation.runner import CellRun, Item, Task
from raggd.methods.examples import ExamplesPrefix
from raggd.records import Demonstration, Question, RaggdError, SupportSet
from raggd.settings import ExamplesSettings, Settings


def _random(base: BaseAdapter, width: int) -> Modulation:
    made = Modulation(tiny.random_update(base), width)
    torch.nn.init.normal_(made.head.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return made.requires_grad_(False)


def _width(backbone: Backbone) -> int:
    return int(backbone.model.config.hidden_size)


def test_untrained_it_is_the_step_and_trained_it_scales_the_ranks_of_b(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    step = tiny.random_update(base)
    read = read_examples(tiny_backbone, base, [(5, 6, 7, 8), (9, 10)])
    fresh = Modulation(step, _width(tiny_backbone))
    torch.testing.assert_close(fresh(base, *read).row(1).vector(), step.vector())
    made = _random(base, _width(tiny_backbone))
    found, update = made.factors(*read), made(base, *read)
    assert (found[0] - found[1]).abs().max() > 1e-3, "other examples, other factors"
    for row in range(2):
        for number, projection in enumerate("qkv"):
            a, b = step.factors[projection]
            whole = base.factors[projection].b + b
            scaled = torch.stack(
                [whole[i] @ torch.diag(found[row, i, number]) for i in range(len(whole))]
            )
            torch.testing.assert_close(update.factors[projection].b[row], b + scaled)
            torch.testing.assert_close(update.factors[projection].a[row], a)


def test_padding_changes_nothing(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    made = _random(base, _width(tiny_backbone))
    long, short = tuple(range(4, 24)), (9, 10, 11)
    together = made.factors(*read_examples(tiny_backbone, base, [long, short]))
    alone = made.factors(*read_examples(tiny_backbone, base, [short]))
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_a_file_holds_it_and_another_is_refused(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    made = _random(base, _width(tiny_backbone))
    save_modulation(tmp_path / "made.safetensors", made)
    again = load_modulation(tmp_path / "made.safetensors")
    read = read_examples(tiny_backbone, base, [(5, 6, 7)])
    torch.testing.assert_close(again.factors(*read), made.factors(*read), atol=2e-2, rtol=2e-2)
    tiny.random_update(base).save(tmp_path / "step.safetensors")
    with pytest.raises(RaggdError, match="is not a raggd modulated step file: make one with"):
        load_modulation(tmp_path / "step.safetensors")


def _lessons(backbone: Backbone) -> list[Taught]:
    # what is asked is the same; only the examples tell which of two answers is wanted
    lessons = []
    for number in range(8):
        answer = ("red", "blue")[number % 2]
        shown = (Demonstration("d", "what is the sea", (), answer),)
        prompt = build_prompt(
            backbone.tokenizer, "what is the bird", answer=answer, limit=200, instruction=FOLLOW
        )
        lessons.append(Taught(prompt, prefix_tokens(backbone.tokenizer, shown, FOLLOW)))
    return lessons


def test_without_the_examples_in_the_prompt_only_reading_them_helps(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    lessons = _lessons(tiny_backbone)
    losses = {}
    settings = ExamplesSettings(steps=60, batch=8, learning_rate=0.01)
    for predict in (False, True):
        file, use = tmp_path / f"{predict}.safetensors", Use(show=False, predict=predict)
        _, history = train_following(tiny_backbone, base, lessons, Session(settings, file), use)
        losses[predict] = sum(history[-5:]) / 5
    assert losses[True] < losses[False] - 0.4


def test_an_update_alone_leaves_the_prompt_without_examples(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    made = _random(base, _width(tiny_backbone))
    alone = ExamplesPrefix(
        "examples-update", tiny_backbone, base, None, 300, "w", made, prefixed=False
    )
    both = replace(alone, name="examples-both", prefixed=True)
    (update,), (full,) = alone.adapt(supports[:1]), both.adapt(supports[:1])
    assert update.shown == ()
    assert update.prefix is None
    assert full.prefix is not None
    assert update.update is not None
    assert full.update is not None
    torch.testing.assert_close(update.update.vector(), full.update.vector())
    other = alone.adapt(supports[1:2])[0].update
    assert other is not None
    assert (other.vector() - update.update.vector()).abs().max() > 1e-4


def test_reading_the_examples_for_an_update_is_counted(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    made = _random(base, _width(tiny_backbone))
    alone = ExamplesPrefix(
        "examples-update", tiny_backbone, base, None, 300, "w", made, prefixed=False
    )
    both = replace(alone, name="examples-both", prefixed=True)
    gold = supports[0].demonstrations[0]
    items = [
        Item(Question(str(i), "what is Lima", ("Lima",)), gold.passages, gold, supports[0])
        for i in range(2)
    ]
    task = Task("nq", "test", (tuple(items),), "stub")
    update, whole = (
        counted_costs(
            {"0": "Lima", "1": "Oslo"}, CellRun(task, m, tiny_backbone, Settings(), tmp_path)
        )["adapt_flops"]
        for m in (alone, both)
    )
    shape = model_shape(tiny_backbone.model)
    assert update == shape.forward(len(alone.unread(supports[0])[1]), extra=base.spec.size)
    assert whole == 2 * update, "the prefix is read in a pass of its own"
