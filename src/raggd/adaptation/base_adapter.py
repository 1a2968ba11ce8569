"""The interface W0: a LoRA, trained once on answer tokens (paper section 5), and its file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.optimizer import Session, examples_id
from raggd.backbone.interface import check_gradients, mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    check_shapes,
    factors_of,
    tensors_of,
)
from raggd.data.prompts import Prompt
from raggd.files import check_unchanged, load_tensors, save_tensors
from raggd.records import content_id
from raggd.settings import AdapterSettings, BaseTrainingSettings

KIND = "raggd base adapter"


def fresh_base(spec: AdapterSpec, backbone: str, seed: int) -> BaseAdapter:
    """Initialise a LoRA as usual, changing nothing yet: A uniform in +-1/sqrt(d_in), B zero."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for projection in PROJECTIONS:
        shape_a, shape_b = spec.shapes[f"{projection}.a"], spec.shapes[f"{projection}.b"]
        a = (2 * torch.rand(shape_a, generator=generator) - 1) / spec.d_in**0.5
        factors[projection] = Factors(a, torch.zeros(shape_b))
    return BaseAdapter(spec, factors, backbone)


def untrained_base(backbone: Backbone, settings: AdapterSettings) -> BaseAdapter:
    """Return a W0 of a backbone that changes nothing yet, on its device."""
    spec = backbone.adapter_spec(settings)
    return fresh_base(spec, backbone.fingerprint, 0).to(backbone.device)


def save_base(path: Path, base: BaseAdapter) -> None:
    """Write a base adapter as a safetensors file; its spec and backbone stand in the header."""
    about = {"kind": KIND, "backbone": base.backbone, "fingerprint": base.fingerprint}
    save_tensors(path, tensors_of(base.factors), about | {"spec": base.spec.to_json()})


def load_base(path: Path) -> BaseAdapter:
    """Read what `save_base` wrote, in float32; a damaged, changed or other file is refused."""
    tensors, about = load_tensors(path, KIND, "make one with `raggd train base`")
    spec = AdapterSpec.from_json(about["spec"])
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    check_shapes(spec, wide, str(path))
    base = BaseAdapter(spec, factors_of(wide), about["backbone"])
    check_unchanged(path, base.fingerprint, about["fingerprint"])
    return base


def train_base(
    backbone: Backbone,
    spec: AdapterSpec,
    prompts: Sequence[Prompt],
    session: Session[BaseTrainingSettings],
) -> tuple[BaseAdapter, list[float]]:
    """Train W0 (float32) on the loss of the answer tokens; with it comes every step's loss."""
    identity = content_id(backbone.fingerprint, str(spec), examples_id(prompts))
    base = fresh_base(spec, backbone.fingerprint, session.common.seed).to(backbone.device)
    parameters = {n: t.requires_grad_(True) for n, t in tensors_of(base.factors).items()}

    def loss_of(numbers: Sequence[int]) -> Tensor:
        return mean_answer_loss(backbone, [prompts[i] for i in numbers], base)

    def check() -> None:
        check_gradients([p.grad for n, p in parameters.items() if n.endswith("b")])  # type: ignore[misc]

    lengths = [len(p.tokens) for p in prompts]
    history = session.train(parameters, lengths, loss_of, identity, check=check)
    final = {n: t.detach() for n, t in parameters.items()}
    return BaseAdapter(spec, factors_of(final), backbone.fingerprint), history
