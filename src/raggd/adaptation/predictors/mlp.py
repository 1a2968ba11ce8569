"""The paper's predictor: mean end-token state, two-layer MLP, a linear head per projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from raggd.core.low_rank import AdapterSpec, Update, update_from_vector


def unit_scales(spec: AdapterSpec, vectors: Tensor) -> Tensor:
    """Return the root mean square of each of the six tensors in each layer, at least 1e-12.

    From updates (n, spec.size): (6, layers), in storage order.
    """
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

    The heads of all layers and projections are one matrix: `latent` inputs, spec.size outputs.
    Outputs are in units of the training targets' root mean square per tensor and layer, and the
    head's bias starts at the mean target, so an untrained predictor is the mean update.
    """

    needs_states = True
    state_mean: Tensor
    state_std: Tensor
    scales: Tensor

    def __init__(self, spec: AdapterSpec, base: str, width: int, hidden: int, latent: int) -> None:
        """Make an untrained predictor for a base adapter, given by its fingerprint.

        `width` is the backbone's hidden size; the MLP has a hidden layer of `hidden` units (paper:
        256) and `latent` outputs (paper: 64).
        """
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
        """Set input and output units from training data, and start at the mean target.

        Shapes: `states` is (n, N, width), `vectors` (n, spec.size); `seed` draws the linear layers.
        """
        pooled = states.mean(1)
        self.state_mean.copy_(pooled.mean(0))
        self.state_std.copy_(pooled.std(0, correction=0).clamp_min(1e-6))
        self.scales.copy_(unit_scales(self.spec, vectors))
        self.bias.copy_(vectors.float().mean(0) / spread(self.spec, self.scales))
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.enter, self.leave):
            bound = layer.in_features**-0.5
            layer.weight.copy_(
                (2 * torch.rand(layer.weight.shape, generator=generator) - 1) * bound
            )
            layer.bias.zero_()

    def code(self, states: Tensor) -> Tensor:
        """Return the code (sets, latent) of the pooled states (sets, N, width)."""
        pooled = (states.float().mean(1) - self.state_mean) / self.state_std
        return self.leave(functional.gelu(self.enter(pooled)))  # type: ignore[no-any-return]

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

    def tensors(self) -> dict[str, Tensor]:
        """Return what is stored: head and bias in float16, the rest in float32."""
        large = {"head", "bias"}
        return {
            name: tensor.half() if name in large else tensor.float()
            for name, tensor in self.state_dict().items()
        }
