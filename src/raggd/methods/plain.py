"""Methods that predict nothing: one state for all support sets, one by task, or few shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from raggd.adaptation.predictors.base import check_predictor, load_task_means
from raggd.adaptation.soft_prefix import check_prefix, load_prefix
from raggd.core.low_rank import BaseAdapter
from raggd.methods.base import Adapted
from raggd.methods.spec import FILES_OF, Parts, weight_file, weights_hash
from raggd.records import RaggdError, SupportSet


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


def build_mean(parts: Parts, name: str) -> Unadapted:
    """Return W0 with the one update of the second of its files."""
    file = FILES_OF[name][1]
    predictor = parts.predictor(file)
    check_predictor(predictor, parts.base)
    update = predictor.predict(torch.zeros(1, 1, 1)).row(0)  # no states are looked at
    hashes = {"base": parts.base.fingerprint, "predictor": weights_hash(parts.weights / file)}
    return Unadapted(name, Adapted(parts.base, update), hashes)


@dataclass(frozen=True, slots=True)
class TaskMean:
    """A control that knows the task, whose mean target it uses, but not the demonstrations."""

    states: Mapping[str, Adapted]  # by task
    hashes: dict[str, str]

    name = "task-mean"
    adapts = False

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Look up the task of each set, nothing else of it; one without targets is refused."""
        for support in supports:
            if support.task not in self.states:
                raise RaggdError(
                    f"task '{support.task}' has no mean update, only {', '.join(self.states)}: "
                    "make targets of it with `raggd targets --pool`, then `raggd train task-mean` "
                    "with both stores, or leave out method 'task-mean'."
                )
        return [self.states[support.task] for support in supports]


def build_task_mean(parts: Parts, name: str) -> TaskMean:
    """Return the control, made of the file of the means."""
    path, base = weight_file(parts.weights, FILES_OF[name][1]), parts.base
    means = load_task_means(path, base)
    states = {task: Adapted(base, mean.to(base.device)) for task, mean in means.items()}
    return TaskMean(states, {"base": base.fingerprint, "predictor": weights_hash(path)})


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

    def unread(self, support: SupportSet) -> tuple[Adapted, Sequence[int]]:
        """Return the state of a set, whose prompts are made with its demonstrations."""
        shown = support.demonstrations
        lines = any("\n" in d.answer.strip() for d in shown)
        return Adapted(self.base, shown=shown, lines=lines), ()

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Show each set."""
        return [self.unread(support)[0] for support in supports]


def build_few_shot(parts: Parts, name: str, with_base: bool) -> FewShot:
    """Return few shot with the base adapter, or with the bare backbone."""
    return FewShot(name, parts.base if with_base else None)
