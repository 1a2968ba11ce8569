"""What every predictor is, Algorithm 1, and predictors in and out of safetensors files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from raggd.adaptation.encoder import encode_supports
from raggd.adaptation.predictors.mean import MeanPredictor
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.backbone.load import Backbone
from raggd.core.low_rank import AdapterSpec, BaseAdapter, Update
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError, SupportSet

CPU = torch.device("cpu")


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
    """Refuse a predictor that was made for another base.

    Raises:
        RaggdError: the fingerprints differ; both are named.
    """
    if predictor.base != base.fingerprint:
        raise RaggdError(
            f"the predictor was trained for base adapter {predictor.base}, the base adapter in use "
            f"is {base.fingerprint}: load the base it belongs to, or train a predictor for this "
            "one with `raggd targets` and `raggd train predictor`."
        )


@torch.no_grad()
def predict_updates(
    backbone: Backbone,
    base: BaseAdapter,
    predictor: Predictor,
    supports: Sequence[SupportSet],
    limit: int,
) -> Update:
    """Encode support sets of one size and predict, in one forward pass (Algorithm 1, lines 1-4)."""
    check_predictor(predictor, base)
    if predictor.needs_states:
        states = encode_supports(backbone, base, supports, limit)
    else:
        states = torch.zeros(len(supports), 1, 1)
    return predictor.predict(states)


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
