"""The probe that decides whether to refuse: what it fits, what it decides, where it goes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from raggd.adaptation.refusing import area_under, fit_probe, logistic, refusal_lessons
from raggd.backbone.generate import read_prompts
from raggd.backbone.load import Backbone
from raggd.backbone.refusal import RefusalProbe, layer_states, load_probe
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt, answer_tokens
from raggd.data.template import REFUSAL
from raggd.methods.answering import answer_batch, answer_rows, render
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.store import Store
from raggd.records import Demonstration, Passage, RaggdError, SupportSet
from workflow_fixtures import prepared_row

ROWS = [prepared_row(i) for i in range(60)]


def _states(seed: int, shift: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    wanted = torch.rand(240, generator=generator) < 0.5
    states = torch.randn(240, 12, generator=generator)
    states[:, 3] += shift * wanted
    return 5 * states + 2, wanted


def test_a_probe_finds_the_layer_that_tells() -> None:
    silent, wanted = _states(0, 0.0)
    told, same = _states(0, 3.0)
    assert torch.equal(wanted, same)
    fitted = fit_probe({4: silent, 7: told, 9: silent}, wanted, token=1)
    assert fitted.probe.layer == 7
    assert fitted.area > 0.9
    assert fitted.recall > 0.7
    assert fitted.wrongly == pytest.approx(0.2, abs=0.02)
    fresh, asked = _states(1, 3.0)
    refused = fitted.probe.scores(fresh) > 0
    assert refused[asked].double().mean() > 0.6
    assert refused[~asked].double().mean() < 0.35
    blind = fit_probe({4: silent}, wanted, token=1)
    assert blind.area < 0.65, "states that say nothing must not seem to"


def test_the_fit_is_the_minimum_in_float64() -> None:
    states, wanted = _states(2, 1.0)
    weights, bias = logistic(states, wanted)
    unit = (states.double() - states.double().mean(0)) / (states.double().std(0) + 1e-6)
    odds = states.double() @ weights + bias
    slopes = weights * (states.double().std(0) + 1e-6)
    gradient = unit.mT @ (odds.sigmoid() - wanted.double()) / len(wanted) + 2 * 0.3 * slopes
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


def _probe(backbone: Backbone, bias: float) -> RefusalProbe:
    width = backbone.model.config.hidden_size
    token = answer_tokens(backbone.tokenizer, REFUSAL)[0]
    return RefusalProbe(1, torch.zeros(width), bias, token)


def test_it_decides_alone_in_a_batch_from_the_store_and_only_where_a_refusal_is_shown(
    tiny_backbone: Backbone, base: BaseAdapter, refusing: SupportSet, tmp_path: Path
) -> None:
    plain = replace(refusing, demonstrations=refusing.demonstrations[::2])
    question, passages = "where is the king", refusing.demonstrations[0].passages
    token = _probe(tiny_backbone, 0).token
    first = {}
    for bias in (-1.0, 1.0):
        method = ExamplesPrefix(
            "examples", tiny_backbone, base, tiny.random_update(base), 300, "w",
            probe=_probe(tiny_backbone, bias),
        )  # fmt: skip
        rows = [Store(tmp_path).adapt(method, [s], "i", base)[0] for s in (refusing, plain)]
        again = Store(tmp_path).adapt(method, [refusing], "i", base)[0]
        assert rows[0].probe
        assert again.probe
        assert rows[1].probe is None
        prompts = [render(tiny_backbone, r, question, passages, limit=400) for r in rows]
        prefixes, probes = [r.prefix for r in rows], [r.probe for r in rows]
        reading = read_prompts(tiny_backbone, prompts, prefixes=prefixes, probes=probes)
        bare = read_prompts(tiny_backbone, prompts, prefixes=prefixes)
        assert torch.equal(reading.logits[1], bare.logits[1])
        assert reading.logits.isfinite().all()
        assert (int(reading.logits[0].argmax()) == token) == (bias > 0)
        together = answer_batch(tiny_backbone, rows, prompts, 4)
        assert together[0] == answer_batch(tiny_backbone, [again], prompts[:1], 4)[0]
        first[bias] = together[0]
    assert first[-1.0] != first[1.0]


def test_the_state_is_that_of_the_last_token(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    kept = []
    method = ExamplesPrefix("examples", tiny_backbone, base, None, 300)
    support = SupportSet("t", (Demonstration("a", "what", (), "fish"),))
    (row,) = method.adapt([support])
    prompts = [
        render(tiny_backbone, row, question, (), limit=300)
        for question in ("who is the king", "what eats the big red fish near the sea")
    ]
    for batch in ([prompts[0]], prompts):
        with layer_states(tiny_backbone, [1]) as states:
            answer_rows(tiny_backbone, [row] * len(batch), batch, 1)
        kept.append(states[1][0])
    torch.testing.assert_close(kept[0], kept[1], atol=1e-4, rtol=1e-4)


def test_a_file_comes_back_and_belongs_to_one_step(tmp_path: Path) -> None:
    probe = RefusalProbe(3, torch.randn(8, generator=torch.Generator().manual_seed(1)), -0.25, 17)
    path = tmp_path / "refusals.safetensors"
    probe.save(path, "abc")
    found = load_probe(path, "abc")
    assert torch.equal(found.weight, probe.weight)
    assert (found.layer, found.bias, found.token) == (3, -0.25, 17)
    with pytest.raises(RaggdError, match="under step abc, but the one in use is other"):
        load_probe(path, "other")
    path.write_bytes(random.Random(0).randbytes(50))
    with pytest.raises(RaggdError, match="truncated or damaged"):
        load_probe(path, "abc")


def test_each_row_is_decided_by_the_layer_of_its_own_probe(tiny_backbone: Backbone) -> None:
    token = answer_tokens(tiny_backbone.tokenizer, REFUSAL)[0]
    prompt = Prompt(tuple(tiny_backbone.tokenizer.encode("what eats the big fish ?")), 0, 0)
    with layer_states(tiny_backbone, [0, 2]) as states:
        read_prompts(tiny_backbone, [prompt])
    ends = {layer: found[0] / found[0].norm() for layer, found in states.items()}
    apart = ends[0] - ends[2]  # positive on the one, negative on the other
    probes = [RefusalProbe(layer, apart, 0.0, token) for layer in (0, 2)]
    firsts = read_prompts(tiny_backbone, [prompt, prompt], probes=probes).logits.argmax(-1)
    assert [int(first) == token for first in firsts] == [True, False]
    assert probes[0].fingerprint != probes[1].fingerprint
    same = RefusalProbe(0, apart.clone(), 0.0, token)
    assert same.fingerprint == probes[0].fingerprint != replace(same, weight=-apart).fingerprint
