"""An update from the support set: predicted in one pass, or TT-SGD's K gradient steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from raggd.adaptation.predictors.base import Predictor, check_predictor
from raggd.adaptation.predictors.gate import Gate, load_gate
from raggd.adaptation.targets import encode_supports, sgd_updates, support_batch
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update
from raggd.methods.base import Adapted
from raggd.methods.spec import FILES_OF, SPECS, Parts, weight_file, weights_hash
from raggd.records import SupportSet
from raggd.settings import TargetSettings


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
