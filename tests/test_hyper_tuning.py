"""HyperTuning: which lessons it is given, what it learns, and that it resumes bitwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from raggd.adaptation import optimizer
from raggd.adaptation.optimizer import Session
from raggd.adaptation.predictors.base import MLPPredictor
from raggd.adaptation.targets import Targets, answered_prompt, encode_supports
from raggd.adaptation.training import fresh_predictor, plan_lessons, train_hyper
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, tensors_of
from raggd.data.prompts import Prompt
from raggd.records import Question, RaggdError, SupportSet
from raggd.settings import HyperTuningSettings, PredictorSettings, TrainingSettings

TRAINING = HyperTuningSettings(steps=6, batch=2, learning_rate=0.02)
SIZES = PredictorSettings(latent=4)


@pytest.fixture
def targets(tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet]) -> Targets:
    """A store of three sets, with updates that are only of the right size."""
    vectors = [tiny.random_update(base, seed=i, size=0.05).vector() for i in range(3)]
    return Targets(
        vectors=torch.stack(vectors).bfloat16(),
        states=encode_supports(tiny_backbone, base, supports, 200),
        tasks=tuple(s.task for s in supports),
        support_ids=tuple(s.id for s in supports),
        demonstration_ids=tuple(tuple(d.id for d in s.demonstrations) for s in supports),
        base=base.fingerprint,
        identity="store",
    )


@pytest.fixture
def lessons(tiny_backbone: Backbone, supports: list[SupportSet]) -> list[tuple[int, Prompt]]:
    """Twelve rows: each set is asked the demonstrations of the others."""
    shown = [
        (number, d)
        for number in range(3)
        for other in (s for i, s in enumerate(supports) if i != number)
        for d in other.demonstrations
    ]
    return [(n, answered_prompt(tiny_backbone.tokenizer, d, 200)) for n, d in shown]


def pool(task: str, count: int) -> list[Question]:
    return [Question(f"{task}:{i}", f"q{i}", ("a",), task) for i in range(count)]


def test_lessons_ask_another_question_of_the_same_task(targets: Targets) -> None:
    own = ("nq:0", "nq:1"), ("nq:2", "nq:3"), ("trivia:0", "trivia:1")
    store = replace(targets, demonstration_ids=own)
    pools = {"nq": pool("nq", 4), "trivia": pool("trivia", 3)}
    settings = HyperTuningSettings(steps=15, batch=4)
    plan = plan_lessons(store, pools, settings)
    assert len(plan) == 60
    assert Counter(support for support, _ in plan) == {0: 20, 1: 20, 2: 20}
    for support, question in plan:
        assert question.task == store.tasks[support]
        assert question.id not in own[support]
    assert {question.id for support, question in plan if support == 0} == {"nq:2", "nq:3"}
    assert plan_lessons(store, pools, settings) == plan
    assert plan_lessons(store, pools, settings, TrainingSettings(seed=1)) != plan
    with pytest.raises(RaggdError, match=r"'trivia'.*no further training question"):
        plan_lessons(store, {"nq": pool("nq", 4), "trivia": pool("trivia", 2)}, settings)


class CountedPool(list[Question]):
    """A pool that knows how often somebody went through it."""

    walks = 0

    def __iter__(self) -> Iterator[Question]:
        self.walks += 1
        return super().__iter__()


@given(st.integers(3, 30), st.integers(0, 2**16), st.integers(1, 2))
def test_lessons_are_those_of_the_filtered_pool(size: int, seed: int, own: int) -> None:
    pools = {"nq": CountedPool(Question(f"nq:{i}", "?", ("a",), "nq") for i in range(size))}
    shown = tuple(f"nq:{(7 * i) % size}" for i in range(own))
    store = Targets(torch.zeros(1, 1), torch.zeros(1, 1, 1), ("nq",), ("s",), (shown,), "b", "i")
    settings = TRAINING.model_copy(update={"steps": 20})
    lessons = plan_lessons(store, pools, settings, TrainingSettings(seed=seed))
    assert pools["nq"].walks == 1  # once for all lessons
    rest = [q for q in pools["nq"] if q.id not in shown]
    for number, (_, question) in enumerate(lessons):
        choice = np.random.default_rng([seed, 1, number])
        assert question == rest[int(choice.integers(len(rest)))]


def train(
    backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    checkpoint: Path,
    settings: HyperTuningSettings = TRAINING,
    stop: int = 0,
) -> tuple[MLPPredictor, list[float]]:
    def progress(_: str, step: int, __: int | None) -> None:
        if step == stop:
            raise KeyboardInterrupt

    session = Session(settings, checkpoint, progress=progress)
    return train_hyper(backbone, base, targets, lessons, SIZES, session)


def test_an_untrained_predictor_is_the_base(base: BaseAdapter, targets: Targets) -> None:
    predictor = fresh_predictor(base, targets, SIZES.latent, 0)
    assert not predictor.predict(targets.states).vector().any()
    assert predictor.scales.min() > 1e-3, "in the units of the targets"


def losses(
    backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    predictor: MLPPredictor,
) -> torch.Tensor:
    batch = make_batch([p for _, p in lessons], backbone)
    update = predictor.predict(targets.states[[n for n, _ in lessons]])
    with torch.no_grad(), attach(backbone, base, update):
        return answer_losses(backbone, batch)


def test_training_lowers_the_answer_loss_and_leaves_the_rest_alone(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    tmp_path: Path,
) -> None:
    weights = {n: p.clone() for n, p in tiny_backbone.model.named_parameters()}
    factors = {n: t.clone() for n, t in tensors_of(base.factors).items()}
    settings = TRAINING.model_copy(update={"steps": 30, "learning_rate": 0.03, "batch": 4})
    many = (lessons * 10)[:120]
    trained, history = train(tiny_backbone, base, targets, many, tmp_path / "c", settings)
    start = fresh_predictor(base, targets, SIZES.latent, 0)
    before = losses(tiny_backbone, base, targets, lessons, start)
    after = losses(tiny_backbone, base, targets, lessons, trained)
    assert float(after.mean()) < float(before.mean()) - 0.3
    assert len(history) == 30
    rows = trained.predict(targets.states).vector()
    assert not torch.allclose(rows[0], rows[2]), "it reads its support set"
    assert all(not p.requires_grad for p in trained.parameters())
    for name, parameter in tiny_backbone.model.named_parameters():
        assert torch.equal(parameter, weights[name])
        assert parameter.grad is None
    for name, tensor in tensors_of(base.factors).items():
        assert torch.equal(tensor, factors[name])


def test_a_step_has_the_gradient_of_its_rows(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    tmp_path: Path,
) -> None:
    """One step of two rows, written out row by row with each row's own update."""
    settings = TRAINING.model_copy(update={"steps": 1})
    pair = [lessons[0], lessons[-1]]
    assert pair[0][0] != pair[1][0]
    trained, (loss,) = train(tiny_backbone, base, targets, pair, tmp_path / "c", settings)
    by_hand = fresh_predictor(base, targets, SIZES.latent, 0)
    total = torch.zeros(())
    for number, prompt in pair:
        update = by_hand(targets.states[[number]])
        with attach(tiny_backbone, base, update):
            batch = make_batch([prompt], tiny_backbone)
            total = total + answer_losses(tiny_backbone, batch)[0] / 2
    assert loss == pytest.approx(float(total.detach()), rel=1e-5)
    total.backward()
    torch.nn.utils.clip_grad_norm_(list(by_hand.parameters()), 1.0)
    adam = torch.optim.AdamW(by_hand.parameters(), settings.learning_rate, weight_decay=0.01)
    adam.step()
    moved = by_hand.predict(targets.states).vector()
    assert moved.abs().max() > 1e-3
    torch.testing.assert_close(
        trained.predict(targets.states).vector(), moved, atol=2e-4, rtol=1e-3
    )


