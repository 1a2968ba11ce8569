"""The methods on a tiny backbone: what each adapts to, and answering rows that differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from raggd.adaptation.predictors.base import MLPPredictor, mean_predictor
from raggd.adaptation.soft_prefix import SoftPrefix
from raggd.adaptation.targets import encode_supports, targets_of
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.prompts import Prompt
from raggd.methods import answering
from raggd.methods.answering import (
    adapted_rows,
    answer_batch,
    answer_rows,
    render,
    shared_opening,
)
from raggd.methods.base import Adapted, Method
from raggd.methods.plain import Unadapted
from raggd.methods.predicted import PredictedUpdate, TestTimeSGD
from raggd.records import Passage, RaggdError, SupportSet
from raggd.settings import TargetSettings

SGD = TargetSettings(steps=3, learning_rate=0.05, demonstrations=2, max_tokens=200)
PASSAGES = (Passage("1", "the river flows west .", "Lima"), Passage("2", "the sea is salt ."))
QUESTIONS = ("where is the river ?", "who is the old king of Peru ?", "what is salt ?")


@pytest.fixture
def rag_gd(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> PredictedUpdate:
    """RAG-GD with a random head, so that every support set gets another large update."""
    predictor = MLPPredictor(base.spec, base.fingerprint, 32, hidden=8, latent=4)
    states = encode_supports(tiny_backbone, base, supports, 200)
    vectors = torch.stack([tiny.random_update(base, seed=i).vector() for i in range(3)])
    predictor.fit_units(states, vectors, 0)
    with torch.no_grad():
        predictor.head.normal_(generator=torch.Generator().manual_seed(0))
    return PredictedUpdate("rag-gd", tiny_backbone, base, predictor, 200, "hash")


@pytest.fixture
def mean_update(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> Unadapted:
    vectors, _ = targets_of(tiny_backbone, base, supports, SGD)
    vectors = vectors[SGD.steps]
    mean = mean_predictor(base.spec, base.fingerprint, vectors.vector())
    update = mean.predict(torch.zeros(1, 1, 1)).row(0)
    hashes = {"base": base.fingerprint, "predictor": "hash"}
    return Unadapted("mean-update", Adapted(base, update), hashes)


@pytest.fixture
def methods(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    rag_gd: PredictedUpdate,
    mean_update: Unadapted,
) -> list[Method]:
    plain: list[Method] = [tiny.query_only(), tiny.vanilla_rag(), tiny.base_only(base)]
    return [*plain, TestTimeSGD(tiny_backbone, base, SGD), mean_update, rag_gd]


def test_each_method_gives_one_adapted_model_per_support(
    methods: list[Method], supports: list[SupportSet]
) -> None:
    assert [m.name for m in methods] == [
        "query-only", "vanilla-rag", "base", "tt-sgd", "mean-update", "rag-gd",
    ]  # fmt: skip
    for method in methods:
        for count in (1, 3):
            adapted = method.adapt(supports[:count])
            assert len(adapted) == count
            updates = method.name in {"tt-sgd", "mean-update", "rag-gd"}
            assert all((a.update is not None) == updates for a in adapted)
            assert method.adapts == (method.name in {"tt-sgd", "rag-gd"})
            assert all(a.update is None or a.update.rows is None for a in adapted)
            assert all(a.reads_evidence == (method.name != "query-only") for a in adapted)


def test_which_weights_a_method_uses(methods: list[Method], base: BaseAdapter) -> None:
    hashes = {m.name: m.hashes for m in methods}
    own = {"base": base.fingerprint}
    assert hashes["query-only"] == hashes["vanilla-rag"] == {}
    assert hashes["base"] == hashes["tt-sgd"] == own
    assert hashes["rag-gd"] == hashes["mean-update"] == {**own, "predictor": "hash"}


def test_adapting_to_several_sets_is_adapting_to_each(
    methods: list[Method], supports: list[SupportSet]
) -> None:
    for method in methods[3:]:
        together = method.adapt(supports)
        vectors = [a.update.vector() for a in together if a.update is not None]
        assert torch.equal(vectors[0], vectors[1]) == (method.name == "mean-update")
        for support, vector in zip(supports, vectors, strict=True):
            alone = method.adapt([support])[0].update
            assert alone is not None
            size = float(vector.abs().max())
            assert float((alone.vector() - vector).abs().max()) < 1e-3 * size, method.name


def test_test_time_sgd_makes_the_targets_of_the_store(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]
) -> None:
    adapted = TestTimeSGD(tiny_backbone, base, SGD).adapt(supports)
    wanted, _ = targets_of(tiny_backbone, base, supports, SGD)
    wanted = wanted[SGD.steps]
    for row, own in enumerate(adapted):
        assert own.update is not None
        assert torch.equal(own.update.vector(), wanted.row(row).vector())
    assert not TestTimeSGD.__test__


def test_sets_of_different_sizes_are_refused(
    methods: list[Method], supports: list[SupportSet]
) -> None:
    shown = [d for s in supports for d in s.demonstrations]
    uneven = [SupportSet("nq", tuple(shown[:1])), SupportSet("nq", tuple(shown[1:4]))]
    for method in methods:
        if method.name in {"tt-sgd", "rag-gd"}:
            with pytest.raises(RaggdError, match="one size"):
                method.adapt(uneven)
        else:  # these do not read the sets
            assert len(method.adapt(uneven)) == 2


def test_a_predictor_of_another_base_is_refused_at_once(
    rag_gd: PredictedUpdate, tiny_backbone: Backbone
) -> None:
    other = tiny.random_base(tiny_backbone, seed=77)
    with pytest.raises(RaggdError, match=f"{rag_gd.base.fingerprint}.*{other.fingerprint}"):
        replace(rag_gd, base=other)


def test_prompts_show_what_the_method_reads(
    tiny_backbone: Backbone, supports: list[SupportSet]
) -> None:
    def text(adapted: Adapted, answer: str | None = None) -> str:
        prompt = render(
            tiny_backbone, adapted, "who is the king ?", PASSAGES, limit=300, answer=answer
        )
        return " ".join(tiny_backbone.tokenizer.decode(prompt.tokens).split())

    assert "the river flows west" in text(Adapted())
    assert "the river flows west" not in text(Adapted(reads_evidence=False))
    few = text(Adapted(shown=supports[0].demonstrations), "Rome")
    assert few.index("capital of Peru") < few.index("the river flows west")
    assert few.endswith("<assistant> Rome </s>")


def rows_and_prompts(
    backbone: Backbone, adapted: Sequence[Adapted], answer: str | None = None
) -> list[Prompt]:
    return [
        render(backbone, a, QUESTIONS[i % 3], PASSAGES, limit=300, answer=answer)
        for i, a in enumerate(adapted)
    ]


def test_rows_of_a_batch_are_answered_as_alone(
    tiny_backbone: Backbone, methods: list[Method], supports: list[SupportSet]
) -> None:
    """Three support sets of RAG-GD, TT-SGD and the bare base, all in one batch."""
    _, _, base, sgd, _, rag_gd = methods
    rows = [*rag_gd.adapt(supports), *sgd.adapt(supports), *base.adapt(supports)]
    prompts = rows_and_prompts(tiny_backbone, rows)
    together = answer_batch(tiny_backbone, rows, prompts, 6)
    alone = [
        answer_batch(tiny_backbone, [row], [prompt], 6)[0]
        for row, prompt in zip(rows, prompts, strict=True)
    ]
    unadapted = answer_batch(tiny_backbone, base.adapt(supports) * 3, prompts, 6)
    assert together == alone
    assert together[6:] == unadapted[6:]
    assert sum(a != b for a, b in zip(together[:6], unadapted[:6], strict=True)) >= 4

    answered = rows_and_prompts(tiny_backbone, rows, "the old king")
    losses = tiny.losses_of(tiny_backbone, rows, answered)
    one_by_one = torch.cat(
        [tiny.losses_of(tiny_backbone, [r], [p]) for r, p in zip(rows, answered, strict=True)]
    )
    assert float(losses.std()) > 0.05
    torch.testing.assert_close(losses, one_by_one, atol=1e-5, rtol=1e-5)
    assert not losses.requires_grad


def test_the_time_of_answering_leaves_out_the_scoring(
    tiny_backbone: Backbone, base: BaseAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for name in ("attach", "read_prompts", "decode", "score"):
        original = getattr(answering, name)

        def spy(*given: Any, name: str = name, original: Any = original, **more: Any) -> Any:
            events.append(name)
            return original(*given, **more)

        monkeypatch.setattr(answering, name, spy)

    @contextmanager
    def timed() -> Iterator[None]:
        events.append("start")
        yield
        events.append("stop")

    rows = [Adapted(base)] * 3
    prompts = rows_and_prompts(tiny_backbone, rows)
    golds = ["Rome", "the old king", "Lima"]
    answers, losses = answer_rows(tiny_backbone, rows, prompts, 4, golds=golds, timed=timed)
    assert events == ["start", "attach", "read_prompts", "decode", "stop", "score"]
    assert answers == answer_batch(tiny_backbone, rows, prompts, 4)
    assert losses is not None
    answered = [
        render(tiny_backbone, row, QUESTIONS[i], PASSAGES, limit=300, answer=golds[i])
        for i, row in enumerate(rows)
    ]
    wanted = tiny.losses_of(tiny_backbone, rows, answered)
    torch.testing.assert_close(losses, wanted, atol=1e-5, rtol=1e-5)
    assert answer_rows(tiny_backbone, rows, prompts, 4)[1] is None


def test_a_soft_prefix_answers_and_scores_as_if_it_were_words(tiny_backbone: Backbone) -> None:
    """The embeddings of the prompt's own first words, taken off its tokens."""
    words = 4
    prompts = rows_and_prompts(tiny_backbone, [Adapted()] * 3)
    opening = torch.tensor(prompts[0].tokens[:words])
    vectors = tiny_backbone.model.get_input_embeddings()(opening).detach()
    cut = [replace(p, tokens=p.tokens[words:]) for p in prompts]
    row = Adapted(soft=SoftPrefix(vectors, tiny_backbone.fingerprint))
    golds = ["Rome", "the old king", "Lima"]
    answers, losses = answer_rows(tiny_backbone, [row] * 3, cut, 6, golds=golds)
    wanted, wanted_losses = answer_rows(tiny_backbone, [Adapted()] * 3, prompts, 6, golds=golds)
    others, other_losses = answer_rows(tiny_backbone, [Adapted()] * 3, cut, 6, golds=golds)
    assert answers != others
    assert answers == wanted
    assert losses is not None
    assert wanted_losses is not None
    assert other_losses is not None
    assert not torch.allclose(losses, other_losses, atol=1e-3)
    torch.testing.assert_close(losses, wanted_losses, atol=1e-5, rtol=1e-5)
    assert shared_opening(tiny_backbone, row, [Prompt((5,) * 200, 0, 0)] * 2) is None


