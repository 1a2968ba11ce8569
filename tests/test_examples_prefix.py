"""Following examples: the cached prefix answers as the whole prompt would, row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import ALONE, FOLLOW, build_prompt, prefix_tokens
from raggd.data.shown import named_passages
from raggd.data.template import REFUSAL
from raggd.methods.answering import answer_rows, render
from raggd.methods.base import Adapted
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, RaggdError, SupportSet


def _method(backbone: Backbone, base: BaseAdapter, limit: int = 300) -> ExamplesPrefix:
    return ExamplesPrefix("examples", backbone, base, tiny.random_update(base), limit, "w")


@pytest.mark.parametrize("template", [tiny.TEMPLATE, tiny.NO_SYSTEM, None])
@pytest.mark.parametrize("passages", [(), (Passage("p", "red fish", "sea"),)])
def test_every_prompt_begins_with_the_prefix(
    template: str | None, passages: tuple[Passage, ...], supports: list[SupportSet]
) -> None:
    tokenizer = tiny.make_backbone(template=template).tokenizer
    shown = [replace(d, passages=()) for d in supports[0].demonstrations]
    tokens = prefix_tokens(tokenizer, shown, FOLLOW)
    prompt = build_prompt(
        tokenizer, "where is Lima", passages, limit=400, shown=shown, instruction=FOLLOW
    )
    begins = prompt.tokens[: len(tokens)] == tokens
    assert begins == bool(passages), "without passages the instruction is another one"
    assert len(tokens) > 20


def test_rows_with_different_examples_answer_as_each_alone(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    method = _method(tiny_backbone, base)
    states = method.adapt(supports)
    passages = (Passage("p", "the red fish lives near Oslo", "fish"),)
    prompts = [render(tiny_backbone, s, "where is Oslo", passages, limit=400) for s in states]
    golds = ["Oslo"] * len(states)
    together, losses = answer_rows(tiny_backbone, states, prompts, 6, golds=golds)
    bare = [replace(state, prefix=None) for state in states]
    full, wanted = answer_rows(tiny_backbone, bare, prompts, 6, golds=golds)
    assert losses is not None
    assert wanted is not None
    assert len({round(float(x), 4) for x in wanted}) == len(states), "they must differ"
    assert together == full
    torch.testing.assert_close(losses, wanted, atol=1e-4, rtol=1e-4)
    foreign = replace(states[0], prefix=replace(states[1].prefix, tokens=states[0].prefix.tokens))  # type: ignore[arg-type, union-attr]
    _, wrong = answer_rows(tiny_backbone, [foreign], prompts[:1], 6, golds=golds[:1])
    assert wrong is not None
    assert abs(float(wrong[0]) - float(wanted[0])) > 1e-3


def test_a_prefix_read_in_another_precision_is_read_on_from(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    # as saved on a machine of float32, for one of bfloat16
    state = _method(tiny_backbone, base).adapt(supports[:1])[0]
    assert state.prefix is not None
    layers = tuple((keys.double(), values.double()) for keys, values in state.prefix.layers)
    other = replace(state, prefix=replace(state.prefix, layers=layers))
    passages = (Passage("p", "the red fish lives near Oslo", "fish"),)
    prompt = render(tiny_backbone, state, "where is Oslo", passages, limit=400)
    for rows in ([other], [other, state]):
        texts, _ = answer_rows(tiny_backbone, rows, [prompt] * len(rows), 6)
        assert set(texts) == set(answer_rows(tiny_backbone, [state], [prompt], 6)[0])


def test_a_state_says_what_the_examples_show(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    passage = Passage("p", "the sea is blue", "sea")
    shown = (
        Demonstration("a", "what is blue", (passage,), "the sea"),
        Demonstration("b", "what is the sea", (passage,), "the sea\nis blue"),
        Demonstration("c", "who is king", (passage,), "no king here"),
    )
    state = _method(tiny_backbone, base).adapt([SupportSet("own", shown)])[0]
    assert state.lines
    assert state.refusals == ("no king here",)
    assert state.most >= 2 * 5
    assert all(not d.passages for d in state.shown)
    assert state.instruction == FOLLOW


def test_a_model_that_is_used_as_it_is_is_told_how_to_follow(
    tiny_backbone: Backbone, base: BaseAdapter
) -> None:
    passage = Passage("p", "the red fish lives near Oslo", "fish")
    short = (
        Demonstration("a", "where is the red fish", (passage,), "near Oslo"),
        Demonstration("b", "what lives near Oslo", (passage,), "fish"),
    )
    refusing = (*short, Demonstration("c", "who is the king", (passage,), "nothing is known"))
    long = (*short, replace(short[0], id="d", answer="it lives near Oslo , which is a town"))
    taught = _method(tiny_backbone, base)
    untaught = replace(taught, told=True)

    def said(method: ExamplesPrefix, shown: tuple[Demonstration, ...]) -> str:
        return method.adapt([SupportSet("own", shown)])[0].instruction

    assert {said(taught, shown) for shown in (short, refusing, long)} == {FOLLOW}
    assert said(untaught, short) == f"{FOLLOW} {ALONE}"
    assert said(untaught, refusing).startswith(f"{FOLLOW} {ALONE} ")
    assert said(untaught, refusing).endswith(f"reply: {REFUSAL}")
    assert said(untaught, long) == FOLLOW
    assert said(untaught.under("In German."), refusing) == "In German."


def test_examples_that_leave_no_room_are_refused(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    with pytest.raises(RaggdError, match="show fewer or shorter ones"):
        _method(tiny_backbone, base, limit=10).adapt(supports[:1])


def test_a_state_outlives_the_process(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    method = _method(tiny_backbone, base)
    first = Store(tmp_path).adapt(method, supports[:1], "identity", base)[0]
    again = Store(tmp_path)
    found = again.adapt(method, supports[:1], "identity", base)[0]
    assert again.computed == 0
    assert found.prefix is not None
    assert first.prefix is not None
    assert found.prefix.tokens == first.prefix.tokens
    for one, other in zip(found.prefix.layers, first.prefix.layers, strict=True):
        assert torch.equal(one[0], other[0])
    assert (found.most, found.refusals, found.lines) == (first.most, first.refusals, first.lines)
    assert isinstance(found, Adapted)


@pytest.mark.parametrize(
    ("answers", "named"),
    [
        (("the sea [oil.md]", "no king [sea/fish.md]"), True),
        (("the sea (see notes.TXT)", "no king"), True),
        (("the sea, from wiki/Fish", "no king"), True),
        (("the sea [1]", "no king in 2.5 or fish.mdq"), False),
    ],
)
def test_files_are_shown_exactly_where_the_examples_name_some(
    answers: tuple[str, str],
    named: bool,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    tmp_path: Path,
) -> None:
    passage = Passage("sea/fish.md#1", "the sea is blue", "sea", "wiki/Fish")
    shown = [Demonstration(a, "what is blue", (passage,), a) for a in answers]
    method, support = _method(tiny_backbone, base), SupportSet("own", tuple(shown))
    state = Store(tmp_path).adapt(method, [support], "identity", base)[0]
    kept = Store(tmp_path).adapt(method, [support], "identity", base)[0]
    plain = replace(state, sources=False)
    assert state.sources == kept.sources == named
    asked = ("where is Oslo", (Passage("red.md#2", "the red fish", "fish", "red.md"),))
    prompts = [render(tiny_backbone, s, *asked, limit=400) for s in (state, kept, plain)]
    assert prompts[0] == prompts[1]
    assert (prompts[0] != prompts[2]) == named
    assert state.prefix is not None
    assert prompts[0].tokens[: len(state.prefix.tokens)] == state.prefix.tokens


def test_an_answer_names_a_passage_by_its_file() -> None:
    passages = [Passage("a", "x", source="guide/oil.md"), Passage("b", "y", source="api/oil.md")]
    assert named_passages("2 litres [guide/oil.md]", passages) == (1,)
    assert named_passages("2 litres [oil.md]", passages) == (1, 2)
    assert named_passages("2 litres [boil.md]", passages) == ()
