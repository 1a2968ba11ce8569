"""What every predictor is, its control the mean update, and predictors in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.core.low_rank import (
    AdapterSpec,
    BaseAdapter,
    Update,
    check_base,
    update_from_vector,
)
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

CPU = torch.device("cpu")
TASK_MEANS = "raggd task means"


class Predictor(Protocol):
    """Emits updates of one base adapter."""

    @property
    def base(self) -> str:
        """Fingerprint of the base adapter that the updates start from."""
        ...

    @property
    def spec(self) -> AdapterSpec:
        """Shape of the updates."""
        ...

    @property
    def needs_states(self) -> bool:
        """Whether the support set is read at all."""
        ...

    def predict(self, states: Tensor) -> Update:
        """Predict updates, sets leading, from encoder states (sets, N, hidden size)."""
        ...


def check_predictor(predictor: Predictor, base: BaseAdapter) -> None:
    """Refuse a predictor that was made for another base."""
    advice = "train one for this base with `raggd targets` and `raggd train predictor`"
    check_base(base, predictor.base, "the predictor", advice)


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


def save_predictor(path: Path, predictor: MeanPredictor | MLPPredictor) -> None:
    """Write a predictor; kind, shape and base stand in the header."""
    kind = "mean" if isinstance(predictor, MeanPredictor) else "mlp"
    shape = predictor.shape if isinstance(predictor, MLPPredictor) else ()
    metadata = {
        "kind": f"raggd predictor {kind}",
        "spec": predictor.spec.to_json(),
        "base": predictor.base,
        "shape": json.dumps(shape),
    }
    save_tensors(path, predictor.tensors(), metadata)


def load_predictor(path: Path, device: torch.device = CPU) -> Predictor:
    """Read what `save_predictor` wrote, to the backbone's device, ready to predict.

    Raises:
        RaggdError: the file is damaged or is not a predictor.
    """
    tensors, metadata = load_tensors(path)
    kind = metadata.get("kind", "")
    if kind not in {"raggd predictor mean", "raggd predictor mlp"}:
        raise RaggdError(f"{path} is not a raggd predictor: make one with `raggd train predictor`.")
    spec = AdapterSpec.from_json(metadata["spec"])
    if kind.endswith("mean"):
        if "vector" not in tensors or tensors["vector"].shape != (spec.size,):
            raise RaggdError(
                f"{path}: its tensors do not fit its header (a vector of {spec.size})."
            )
        return MeanPredictor(spec, metadata["base"], tensors["vector"].float().to(device))
    predictor = MLPPredictor(spec, metadata["base"], *json.loads(metadata["shape"]))
    try:
        predictor.load_state_dict({n: t.float() for n, t in tensors.items()})
    except RuntimeError as error:
        raise RaggdError(f"{path}: its tensors do not fit its header ({error}).") from error
    return predictor.eval().requires_grad_(False).place(device)


def save_task_means(path: Path, base: BaseAdapter, means: Mapping[str, Tensor]) -> None:
    """Write the means in bfloat16, as the targets are; spec and base stand in the header."""
    metadata = {"kind": TASK_MEANS, "spec": base.spec.to_json(), "base": base.fingerprint}
    save_tensors(path, {task: mean.bfloat16() for task, mean in means.items()}, metadata)


def load_task_means(path: Path, base: BaseAdapter) -> dict[str, Update]:
    """Read the mean update of each task.

    Raises:
        RaggdError: the file holds something else.
    """
    tensors, metadata = load_tensors(path, TASK_MEANS, "make one with `raggd train task-mean`")
    check_base(base, metadata["base"], str(path), "make it again with `raggd train task-mean`")
    spec = AdapterSpec.from_json(metadata["spec"])
    if any(tensor.shape != (spec.size,) for tensor in tensors.values()):
        raise RaggdError(f"{path}: its tensors do not fit its header (vectors of {spec.size}).")
    return {
        task: update_from_vector(spec, tensor.float(), base.fingerprint)
        for task, tensor in sorted(tensors.items())
    }
