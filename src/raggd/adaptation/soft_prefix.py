"""Prompt tuning: a soft prefix, trained on W0's examples in the place of W0, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.optimizer import Session, examples_id
from raggd.backbone.interface import mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt
from raggd.files import check_unchanged, load_tensors, save_tensors
from raggd.records import RaggdError, content_id
from raggd.settings import PromptTuningSettings

KIND = "raggd soft prefix"
TOKENS = 20  # its length; it starts from embeddings of the vocabulary


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
    about = {"kind": KIND, "backbone": prefix.backbone, "fingerprint": prefix.fingerprint}
    save_tensors(path, {"vectors": prefix.vectors.float()}, about)


def load_prefix(path: Path, device: torch.device | str = "cpu") -> SoftPrefix:
    """Read what `save_prefix` wrote, to a device; a damaged, changed or other file is refused."""
    tensors, about = load_tensors(path, KIND, "make one with `raggd train prompt`")
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
