"""What every predictor is, the paper's and its control the mean update, and files of both.

The paper's: mean end-token state, two-layer MLP, a linear head per projection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from raggd.core.low_rank import AdapterSpec, BaseAdapter, Update, check_base, update_from_vector
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

CPU = torch.device("cpu")
TASK_MEANS = "raggd task means"
HIDDEN = 256  # units of the MLP's hidden layer (paper section 5)


class Predictor(Protocol):
    """Emits updates of one base adapter."""

    @property
    def base(self) -> str:
        """Fingerprint of the base adapter that the updates start from."""

    def predict(self, states: Tensor) -> Update:
        """Predict updates, sets leading, from encoder states (sets, N, hidden size)."""


def check_predictor(predictor: Predictor, base: BaseAdapter) -> None:
    """Refuse a predictor that was made for another base."""
    advice = "train one for this base with `raggd targets` and `raggd train predictor`"
    check_base(base, predictor.base, "the predictor", advice)


def unit_scales(spec: AdapterSpec, vectors: Tensor) -> Tensor:
    """Return the root mean square, (6, layers), of each tensor of updates (n, spec.size)."""
    factors = update_from_vector(spec, vectors.float(), "").factors
    rows = [t.square().mean((0, -2, -1)).sqrt() for f in factors.values() for t in f]
    return torch.stack(rows).clamp_min(1e-12)


def spread(spec: AdapterSpec, scales: Tensor) -> Tensor:
    """Return scales (6, layers) repeated along the entries of an update: (spec.size,)."""
    parts = [
        row.repeat_interleave(shape[1] * shape[2])
        for row, shape in zip(scales, spec.shapes.values(), strict=True)
    ]
    return torch.cat(parts)


class MLPPredictor(nn.Module):
    """From the pooled state of a support set to an update of every layer's q, k and v.

    All heads are one matrix, whose outputs are in units of the targets' root mean square per tensor
    and layer; its bias starts at the mean target, so untrained it is the mean update.
    """

    state_mean: Tensor
    state_std: Tensor
    scales: Tensor

    def __init__(self, spec: AdapterSpec, base: str, width: int, hidden: int, latent: int) -> None:
        """Make an untrained predictor for the base of a fingerprint; `width` is the hidden size."""
        super().__init__()
        self.spec = spec
        self.base = base
        self.shape = (width, hidden, latent)
        self.register_buffer("state_mean", torch.zeros(width))
        self.register_buffer("state_std", torch.ones(width))
        self.register_buffer("scales", torch.ones(6, spec.layers))
        self.enter = nn.Linear(width, hidden)
        self.leave = nn.Linear(hidden, latent)
        self.head = nn.Parameter(torch.zeros(spec.size, latent))
        self.bias = nn.Parameter(torch.zeros(spec.size))

    @torch.no_grad()
    def fit_units(self, states: Tensor, vectors: Tensor, seed: int) -> None:
        """Take units, and the mean target, from states (n, N, width) and vectors (n, spec.size)."""
        pooled = states.mean(1)
        self.state_mean.copy_(pooled.mean(0))
        self.state_std.copy_(pooled.std(0, correction=0).clamp_min(1e-6))
        self.scales.copy_(unit_scales(self.spec, vectors))
        self.bias.copy_(vectors.float().mean(0) / spread(self.spec, self.scales))
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.enter, self.leave):
            drawn = 2 * torch.rand(layer.weight.shape, generator=generator) - 1
            layer.weight.copy_(drawn * layer.in_features**-0.5)
            layer.bias.zero_()

    def pooled(self, states: Tensor) -> Tensor:
        """Return the means (sets, width) of states (sets, N, width), in the units that were fit."""
        return (states.float().mean(1) - self.state_mean) / self.state_std

    def code(self, states: Tensor) -> Tensor:
        """Return the code (sets, latent) of states (sets, N, width)."""
        hidden = functional.gelu(self.enter(self.pooled(states)))
        return self.leave(hidden)  # type: ignore[no-any-return]

    def forward(self, states: Tensor) -> Update:
        """Predict updates, sets leading, from states (sets, N, width), with gradients to itself."""
        code = self.code(states).to(self.head)  # half precision on a GPU, else float32
        rows = functional.linear(code, self.head, self.bias).float()
        return update_from_vector(self.spec, rows * spread(self.spec, self.scales), self.base)

    def place(self, device: torch.device) -> MLPPredictor:
        """Move it to the backbone's device; on a GPU the head is float16, as in its file."""
        self.to(device)
        if device.type not in {"cpu", "meta"}:
            self.head.data, self.bias.data = self.head.data.half(), self.bias.data.half()
        return self

    @torch.no_grad()
    def predict(self, states: Tensor) -> Update:
        """Return updates without gradients; shapes as in `forward`."""
        return self.forward(states)


