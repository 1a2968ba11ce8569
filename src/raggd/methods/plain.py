"""Methods that change no weight: query only, vanilla RAG, base adapter, prompt tuning, few shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raggd.adaptation.base_adapter import check_prefix, load_prefix
from raggd.core.low_rank import BaseAdapter
from raggd.methods.base import Adapted
from raggd.methods.spec import FILES_OF, Parts, weight_file
from raggd.records import SupportSet


@dataclass(frozen=True, slots=True)
class Unadapted:
    """Answers every question in the same way, whatever the support set."""

    name: str
    adapted: Adapted
    hashes: dict[str, str] = field(default_factory=dict)

    adapts = False

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Ignore the support sets: the same for each."""
        return [self.adapted for _ in supports]


def build(parts: Parts, name: str) -> Unadapted:
    """Return W0 without an update (``base``), or the bare backbone, with passages or without."""
    if name == "base":
        return Unadapted(name, Adapted(parts.base), {"base": parts.base.fingerprint})
    return Unadapted(name, Adapted(reads_evidence=name != "query-only"))


def build_prompt_tuning(parts: Parts, name: str) -> Unadapted:
    """Return the bare backbone with a trained soft prefix before its prompt."""
    path = weight_file(parts.weights, FILES_OF[name][0])
    prefix = load_prefix(path, parts.backbone.device)
    check_prefix(parts.backbone, prefix)
    return Unadapted(name, Adapted(soft=prefix), {"prefix": prefix.fingerprint})


@dataclass(frozen=True, slots=True)
class FewShot:
    """Shows the support set, passages included, before every question; without base, bare."""

    name: str
    base: BaseAdapter | None = None

    adapts = True

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter, where there is one."""
        return {"base": self.base.fingerprint} if self.base else {}

    def unread(self, support: SupportSet) -> Adapted:
        """Return the state of a set: its demonstrations are put where the prompt is made."""
        shown = support.demonstrations
        lines = any("\n" in d.answer.strip() for d in shown)
        return Adapted(self.base, shown=shown, lines=lines)

    def encoded(self, support: SupportSet) -> Sequence[int]:
        """Return none: nothing is predicted."""
        return ()

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Show each set."""
        return [self.unread(support) for support in supports]


def build_few_shot(parts: Parts, name: str, with_base: bool) -> FewShot:
    """Return few shot with the base adapter, or with the bare backbone."""
    return FewShot(name, parts.base if with_base else None)
