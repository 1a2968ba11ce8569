"""What the controls of RAG-GD share: its weights and its predictions, of other things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.methods.base import Adapted, Method
from raggd.records import SupportSet


@dataclass(frozen=True, slots=True)
class Control:
    """Predicts as RAG-GD does; what it is given is another matter (`Rearranges`).

    Attributes:
        inner: RAG-GD.
    """

    inner: Method

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Those of RAG-GD."""
        return self.inner.hashes

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Predict as RAG-GD does.

        Args:
            supports: sets of equal size.

        Returns:
            Base and update of each set.
        """
        return self.inner.adapt(supports)
