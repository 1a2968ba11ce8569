"""A cheap predictor beside a prefix: it turns the ranks of a trained step up and down.

The states of the pass that reads the examples are pooled by learned attention over their tokens,
at several depths; a two-layer MLP makes of them one number per layer, projection and rank, and the
update is ``dB = (B + dB_c) diag(g)`` on top of a constant step (dA_c, dB_c). The head has 1,440
outputs where one of full size has 1.3 million (SmolLM2-135M, rank 16).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raggd.core.low_rank import PROJECTIONS, AdapterSpec, BaseAdapter, Factors, Update

DEPTHS = (1 / 3, 2 / 3, 1.0)
"""Where the states are read, as shares of the layers."""


class Modulation(nn.Module):
    """From the states of the examples' tokens to a factor of every rank.

    Attributes:
        spec: shape of the updates.
        base: fingerprint of W0.
        shape: width of the states, heads of the pooling, hidden and latent width.
    """

    def __init__(
        self, spec: AdapterSpec, base: str, width: int, heads: int, hidden: int, latent: int
    ) -> None:
        """Make an untrained predictor: its factors are zero, whatever it reads.

        Args:
            spec: shape of the updates.
            base: fingerprint of the base adapter.
            width: hidden size of the backbone.
            heads: queries of the pooling at each depth.
            hidden: width of the hidden layer.
            latent: width of the code.
        """
        super().__init__()
        self.spec, self.base, self.shape = spec, base, (width, heads, hidden, latent)
        self.queries = nn.Parameter(torch.randn(len(DEPTHS), heads, width) / width**0.5)
        self.inner = nn.Linear(len(DEPTHS) * heads * width, hidden)
        self.outer = nn.Linear(hidden, latent)
        self.head = nn.Linear(latent, spec.layers * len(PROJECTIONS) * spec.rank)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Read the examples.

        Args:
            states: (rows, depths, tokens, width).
            mask: (rows, tokens), 1 on real tokens.

        Returns:
            Factors g (rows, layers, projections, rank).
        """
        states = nn.functional.rms_norm(states.float(), states.shape[-1:])
        scores = torch.einsum("rdtw,dhw->rdht", states, self.queries)
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
        pooled = torch.einsum("rdht,rdtw->rdhw", scores.softmax(-1), states).flatten(1)
        code = nn.functional.gelu(self.outer(nn.functional.gelu(self.inner(pooled))))
        factors: Tensor = self.head(code)
        return factors.reshape(-1, self.spec.layers, len(PROJECTIONS), self.spec.rank)


def modulated(base: BaseAdapter, step: Update, factors: Tensor) -> Update:
    """Turn the ranks of a step up and down.

    Args:
        base: W0.
        step: from it, the same for all rows.
        factors: g (rows, layers, projections, rank).

    Returns:
        One update per row: ``dA = dA_c`` and ``dB = dB_c + (B + dB_c) diag(g)``.
    """
    parts = {}
    for number, projection in enumerate(PROJECTIONS):
        a, b = step.factors[projection]
        whole = base.factors[projection].b + b
        change = whole * factors[:, :, number, None, :]
        parts[projection] = Factors(a.expand(len(factors), *a.shape), b + change)
    return Update(step.spec, parts, step.base)
