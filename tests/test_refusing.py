"""The rule that decides whether to refuse: what it fits, what it decides, where it goes."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tiny
from raggd.adaptation.following import training_lessons
from raggd.adaptation.refusing import PENALTY, area_under, fit_rule, logistic, refusal_lessons
from raggd.backbone.generate import read_prompts
from raggd.backbone.load import Backbone
from raggd.backbone.refusal import RefusalRule, decided, doubts, load_rule
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt, answer_tokens
from raggd.data.template import REFUSAL
from raggd.methods.answering import answer_batch, render, rules_of
from raggd.methods.base import Adapted
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, RaggdError, SupportSet
from raggd.retrieval.evidence import coverage
from raggd.settings import ExamplesSettings, TrainingSettings
from workflow_fixtures import drawn_lessons, prepared_row

ROWS = [prepared_row(i) for i in range(60)]


def _features(seed: int, shift: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand(240, generator=generator) < 0.5
    features = torch.randn(240, 3, generator=generator, dtype=torch.float64)
    features[:, 1] -= shift * wanted
    return 5 * features + 2, wanted


def test_a_rule_finds_what_tells() -> None:
    features, wanted = _features(0, 3.0)
    rule, told = fit_rule(features, wanted, token=1)
    assert rule.confidence < 0
    for nothing in (rule.own, rule.coverage):
        assert abs(nothing) < abs(rule.confidence) / 5
    assert told["area"] > 0.9
    assert told["recall"] > 0.7
    assert told["wrongly"] == pytest.approx(0.1, abs=0.02)
    fresh, asked = _features(1, 3.0)
    refused = torch.tensor(
        [rule.covering(share).odds(own, sure) > 0 for own, sure, share in fresh.tolist()]
    )
    assert refused[asked].double().mean() > 0.6
    assert refused[~asked].double().mean() < 0.25
    silent, asked = _features(2, 0.0)
    assert fit_rule(silent, asked, token=1)[1]["area"] < 0.6, "what says nothing must not seem to"


def test_the_fit_is_the_minimum_in_float64() -> None:
    features, wanted = _features(2, 1.0)
    weights, bias = logistic(features, wanted)
    unit = (features - features.mean(0)) / (features.std(0) + 1e-6)
    odds = features @ weights + bias
    slopes = weights * (features.std(0) + 1e-6)
    gradient = unit.mT @ (odds.sigmoid() - wanted.double()) / len(wanted) + 2 * PENALTY * slopes
    assert gradient.abs().max() < 1e-5
    assert abs(float((odds.sigmoid() - wanted.double()).mean())) < 1e-6


def test_the_area_counts_pairs() -> None:
    odds = torch.tensor([3.0, 1.0, 2.0, 1.0])
    assert area_under(odds, torch.tensor([True, True, False, False])) == pytest.approx(2.5 / 4)


def test_half_of_the_lessons_are_to_be_refused() -> None:
    lessons = refusal_lessons(ROWS)
    drawn = [next(lessons) for _ in range(60)]
    assert 18 < sum(lesson.asked.refused for lesson in drawn) < 42
    assert all(lesson.contract.refusal for lesson in drawn)


def test_the_rule_is_fitted_on_questions_that_no_training_asks() -> None:
    mixture = ExamplesSettings(natural=0.3)
    trained = {lesson.asked.id for lesson in islice(drawn_lessons(ROWS, mixture), 150)}
    fitted = {lesson.asked.id for lesson in islice(refusal_lessons(ROWS), 30)}
    assert len(fitted) > 2
    assert len(trained) > 30
    assert not trained & fitted
    few = [row for row in ROWS if row.id in trained]
    with pytest.raises(RaggdError, match=r"too few questions.*one of every ten"):
        next(refusal_lessons(few))


def test_a_file_that_no_lesson_can_be_drawn_from_is_told(tiny_backbone: Backbone) -> None:
    tokenizer = tiny_backbone.tokenizer
    mixture = ExamplesSettings(steps=1, batch=2)
    left = [replace(row, near=()) for row in ROWS]
    with pytest.raises(RaggdError, match="too few questions to draw lessons from"):
        next(refusal_lessons(left))
    with pytest.raises(RaggdError, match="too few questions to draw lessons from"):
        next(drawn_lessons(ROWS[:1], mixture))
    with pytest.raises(RaggdError, match=r"0 fit into training.max_tokens = 16: raise it"):
        training_lessons(tokenizer, ROWS, mixture, common=TrainingSettings(max_tokens=16))


@pytest.fixture
def refusing() -> SupportSet:
    passages = (Passage("p", "the red fish lives near Oslo", "fish"),)
    return SupportSet(
        "own",
        (
            Demonstration("a", "where is the red fish", passages, "near Oslo"),
            Demonstration("b", "who is the king", passages, "nothing is known"),
            Demonstration("c", "what is red", passages, "fish"),
        ),
    )


def _rule(backbone: Backbone, bias: float) -> RefusalRule:
    return RefusalRule(0.0, 0.0, 0.0, bias, answer_tokens(backbone.tokenizer, REFUSAL)[0])


def test_it_decides_alone_in_a_batch_from_the_store_and_only_where_a_refusal_is_shown(
    tiny_backbone: Backbone, base: BaseAdapter, refusing: SupportSet, tmp_path: Path
) -> None:
    plain = replace(refusing, demonstrations=refusing.demonstrations[::2])
    question, passages = "where is the king", refusing.demonstrations[0].passages
    token = _rule(tiny_backbone, 0).token
    first = {}
    for bias in (-1.0, 1.0):
        method = ExamplesPrefix(
            "examples", tiny_backbone, base, tiny.random_update(base), 300, "w",
            rule=_rule(tiny_backbone, bias),
        )  # fmt: skip
        rows = [Store(tmp_path).adapt(method, [s], "i", base)[0] for s in (refusing, plain)]
        again = Store(tmp_path).adapt(method, [refusing], "i", base)[0]
        assert rows[0].rule
        assert again.rule
        assert rows[1].rule is None
        prompts = [render(tiny_backbone, r, question, passages, limit=400) for r in rows]
        prefixes, rules = [r.prefix for r in rows], rules_of(rows, prompts)
        reading = read_prompts(tiny_backbone, prompts, prefixes=prefixes, rules=rules)
        bare = read_prompts(tiny_backbone, prompts, prefixes=prefixes)
        assert torch.equal(reading.logits[1], bare.logits[1])
        assert reading.logits.isfinite().all()
        assert (int(reading.logits[0].argmax()) == token) == (bias > 0)
        together = answer_batch(tiny_backbone, rows, prompts, 4)
        assert together[0] == answer_batch(tiny_backbone, [again], prompts[:1], 4)[0]
        first[bias] = together[0]
    assert first[-1.0] != first[1.0]


WORDS = st.lists(st.sampled_from(["pump", "repairs", "Turin", "warranty", "the"]), max_size=40)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_coverage_is_a_share_that_more_passages_only_raise(
    asked: list[str], texts: list[list[str]]
) -> None:
    passages = [Passage(str(i), " ".join(words)) for i, words in enumerate(texts)]
    shares = [coverage(" ".join(asked), passages[:n]) for n in range(len(passages) + 1)]
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)


def test_words_far_apart_cover_less_than_words_together() -> None:
    far = Passage("a", "The pump " + "hums along " * 40 + "till Ann repairs it.")
    near = Passage("a", "hums along " * 40 + "and Ann repairs the pump.")
    question = "Of repairs to the pump"
    assert coverage(question, [near]) == 1.0
    assert coverage(question, [far]) == 0.5
    assert coverage(question, [Passage("a", "Repairs.", "Pump")]) == 1.0
    assert coverage(question, []) == coverage("the ?", [near]) == 0.0


def test_what_logits_tell_is_of_the_refusal_and_of_the_others_apart() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [0.0, 5.0, 1.0]], dtype=torch.float64)
    others = logits[:, 1:]
    own = logits[:, 0] - others.exp().sum(-1).log()
    expected = torch.stack([own, torch.log_softmax(others, -1).amax(-1)], -1)
    torch.testing.assert_close(doubts(logits, 0).double(), expected, atol=1e-5, rtol=0)


def test_a_model_that_would_refuse_is_let() -> None:
    rule = RefusalRule(1.0, 0.0, 0.0, -3.0, 0)  # where it is sure enough of it
    logits = torch.tensor([[3.0, 1.0, 0.0], [6.0, 1.0, 0.0]])
    assert [int(row.argmax()) for row in decided(logits, [rule, rule])] == [1, 0]


def test_each_row_is_decided_by_its_own_rule_and_prompt() -> None:
    rule = RefusalRule(0.0, 0.0, -2.0, 1.0, 0)
    covered = Prompt((1,), 0, 0, (Passage("a", "pumps hum"),), "pumps?")
    prompts = [covered, replace(covered, question="valves?"), covered]
    rules = rules_of([Adapted(rule=rule), Adapted(rule=rule), Adapted()], prompts)
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    found = decided(logits, rules)
    assert [int(row.argmax()) for row in found] == [2, 0, 2]
    assert torch.equal(found[2], logits[2])
    assert found.isfinite().all()


def test_what_is_unsure_is_refused() -> None:
    rule = RefusalRule(0.0, -5.0, 0.0, -3.0, 0)  # log 1/2 is too little
    flat, sharp = torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([[0.0, 1.0, 9.0]])
    assert int(decided(flat, [rule]).argmax()) == 0
    assert int(decided(sharp, [rule]).argmax()) == 2
    assert int(decided(flat, [replace(rule, bias=-5.0)]).argmax()) != 0


def test_a_file_comes_back_and_belongs_to_one_step(tmp_path: Path) -> None:
    rule, path = RefusalRule(0.75, -0.5, -1.5, 0.25, 17), tmp_path / "refusals.safetensors"
    rule.save(path, "abc")
    assert load_rule(path, "abc") == rule
    assert rule.fingerprint != replace(rule, bias=0.5).fingerprint
    with pytest.raises(RaggdError, match="under step abc, but the one in use is other"):
        load_rule(path, "other")
    path.write_bytes(random.Random(0).randbytes(50))
    with pytest.raises(RaggdError, match="truncated or damaged"):
        load_rule(path, "abc")
