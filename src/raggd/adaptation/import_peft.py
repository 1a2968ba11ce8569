"""A PEFT LoRA of another system on q, k and v, read into the one forward path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.export import CONFIG_FILE, WEIGHTS_FILE
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    concat,
    effective_weight,
)
from raggd.files import load_tensors, read_json
from raggd.records import RaggdError
from raggd.settings import AdapterSettings

_NAME = re.compile(r"\.(\d+)\.(?:self_attn|attn|attention)\.([qkv])_proj\.lora_([AB])\.")


def _factors(
    tensors: dict[str, Tensor], spec: AdapterSpec, path: Path
) -> dict[tuple[int, str, str], Tensor]:
    found = {}
    for name, tensor in tensors.items():
        match = _NAME.search(name)
        if match is None:
            raise RaggdError(
                f"{path}: '{name}' is no LoRA of a q, k or v projection: the audit reads adapters "
                "of these three alone (target_modules q_proj, k_proj, v_proj)."
            )
        found[int(match[1]), match[2], match[3]] = tensor.float()
    if any(layer >= spec.layers for layer, *_ in found):
        raise RaggdError(f"{path} has layers that the backbone of {spec.layers} layers lacks.")
    return found


def read_peft(folder: Path, backbone: Backbone) -> BaseAdapter:
    """Read a PEFT folder as an adapter of the bare backbone.

    Args:
        folder: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        backbone: the model that it belongs to.

    Returns:
        The adapter, in float32; a projection that it leaves out is zero.

    Raises:
        RaggdError: it is no LoRA, adapts other modules, or has other shapes.
    """
    config = read_json(folder / CONFIG_FILE, what="adapter configuration")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise RaggdError(f"{folder / CONFIG_FILE} names no rank r and lora_alpha: no LoRA of PEFT.")
    scale = alpha / rank**0.5 * rank if config.get("use_rslora") else alpha
    spec = backbone.adapter_spec(AdapterSettings(rank=rank, alpha=float(scale)))
    path = folder / WEIGHTS_FILE
    held = _factors(load_tensors(path)[0], spec, path)
    factors = {}
    for projection in PROJECTIONS:
        shapes = [spec.shapes[f"{projection}.{part}"][1:] for part in ("a", "b")]
        layers = []
        for layer in range(spec.layers):
            pair = [
                held.get((layer, projection, part), torch.zeros(shape))
                for part, shape in zip("AB", shapes, strict=True)
            ]
            if [tuple(t.shape) for t in pair] != shapes:
                raise RaggdError(
                    f"{path}, layer {layer}, {projection}: shapes {[tuple(t.shape) for t in pair]},"
                    f" expected {shapes}: it was made for another backbone or rank."
                )
            layers.append(pair)
        factors[projection] = Factors(*(torch.stack(part) for part in zip(*layers, strict=True)))
    return BaseAdapter(spec, factors, backbone.fingerprint)


def mean_adapter(adapters: Sequence[BaseAdapter]) -> BaseAdapter:
    """Average the effective changes of adapters, by rank concatenation.

    Args:
        adapters: of one backbone, at least one; their ranks may differ.

    Returns:
        An adapter whose product is the mean of the products: the mean of A and the mean of B apart
        would be another thing.
    """
    weights = [effective_weight(adapter) for adapter in adapters]
    factors = {}
    for projection in PROJECTIONS:
        parts = [w[projection] for w in weights]
        whole = concat([Factors(p.a, p.b / len(parts)) for p in parts])
        factors[projection] = whole
    rank = factors["q"].a.shape[-2]
    spec = replace(adapters[0].spec, rank=rank, alpha=float(rank))
    return BaseAdapter(spec, factors, adapters[0].backbone)