def test_batches_that_mix_soft_prefixes_are_refused(tiny_backbone: Backbone) -> None:
    prefix = SoftPrefix(torch.zeros(2, 32), tiny_backbone.fingerprint)
    prompts = [Prompt((1, 7, 8), 0, 0)] * 2
    for rows in ([Adapted(soft=prefix), Adapted()], [Adapted(), Adapted(soft=prefix)]):
        with pytest.raises(RaggdError, match="mixes rows of different soft prefixes"):
            answer_batch(tiny_backbone, rows, prompts, 2)
    foreign = Adapted(soft=SoftPrefix(torch.zeros(2, 32), "another"))
    with pytest.raises(RaggdError, match="made for backbone another"):
        answer_batch(tiny_backbone, [foreign] * 2, prompts, 2)
    assert tiny.hooks_of(tiny_backbone) == 0


def test_one_prompt_is_answered_differently_by_different_supports(
    tiny_backbone: Backbone, rag_gd: PredictedUpdate, supports: list[SupportSet]
) -> None:
    rows = rag_gd.adapt(supports)
    prompts = [render(tiny_backbone, rows[0], QUESTIONS[0], PASSAGES, limit=300)] * 3
    assert len(set(answer_batch(tiny_backbone, rows, prompts, 6))) == 3


