"""A cheap predictor beside a trained step: it turns the step's ranks up and down.

The states of the pass that reads the examples are pooled by learned attention over their tokens, at
several depths. A two-layer MLP makes of them one number g per layer, projection and rank, and the
update of a support set is ``dA = dA_c``, ``dB = dB_c + (B + dB_c) diag(g)`` on top of one step
(dA_c, dB_c) for all sets. The head has 1,440 outputs where one of full size has 1.3 million
(SmolLM2-135M, rank 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from raggd.adaptation.predictors.base import fill
from raggd.backbone.batch import make_batch
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    Update,
    factors_of,
    tensors_of,
)
from raggd.data.prompts import Prompt
from raggd.files import load_tensors, save_tensors

KIND = "raggd modulated step"
DEPTHS = (1 / 3, 2 / 3, 1.0)  # where states are read, as shares of the layers
HEADS, HIDDEN, LATENT = 4, 256, 64  # queries of the pooling at each depth; widths of the MLP


@torch.no_grad()
def read_examples(
    backbone: Backbone, base: BaseAdapter | None, examples: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Read some sets' examples under W0: states (sets, depths, tokens, width) and their mask."""
    prompts = [Prompt(tuple(tokens), 0, 0) for tokens in examples]
    batch = make_batch(prompts, backbone)
    with attach(backbone, base):
        states = backbone.model.base_model(
            input_ids=batch.tokens,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
    depths = [states[round(depth * (len(states) - 1))] for depth in DEPTHS]
    return torch.stack(depths, 1).float(), batch.mask


class Modulation(nn.Module):
    """One step for all support sets, and what turns its ranks up and down for each."""

    def __init__(self, step: Update, width: int, seed: int = 0) -> None:
        """Begin with factors of zero, whatever is read: every set has the step itself."""
        super().__init__()
        self.spec: AdapterSpec = step.spec
        self.base, self.width = step.base, width
        named = tensors_of(step.factors).items()
        self.step = nn.ParameterDict({name.replace(".", "_"): t.clone() for name, t in named})
        size = (len(DEPTHS), HEADS, width)
        generator = torch.Generator().manual_seed(seed)
        self.queries = nn.Parameter(torch.randn(size, generator=generator) / width**0.5)
        self.enter = nn.Linear(len(DEPTHS) * HEADS * width, HIDDEN)
        self.leave = nn.Linear(HIDDEN, LATENT)
        self.head = nn.Linear(LATENT, self.spec.layers * len(PROJECTIONS) * self.spec.rank)
        for layer in (self.enter, self.leave):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def factors(self, states: Tensor, mask: Tensor) -> Tensor:
        """Return g (sets, layers, projections, rank) from what `read_examples` returns."""
        states = functional.rms_norm(states, states.shape[-1:])
        scores = torch.einsum("sdtw,dhw->sdht", states, self.queries)
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
        pooled = torch.einsum("sdht,sdtw->sdhw", scores.softmax(-1), states).flatten(1)
        code = functional.gelu(self.leave(functional.gelu(self.enter(pooled))))
        found: Tensor = self.head(code)
        return found.reshape(-1, self.spec.layers, len(PROJECTIONS), self.spec.rank)

    def constant(self) -> Update:
        """Return the step of all sets."""
        tensors = {name.replace("_", "."): tensor for name, tensor in self.step.items()}
        return Update(self.spec, factors_of(tensors), self.base)

    def forward(self, base: BaseAdapter, states: Tensor, mask: Tensor) -> Update:
        """Return updates with a leading axis of sets, from W0 and what `read_examples` returns."""
        found, step = self.factors(states, mask), self.constant()
        parts = {}
        for number, projection in enumerate(PROJECTIONS):
            a, b = step.factors[projection]
            change = (base.factors[projection].b + b) * found[:, :, number, None, :]
            parts[projection] = Factors(a.expand(len(found), *a.shape), b + change)
        return Update(self.spec, parts, self.base)


def save_modulation(path: Path, made: Modulation) -> None:
    """Write step and network in bfloat16; shape and base stand in the header."""
    tensors = {name: t.detach().to(torch.bfloat16) for name, t in made.state_dict().items()}
    metadata = {"spec": made.spec.to_json(), "base": made.base, "width": str(made.width)}
    save_tensors(path, tensors, {"kind": KIND, **metadata})


def load_modulation(path: Path) -> Modulation:
    """Read what `save_modulation` wrote, ready to predict; others are refused."""
    advice = "make one with `raggd train examples-update` or `examples-both`"
    tensors, metadata = load_tensors(path, KIND, advice)
    spec = AdapterSpec.from_json(metadata["spec"])
    zeros = {name: torch.zeros(shape) for name, shape in spec.shapes.items()}
    made = Modulation(Update(spec, factors_of(zeros), metadata["base"]), int(metadata["width"]))
    fill(made, tensors, path)
    return made
