"""Few shot: the demonstrations stand in the prompt, and no weight changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.core.low_rank import BaseAdapter
from raggd.methods.base import Adapted
from raggd.methods.build import Parts
from raggd.records import SupportSet


@dataclass(frozen=True, slots=True)
class FewShot:
    """Shows the support set, passages included, before every question.

    Attributes:
        name: ``vanilla-few-shot`` or ``base-few-shot``.
        base: the adapter in use; None for the bare backbone.
    """

    name: str
    base: BaseAdapter | None = None

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter, where there is one."""
        return {"base": self.base.fingerprint} if self.base else {}

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Put the demonstrations where the prompt is made.

        Args:
            supports: the sets.

        Returns:
            What shows each set.
        """
        return [
            Adapted(
                self.base,
                shown=support.demonstrations,
                lines=any("\n" in d.answer.strip() for d in support.demonstrations),
            )
            for support in supports
        ]


def build(parts: Parts, name: str, with_base: bool) -> FewShot:
    """Return few shot with the base adapter, or with the bare backbone."""
    return FewShot(name, parts.base if with_base else None)