@dataclass(frozen=True, slots=True)
class MeanPredictor:
    """Gives every support set the same update, ``vector`` (spec.size,)."""

    spec: AdapterSpec
    base: str
    vector: Tensor

    def predict(self, states: Tensor) -> Update:
        """Repeat the mean for each of the states, which are only counted."""
        rows = self.vector.float().expand(states.shape[0], -1)
        return update_from_vector(self.spec, rows, self.base)


def mean_predictor(spec: AdapterSpec, base: str, vectors: Tensor) -> MeanPredictor:
    """Average targets (n, spec.size) into the mean update."""
    return MeanPredictor(spec, base, vectors.float().mean(0))


def save_predictor(path: Path, predictor: MeanPredictor | MLPPredictor) -> None:
    """Write a predictor; kind, shape and base stand in the header."""
    if isinstance(predictor, MeanPredictor):
        kind, shape = "mean", "[]"
        tensors = {"vector": predictor.vector.bfloat16()}  # which keeps its small values
    else:
        kind, shape = "mlp", json.dumps(predictor.shape)
        tensors = {
            name: tensor.half() if name in {"head", "bias"} else tensor.float()
            for name, tensor in predictor.state_dict().items()
        }
    about = {"kind": f"raggd predictor {kind}", "base": predictor.base, "shape": shape}
    save_tensors(path, tensors, {**about, "spec": predictor.spec.to_json()})


def load_predictor(path: Path, device: torch.device = CPU) -> Predictor:
    """Read what `save_predictor` wrote, to a device, ready to predict; others are refused."""
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
    fill(predictor, tensors, path)
    return predictor.place(device)


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Take weights of a file, in float32, not to be trained; those of another shape are refused."""
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise RaggdError(f"{path}: its tensors do not fit its header ({error}).") from error
    network.eval().requires_grad_(False)


def save_task_means(path: Path, base: BaseAdapter, means: Mapping[str, Tensor]) -> None:
    """Write the means in bfloat16, as the targets are; spec and base stand in the header."""
    metadata = {"kind": TASK_MEANS, "spec": base.spec.to_json(), "base": base.fingerprint}
    save_tensors(path, {task: mean.bfloat16() for task, mean in means.items()}, metadata)


def load_task_means(path: Path, base: BaseAdapter) -> dict[str, Update]:
    """Read the mean update of each task; another file is refused."""
    tensors, metadata = load_tensors(path, TASK_MEANS, "make one with `raggd train task-mean`")
    check_base(base, metadata["base"], str(path), "make it again with `raggd train task-mean`")
    spec = AdapterSpec.from_json(metadata["spec"])
    if any(tensor.shape != (spec.size,) for tensor in tensors.values()):
        raise RaggdError(f"{path}: its tensors do not fit its header (vectors of {spec.size}).")
    return {
        task: update_from_vector(spec, tensor.float(), base.fingerprint)
        for task, tensor in sorted(tensors.items())
    }
