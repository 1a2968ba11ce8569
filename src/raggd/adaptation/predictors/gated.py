"""A predictor behind a gate: the update at the scale that the gate chooses, or none."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.gate import Gate
from raggd.adaptation.predictors.base import Predictor
from raggd.core.low_rank import AdapterSpec, Update
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

_TENSORS = tuple(field.name for field in fields(Gate) if field.name != "caution")


@dataclass(frozen=True, slots=True)
class GatedPredictor:
    """Scales what another predictor emits; one more product of rank 16 per support set.

    Attributes:
        inner: the predictor.
        gate: chooses the scale from the same states.
    """

    inner: Predictor
    gate: Gate

    needs_states = True

    @property
    def base(self) -> str:
        """Fingerprint of the base adapter that the updates start from."""
        return self.inner.base

    @property
    def spec(self) -> AdapterSpec:
        """Shape of the updates."""
        return self.inner.spec

    @torch.no_grad()
    def predict(self, states: Tensor) -> Update:
        """Predict updates and scale them.

        Args:
            states: (sets, N, hidden size) encoder states.

        Returns:
            Updates with a leading axis of sets; zero where the gate withholds.
        """
        chosen = self.gate.choose(states).float()
        update = self.inner.predict(states)
        return update.map(lambda tensor: tensor * chosen.reshape(-1, 1, 1, 1).to(tensor))


def save_gate(path: Path, gate: Gate, predictor: str) -> None:
    """Write a gate.

    Args:
        path: the file.
        gate: what to store, in float32.
        predictor: hash of the predictor that its gains were measured with.
    """
    tensors = {name: getattr(gate, name).float() for name in _TENSORS}
    metadata = {"kind": "raggd gate", "caution": repr(gate.caution), "predictor": predictor}
    save_tensors(path, tensors, metadata)


def load_gate(path: Path, predictor: str, device: torch.device | None = None) -> Gate:
    """Read a gate.

    Args:
        path: what `save_gate` wrote.
        predictor: hash of the predictor in use.
        device: of the backbone.

    Returns:
        The gate, in float64 (in float32 where the device has no float64).

    Raises:
        RaggdError: the file is damaged, is no gate, or belongs to another predictor.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != "raggd gate" or set(tensors) != set(_TENSORS):
        raise RaggdError(f"{path} is not a raggd gate: make one with `raggd train gate`.")
    if metadata["predictor"] != predictor:
        raise RaggdError(
            f"{path} was fitted to predictor {metadata['predictor']}, the predictor in use is "
            f"{predictor}: fit it again with `raggd train gate`."
        )
    wide = torch.float32 if device and device.type == "mps" else torch.float64
    center, axes, extremes, scales, weights, covariance, noise = (
        tensors[name].to(device, wide) for name in _TENSORS
    )
    caution = float(metadata["caution"])
    return Gate(center, axes, extremes, scales, weights, covariance, noise, caution)
