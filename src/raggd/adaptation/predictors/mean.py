"""The mean update, whatever the support set: of all training targets, or of a task. Controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from raggd.core.low_rank import AdapterSpec, BaseAdapter, Update, update_from_vector
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

KIND = "raggd task means"


@dataclass(frozen=True, slots=True)
class MeanPredictor:
    """Gives every support set the same update, ``vector`` (spec.size,)."""

    spec: AdapterSpec
    base: str
    vector: Tensor

    needs_states = False

    def predict(self, states: Tensor) -> Update:
        """Repeat the mean for each of the states, which are only counted."""
        rows = self.vector.float().expand(states.shape[0], -1)
        return update_from_vector(self.spec, rows, self.base)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored: the vector in bfloat16, which keeps its small values."""
        return {"vector": self.vector.bfloat16()}


def mean_predictor(spec: AdapterSpec, base: str, vectors: Tensor) -> MeanPredictor:
    """Average targets (n, spec.size) into the mean update."""
    return MeanPredictor(spec, base, vectors.float().mean(0))


def save_task_means(path: Path, base: BaseAdapter, means: Mapping[str, Tensor]) -> None:
    """Write the means in bfloat16, as the targets are; spec and base stand in the header."""
    metadata = {"kind": KIND, "spec": base.spec.to_json(), "base": base.fingerprint}
    save_tensors(path, {task: mean.bfloat16() for task, mean in means.items()}, metadata)


def load_task_means(path: Path, base: BaseAdapter) -> dict[str, Update]:
    """Read the mean update of each task.

    Raises:
        RaggdError: the file holds something else, or means for another base adapter.
    """
    tensors, metadata = load_tensors(path, KIND, "make one with `raggd train task-mean`")
    if metadata["base"] != base.fingerprint:
        raise RaggdError(
            f"{path}: the targets behind it start from base adapter {metadata['base']}, the one in "
            f"use is {base.fingerprint}: make it again with `raggd train task-mean`."
        )
    spec = AdapterSpec.from_json(metadata["spec"])
    if any(tensor.shape != (spec.size,) for tensor in tensors.values()):
        raise RaggdError(f"{path}: its tensors do not fit its header (vectors of {spec.size}).")
    return {
        task: update_from_vector(spec, tensor.float(), base.fingerprint)
        for task, tensor in sorted(tensors.items())
    }
