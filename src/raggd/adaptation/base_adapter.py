"""The interface W0, trained once on answer tokens (paper section 5), or a soft prefix instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
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
from raggd.records import RaggdError, content_id
from raggd.settings import BaseTrainingSettings, PromptTuningSettings

BASE_KIND, PREFIX_KIND = "raggd base adapter", "raggd soft prefix"
TOKENS = 20  # length of a soft prefix, which starts from embeddings of the vocabulary


def fresh_base(spec: AdapterSpec, backbone: str, seed: int) -> BaseAdapter:
    """Initialise a LoRA as usual, changing nothing yet: A uniform in +-1/sqrt(d_in), B zero."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for projection in PROJECTIONS:
        shape_a, shape_b = spec.shapes[f"{projection}.a"], spec.shapes[f"{projection}.b"]
        a = (2 * torch.rand(shape_a, generator=generator) - 1) / spec.d_in**0.5
        factors[projection] = Factors(a, torch.zeros(shape_b))
    return BaseAdapter(spec, factors, backbone)


def save_base(path: Path, base: BaseAdapter) -> None:
    """Write a base adapter as a safetensors file; its spec and backbone stand in the header."""
    about = {"kind": BASE_KIND, "backbone": base.backbone, "fingerprint": base.fingerprint}
    save_tensors(path, tensors_of(base.factors), about | {"spec": base.spec.to_json()})


def load_base(path: Path) -> BaseAdapter:
    """Read what `save_base` wrote, in float32; a damaged, changed or other file is refused."""
    tensors, about = load_tensors(path, BASE_KIND, "make one with `raggd train base`")
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


@dataclass(frozen=True)
class SoftPrefix:
    """Embeddings that stand before every prompt."""

    vectors: Tensor  # (tokens, hidden size), float32
    backbone: str  # fingerprint of the backbone that they were trained with

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the backbone and every value, taken once."""
        values = self.vectors.detach().float().cpu().contiguous().numpy()
        return sha256(f"{self.backbone}{values.shape}".encode() + values.tobytes()).hexdigest()[:16]


def fresh_prefix(backbone: Backbone, prompts: Sequence[Prompt], seed: int) -> Tensor:
    """Start a prefix (tokens, hidden size), float32, from embeddings of words in the prompts."""
    special = set(backbone.tokenizer.all_special_ids)
    known = sorted({token for prompt in prompts for token in prompt.tokens} - special)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(known), (TOKENS,), generator=generator).tolist()
    numbers = torch.tensor([known[i] for i in chosen], device=backbone.device)
    with torch.no_grad():
        return backbone.model.get_input_embeddings()(numbers).float()  # type: ignore[no-any-return]


def save_prefix(path: Path, prefix: SoftPrefix) -> None:
    """Write a prefix as a safetensors file; its backbone stands in the header."""
    about = {"kind": PREFIX_KIND, "backbone": prefix.backbone, "fingerprint": prefix.fingerprint}
    save_tensors(path, {"vectors": prefix.vectors.float()}, about)


def load_prefix(path: Path, device: torch.device | str = "cpu") -> SoftPrefix:
    """Read what `save_prefix` wrote, to a device; a damaged, changed or other file is refused."""
    tensors, about = load_tensors(path, PREFIX_KIND, "make one with `raggd train prompt`")
    if "vectors" not in tensors:
        raise RaggdError(f"{path} is not a raggd soft prefix file that is whole: make it again.")
    prefix = SoftPrefix(tensors["vectors"].float().to(device), about["backbone"])
    check_unchanged(path, prefix.fingerprint, about["fingerprint"])
    return prefix


def check_prefix(backbone: Backbone, prefix: SoftPrefix) -> None:
    """Refuse a prefix that was trained with another backbone; both fingerprints are named."""
    advice = "train one for it with `raggd train prompt`"
    backbone.check_made_for(prefix.backbone, "the soft prefix", advice)


def train_prefix(
    backbone: Backbone, prompts: Sequence[Prompt], session: Session[PromptTuningSettings]
) -> tuple[SoftPrefix, list[float]]:
    """Train a soft prefix on answer tokens, without an adapter; with it every step's loss."""
    identity = content_id(backbone.fingerprint, examples_id(prompts))
    vectors = fresh_prefix(backbone, prompts, session.common.seed).requires_grad_(True)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        return mean_answer_loss(backbone, [prompts[i] for i in numbers], soft=vectors)

    named, lengths = {"vectors": vectors}, [len(p.tokens) for p in prompts]
    history = session.train(named, lengths, loss_of, identity)
    return SoftPrefix(vectors.detach().cpu(), backbone.fingerprint), history
