"""An update from the support set: predicted in one pass, or TT-SGD's K gradient steps.

Controls predict as RAG-GD does, from other demonstrations, or answer from other passages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from raggd.adaptation.predictors.base import Predictor, check_predictor
from raggd.adaptation.predictors.gate import Gate, load_gate
from raggd.adaptation.targets import draw_supports, encode_supports, sgd_updates, support_batch
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update
from raggd.data.benchmarks import files_in, support_pool
from raggd.methods.base import Adapted, Control, Item
from raggd.methods.spec import FILES_OF, SPECS, Parts, weight_file, weights_hash
from raggd.records import Passage, RaggdError, SupportSet, content_id
from raggd.retrieval.evidence import is_answerable, make_demonstrations
from raggd.settings import TargetSettings

DRAWS = 8  # support sets of each other task that a control chooses one from


@dataclass(frozen=True, slots=True)
class PredictedUpdate:
    """Adapts by a predictor of a file, once for each support set."""

    name: str
    backbone: Backbone
    base: BaseAdapter
    predictor: Predictor
    limit: int  # most tokens per demonstration
    weights: str
    scale: float = 1.0  # a factor of the update's steps
    gate: Gate | None = None  # chooses another for each support set

    adapts = True

    def __post_init__(self) -> None:
        check_predictor(self.predictor, self.base)

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter, hash of the predictor's file, a scale if not 1."""
        hashes = {"base": self.base.fingerprint, "predictor": self.weights}
        return hashes if self.scale == 1 else hashes | {"scale": str(self.scale)}

    @torch.no_grad()
    def predict(self, supports: Sequence[SupportSet]) -> Update:
        """Encode sets of equal size and predict, in one pass (Algorithm 1, lines 1-4)."""
        states = encode_supports(self.backbone, self.base, supports, self.limit)
        updates = self.predictor.predict(states)
        updates = self.gate.scaled(updates, states) if self.gate else updates
        return updates if self.scale == 1 else updates * self.scale

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict the updates of all sets, of equal size, in one forward pass."""
        updates = self.predict(supports)
        return [Adapted(self.base, updates.row(i)) for i in range(len(supports))]


def build(parts: Parts, name: str, scale: float = 1.0) -> PredictedUpdate:
    """Return a method of the predictor in the second of its files."""
    file = FILES_OF[name][1]
    return PredictedUpdate(
        name=name,
        backbone=parts.backbone,
        base=parts.base,
        predictor=parts.predictor(file),
        limit=parts.settings.target.max_tokens,
        weights=weights_hash(parts.weights / file),
        scale=scale,
    )


def build_gated(parts: Parts, name: str) -> PredictedUpdate:
    """Return a method with the gate in the third of its files."""
    plain = build(parts, name)
    path = weight_file(parts.weights, FILES_OF[name][2])
    gate = load_gate(path, plain.weights, parts.backbone.device)
    return replace(plain, gate=gate, weights=f"{plain.weights}-{weights_hash(path)}")


@dataclass(frozen=True, slots=True)
class TestTimeSGD:
    """Makes K SGD steps on the demonstrations, from the base adapter or from a predicted update."""

    backbone: Backbone
    base: BaseAdapter
    settings: TargetSettings
    name: str = "tt-sgd"
    start: PredictedUpdate | None = None

    adapts = True
    __test__ = False  # not a pytest class, whatever its name

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter, and what the predictor is made of."""
        return self.start.hashes if self.start else {"base": self.base.fingerprint}

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Run the inner loop, all sets, of equal size, in one batch."""
        batch = support_batch(self.backbone, supports, self.settings.max_tokens)
        start = self.start.predict(supports) if self.start else None
        sets, settings = len(supports), self.settings
        reached = sgd_updates(self.backbone, self.base, batch, sets, settings, start)
        updates = reached[settings.steps]
        return [Adapted(self.base, updates.row(i)) for i in range(sets)]


def build_sgd(parts: Parts, name: str) -> TestTimeSGD:
    """Return a method of as many steps as its row says, from what it predicts if it predicts."""
    settings, spec = parts.settings.target, SPECS[name]
    steps = spec.gradient_steps or settings.steps
    settings = settings.model_copy(update={"steps": steps, "keep": []})
    start = build(parts, name) if spec.encoded else None
    return TestTimeSGD(parts.backbone, parts.base, settings, name, start)


def other_support(support: SupportSet, parts: Parts) -> SupportSet:
    """Choose a support set of another task, as large, by a hash of the given one."""
    source, settings = parts.source, parts.settings
    tasks = [task for task in files_in(source) if task != support.task]
    if not tasks:
        raise RaggdError(
            "method 'shuffled-support' needs demonstrations of another task than "
            f"'{support.task}', but {source} holds no other benchmark."
        )
    number = int(content_id("shuffled", support.id), 16)
    task, draw = tasks[number % len(tasks)], number // len(tasks) % DRAWS
    pool, size = support_pool(source, task), len(support.demonstrations)
    sets = draw_supports(pool, size, DRAWS, settings.evaluation.seed, purpose="evaluation")
    shown = make_demonstrations(sets[draw], parts.retriever, settings.retrieval.top_k)
    return SupportSet(task, tuple(shown))


def with_supports(items: Sequence[Item], choose: Callable[[SupportSet], SupportSet]) -> list[Item]:
    """Give every question another support set than its own, chosen once for each."""
    own = {item.support.id: item.support for item in items}
    others = {name: choose(support) for name, support in own.items()}
    return [replace(item, support=others[item.support.id]) for item in items]


def other_passages(items: Sequence[Item], number: int) -> tuple[Passage, ...]:
    """Find the passages of the nearest question after it that shares none; refused without any."""
    own = items[number]
    known = {passage.id for passage in own.passages}
    others = (*items[number + 1 :], *items[:number])
    fresh = [o for o in others if known.isdisjoint(passage.id for passage in o.passages)]
    if fresh:
        # an answer that all of them hold is so common (a "no") that holding it says nothing
        silent = (o for o in fresh if not is_answerable(own.question, o.passages))
        return next(silent, fresh[0]).passages
    raise RaggdError(
        f"method 'irrelevant-passages' found no other question whose passages could stand in for "
        f"those of '{own.question.id}' among {len(items)}: raise evaluation.questions or lower "
        "evaluation.draws."
    )


def with_other_passages(items: Sequence[Item]) -> list[Item]:
    """Give every question the passages of another one; the demonstrations keep theirs."""
    return [replace(item, passages=other_passages(items, i)) for i, item in enumerate(items)]


def build_control(parts: Parts, name: str) -> Control:
    """Return RAG-GD with another task's demonstrations, or passages of another question."""
    others = partial(with_supports, choose=partial(other_support, parts=parts))
    exchange = others if name == "shuffled-support" else with_other_passages
    return Control(name, build(parts, "rag-gd"), exchange)
