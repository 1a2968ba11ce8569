"""Prompt tuning: a soft prefix, trained on W0's examples in the place of W0, and its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from raggd.adaptation.optimizer import DEFAULTS, Session, examples_id, train
from raggd.backbone.identity import check_same
from raggd.backbone.interface import mean_answer_loss
from raggd.backbone.load import Backbone
from raggd.data.prompts import Prompt
from raggd.files import check_unchanged, load_tensors, save_tensors
from raggd.records import RaggdError, content_id
from raggd.settings import PromptTuningSettings, TrainingSettings

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

    def to(self, device: torch.device) -> SoftPrefix:
        """Return it on a device."""
        return replace(self, vectors=self.vectors.to(device))


def fresh_prefix(backbone: Backbone, prompts: Sequence[Prompt], seed: int) -> Tensor:
    """Start a prefix (tokens, hidden size), float32, from embeddings of words in the prompts."""
    special = set(backbone.tokenizer.all_special_ids)
    known = sorted({token for prompt in prompts for token in prompt.tokens} - special)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(known), (TOKENS,), generator=generator).tolist()
    numbers = torch.tensor([known[i] for i in chosen], device=backbone.device)
    with torch.no_grad():
        return backbone.model.get_input_embeddings()(numbers).float()  # type: ignore[no-any-return]


def train_prefix(
    backbone: Backbone,
    prompts: Sequence[Prompt],
    settings: PromptTuningSettings,
    common: TrainingSettings = DEFAULTS,
    **session: Unpack[Session],
) -> tuple[SoftPrefix, list[float]]:
    """Train a soft prefix on answer tokens, without an adapter; with it every step's loss."""
    examples = examples_id(prompts)
    vectors = fresh_prefix(backbone, prompts, common.seed).requires_grad_(True)

    def loss_of(numbers: Sequence[int]) -> Tensor:
        return mean_answer_loss(backbone, [prompts[i] for i in numbers], soft=vectors)

    identity = content_id(backbone.fingerprint, examples)
    lengths = [len(p.tokens) for p in prompts]
    history = train(
        {"vectors": vectors}, lengths, loss_of, settings, identity, common=common, **session
    )
    return SoftPrefix(vectors.detach().cpu(), backbone.fingerprint), history


def save_prefix(path: Path, prefix: SoftPrefix) -> None:
    """Write a prefix as a safetensors file; its backbone stands in the header."""
    metadata = {"kind": KIND, "backbone": prefix.backbone, "fingerprint": prefix.fingerprint}
    save_tensors(path, {"vectors": prefix.vectors.float()}, metadata)


def load_prefix(path: Path) -> SoftPrefix:
    """Read what `save_prefix` wrote; a damaged, changed or other file is refused."""
    tensors, metadata = load_tensors(path, KIND, "make one with `raggd train prompt`")
    if "vectors" not in tensors:
        raise RaggdError(f"{path} is not a raggd soft prefix file that is whole: make it again.")
    prefix = SoftPrefix(tensors["vectors"].float(), metadata["backbone"])
    check_unchanged(path, prefix.fingerprint, metadata["fingerprint"])
    return prefix


def check_prefix(backbone: Backbone, prefix: SoftPrefix) -> None:
    """Refuse a prefix that was trained with another backbone; both fingerprints are named."""
    check_same(
        prefix.backbone,
        backbone.fingerprint,
        "the soft prefix",
        backbone.name,
        "train one for it with `raggd train prompt`",
    )