def test_rows_that_share_an_update_are_not_stacked(
    tiny_backbone: Backbone,
    rag_gd: PredictedUpdate,
    supports: list[SupportSet],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One update for the task costs as much as one, and gives the same losses."""
    row = rag_gd.adapt(supports[:1])[0]
    assert row.update is not None
    copy = replace(row, update=row.update * 1.0)
    prompts = rows_and_prompts(tiny_backbone, [row] * 3, "Rome")
    stacked = tiny.losses_of(tiny_backbone, [row, copy, row], prompts)

    def fail(_: object) -> None:
        raise AssertionError("stacked")

    monkeypatch.setattr("raggd.methods.answering.stack_updates", fail)
    shared = tiny.losses_of(tiny_backbone, [row] * 3, prompts)
    torch.testing.assert_close(shared, stacked, atol=1e-5, rtol=1e-5)
    with pytest.raises(AssertionError, match="stacked"):
        tiny.losses_of(tiny_backbone, [row, copy, row], prompts)


def test_batches_that_mix_bases_are_refused(tiny_backbone: Backbone, base: BaseAdapter) -> None:
    other = tiny.random_base(tiny_backbone, seed=55)
    update = tiny.random_update(base)
    mixed = [
        [Adapted(base), Adapted(other)],
        [Adapted(base), Adapted()],
        [Adapted(), Adapted(base, update)],
    ]
    for rows in mixed:
        with pytest.raises(RaggdError, match="mixes rows of different base adapters"):
            adapted_rows(tiny_backbone, rows).__enter__()
    for rows in ([Adapted(None, update)], [Adapted(None, update), Adapted()]):
        with pytest.raises(RaggdError, match="needs the base adapter"):
            adapted_rows(tiny_backbone, rows).__enter__()
    foreign = tiny.random_update(other)
    for rows in ([Adapted(base, foreign)] * 2, [Adapted(base, foreign), Adapted(base, update)]):
        with pytest.raises(RaggdError, match=r"base"):
            adapted_rows(tiny_backbone, rows).__enter__()
    assert tiny.hooks_of(tiny_backbone) == 0
