"""Base adapter and update as one LoRA file for llama.cpp (GGUF).

llama.cpp keeps the q and k weights of Llama-type models with their rows in another order (the two
halves of a rotated pair side by side), so the rows of B are put in that order too.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.peft import lora_factors
from raggd.backbone.interface import check_fits
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update
from raggd.files import replacing
from raggd.records import RaggdError

ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
"""By transformers' model type: llama.cpp's architecture, and whether it reorders q and k."""


def reordered(b: Tensor, heads: int) -> Tensor:
    """Put the rows of a q or k matrix (d_out, anything) in the order of llama.cpp's rotation.

    In transformers each head has the first halves of all pairs, then the second; there both halves
    of each pair lie side by side.
    """
    by_half = b.reshape(heads, 2, -1, b.shape[-1])
    return by_half.transpose(1, 2).reshape(b.shape)


def _architecture(backbone: Backbone) -> tuple[str, bool]:
    kind = str(getattr(backbone.model.config, "model_type", "unknown"))
    if kind not in ARCHITECTURES:
        raise RaggdError(
            f"no GGUF export for model type '{kind}' of backbone '{backbone.name}': only for "
            f"{', '.join(ARCHITECTURES)}, whose result was checked in llama.cpp. "
            "`raggd export peft` writes a form that llama.cpp's own converter reads."
        )
    return ARCHITECTURES[kind]


def gguf_tensors(backbone: Backbone, base: BaseAdapter, update: Update | None) -> dict[str, Tensor]:
    """Name and order the factors of every layer as llama.cpp wants them.

    ``blk.<layer>.attn_q.weight.lora_a`` is (rank, d_in), ``.lora_b`` (d_out, rank).
    """
    _, reorders = _architecture(backbone)
    config = backbone.model.config
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    tensors = {}
    for projection, (a, b) in lora_factors(base, update).items():
        for layer in range(base.spec.layers):
            rows = b[layer]
            if reorders and projection in heads:
                rows = reordered(rows, heads[projection])
            name = f"blk.{layer}.attn_{projection}.weight"
            tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a[layer], rows
    return tensors


def write_gguf(
    path: Path, backbone: Backbone, base: BaseAdapter, update: Update | None = None
) -> Path:
    """Write base adapter and update as one GGUF LoRA, in float32, and return the file."""
    from gguf import GGUFType, GGUFWriter, Keys

    check_fits(backbone, base, update)
    architecture, _ = _architecture(backbone)
    tensors = gguf_tensors(backbone, base, update)
    rank = float(len(tensors["blk.0.attn_q.weight.lora_a"]))
    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        # llama.cpp scales by alpha / rank: this scale stands in B already
        writer.add_float32(Keys.Adapter.LORA_ALPHA, rank)
        writer.add_string("raggd.base", base.fingerprint)
        writer.add_string("raggd.backbone", backbone.fingerprint)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.detach().to("cpu", torch.float32).contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path