@pytest.mark.parametrize("stop", [1, 4])
def test_training_that_was_stopped_continues_bitwise(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    whole, history = train(tiny_backbone, base, targets, lessons, tmp_path / "w")
    monkeypatch.setattr(optimizer, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_backbone, base, targets, lessons, tmp_path / "c", stop=stop)
    resumed, again = train(tiny_backbone, base, targets, lessons, tmp_path / "c")
    assert again == history
    known = whole.state_dict()
    assert all(torch.equal(t, known[n]) for n, t in resumed.state_dict().items())
    with pytest.raises(RaggdError, match="belongs to another run"):
        train(tiny_backbone, base, targets, lessons[::-1], tmp_path / "c")
    other = TRAINING.model_copy(update={"learning_rate": 0.01})
    with pytest.raises(RaggdError, match="belongs to another run"):
        train(tiny_backbone, base, targets, lessons, tmp_path / "c", other)


def test_targets_of_another_base_are_refused(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    targets: Targets,
    lessons: list[tuple[int, Prompt]],
    tmp_path: Path,
) -> None:
    foreign = replace(targets, base="0123456789abcdef")
    with pytest.raises(RaggdError, match=f"0123456789abcdef.*{base.fingerprint}"):
        train(tiny_backbone, base, foreign, lessons, tmp_path / "c")
