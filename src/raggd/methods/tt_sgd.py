"""TT-SGD: the K real gradient steps, at test time (the paper's upper baseline)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.adaptation.encoder import equal_size, support_batch
from raggd.adaptation.targets import sgd_updates
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.methods.base import Adapted
from raggd.records import SupportSet
from raggd.settings import TargetSettings


@dataclass(frozen=True, slots=True)
class TestTimeSGD:
    """Makes K SGD steps from the base adapter on the demonstrations.

    Attributes:
        backbone: the frozen model.
        base: W0.
        settings: K, eta and limits; those of the predictor's targets.
        name: ``tt-sgd``, or ``tt-sgd-k<K>`` for another K than the settings name.
    """

    backbone: Backbone
    base: BaseAdapter
    settings: TargetSettings
    name: str = "tt-sgd"

    adapts = True
    __test__ = False  # not a pytest class, whatever its name

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter."""
        return {"base": self.base.fingerprint}

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Run the inner loop, all sets in one batch.

        Args:
            supports: sets of equal size.

        Returns:
            Base and update of each set.
        """
        equal_size(supports)
        batch = support_batch(self.backbone, supports, self.settings.max_tokens)
        updates, _ = sgd_updates(self.backbone, self.base, batch, len(supports), self.settings)
        return [Adapted(self.base, updates.row(i)) for i in range(len(supports))]
