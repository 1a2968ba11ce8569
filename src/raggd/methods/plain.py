"""Methods that change no weight: query only, vanilla RAG, base adapter, prompt tuning, few shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from raggd.adaptation.prompt_tuning import check_prefix, load_prefix
from raggd.core.low_rank import BaseAdapter
from raggd.methods.base import Adapted
from raggd.methods.spec import PROMPT_FILE, Parts, weight_file
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


def query_only() -> Unadapted:
    """Return the bare backbone, without passages."""
    return Unadapted("query-only", Adapted(reads_evidence=False))


def vanilla_rag() -> Unadapted:
    """Return the bare backbone with the passages in its prompt."""
    return Unadapted("vanilla-rag", Adapted())


def base_only(base: BaseAdapter) -> Unadapted:
    """Return the shared interface without an update."""
    return Unadapted("base", Adapted(base), {"base": base.fingerprint})


def build(parts: Parts, name: str) -> Unadapted:
    """Return one of the three above."""
    if name == "base":
        return base_only(parts.base)
    return query_only() if name == "query-only" else vanilla_rag()


def build_prompt_tuning(parts: Parts, name: str) -> Unadapted:
    """Return the bare backbone with a trained soft prefix before its prompt."""
    prefix = load_prefix(weight_file(parts.weights, PROMPT_FILE)).to(parts.backbone.device)
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
