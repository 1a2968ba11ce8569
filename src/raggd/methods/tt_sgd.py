"""TT-SGD: the K real gradient steps, at test time (the paper's upper baseline)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.adaptation.supports import equal_size, support_batch
from raggd.adaptation.targets import sgd_updates
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.methods import predicted
from raggd.methods.base import Adapted
from raggd.methods.predicted import PredictedUpdate
from raggd.methods.spec import SPECS, Parts
from raggd.records import SupportSet
from raggd.settings import TargetSettings


@dataclass(frozen=True, slots=True)
class TestTimeSGD:
    """Makes K SGD steps on the demonstrations, from the base adapter or from a predicted update.

    It is named ``tt-sgd``, or ``tt-sgd-k<K>`` for another K than the settings name; `start`
    predicts the update to start from.
    """

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
        equal_size(supports)
        batch = support_batch(self.backbone, supports, self.settings.max_tokens)
        start = self.start.predict(supports) if self.start else None
        sets = len(supports)
        updates, _ = sgd_updates(self.backbone, self.base, batch, sets, self.settings, start)
        return [Adapted(self.base, updates.row(i)) for i in range(sets)]


def build(parts: Parts, name: str) -> TestTimeSGD:
    """Return a method of as many steps as its row says, from what it predicts if it predicts."""
    settings, spec = parts.settings.target, SPECS[name]
    if spec.gradient_steps:
        settings = settings.model_copy(update={"steps": spec.gradient_steps})
    start = predicted.build(parts, name) if spec.encoded else None
    return TestTimeSGD(parts.backbone, parts.base, settings, name, start)
