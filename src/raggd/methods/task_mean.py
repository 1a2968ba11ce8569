"""Task mean: the average target of the task's support pool, the same for all its questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raggd.adaptation.predictors.mean import load_task_means
from raggd.core.low_rank import BaseAdapter, Update
from raggd.methods.base import Adapted
from raggd.methods.build import Parts
from raggd.methods.spec import TASK_MEAN_FILE, weight_file, weights_hash
from raggd.records import RaggdError, SupportSet


@dataclass(frozen=True, slots=True)
class TaskMean:
    """A control that knows the task but not the demonstrations.

    Attributes:
        base: W0.
        means: average target by task.
        weights: hash of the file of the means.
    """

    base: BaseAdapter
    means: Mapping[str, Update]
    weights: str

    name = "task-mean"
    adapts = False

    @property
    def hashes(self) -> dict[str, str]:
        """Fingerprint of the base adapter and hash of the means' file."""
        return {"base": self.base.fingerprint, "predictor": self.weights}

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        """Look up the task of each set.

        Args:
            supports: only their task is read.

        Returns:
            Base and mean update of each task.

        Raises:
            RaggdError: there are no targets of a task.
        """
        for support in supports:
            if support.task not in self.means:
                raise RaggdError(
                    f"task '{support.task}' has no mean update, only {', '.join(self.means)}: make "
                    "targets of it with `raggd targets --pool`, then `raggd train task-mean` with "
                    "both stores, or leave out method 'task-mean'."
                )
        return [Adapted(self.base, self.means[support.task]) for support in supports]


def build(parts: Parts, name: str) -> TaskMean:
    """Return the control, made of the file of the means."""
    path = weight_file(parts.weights, TASK_MEAN_FILE)
    means = load_task_means(path, parts.base)
    there = {task: mean.to(parts.base.device) for task, mean in means.items()}
    return TaskMean(parts.base, there, weights_hash(path))
