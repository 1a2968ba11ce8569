"""Predictors in and out of safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from raggd.adaptation.predictors.base import Predictor
from raggd.adaptation.predictors.mean import MeanPredictor
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.core.low_rank import AdapterSpec
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

CPU = torch.device("cpu")


def save_predictor(path: Path, predictor: MeanPredictor | MLPPredictor) -> None:
    """Write a predictor; kind, shape and base stand in the header.

    Args:
        path: the file.
        predictor: what to store.
    """
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
    """Read a predictor.

    Args:
        path: what `save_predictor` wrote.
        device: of the backbone; states and updates stay there.

    Returns:
        The predictor, ready to predict.

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


def mean_predictor(spec: AdapterSpec, base: str, vectors: torch.Tensor) -> MeanPredictor:
    """Average targets into the mean update.

    Args:
        spec: shape of the updates.
        base: fingerprint of the base adapter.
        vectors: (n, spec.size).

    Returns:
        The control.
    """
    return MeanPredictor(spec, base, vectors.float().mean(0))
