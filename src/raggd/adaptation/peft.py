"""LoRA adapters in PEFT's folder form, which peft, vLLM and others load: ours out, others' in.

The effective weight is ``s B A`` of the base plus ``s (dB A + (B + dB) dA)`` of the update. The
parts are put side by side by rank concatenation, so the file has rank r for the base alone and 3r
with an update: a small update keeps its digits even where an engine rounds the factors to
bfloat16. The scale s is multiplied into B, and PEFT's alpha equals the rank (a scale of 1).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.export_prompt import PROMPT_FILE, TEMPLATE_FILE
from raggd.backbone.interface import check_fits
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    Update,
    concat,
    effective_change,
    effective_weight,
)
from raggd.files import load_tensors, read_json, save_tensors, write_json
from raggd.records import RaggdError
from raggd.settings import AdapterSettings

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """What was written: ``adapter_config.json`` and ``adapter_model.safetensors`` in a folder.

    Attributes:
        rank: of the LoRA; an engine's largest allowed rank must not be below it.
        backbone: the model to load it over, a folder or a Hugging Face name.
    """

    folder: Path
    rank: int
    backbone: str


def lora_factors(base: BaseAdapter, update: Update | None) -> dict[str, Factors]:
    """Base and a single update as one product per projection, scale included.

    Its rank is r without an update, 3r with one.

    Raises:
        RaggdError: the update is a batch.
    """
    whole = effective_weight(base)
    if update is None:
        return whole
    if update.rows is not None:
        raise RaggdError(
            f"cannot export a batch of {update.rows} updates as one adapter: export each row "
            "(`update.row(i)`)."
        )
    change = effective_change(base, update)
    return {p: concat([whole[p], change[p]]) for p in PROJECTIONS}


def model_source(backbone: Backbone) -> str:
    """Return where the backbone was loaded from: a folder or a Hugging Face name."""
    return str(getattr(backbone.model, "name_or_path", "") or backbone.name)


def _paths(backbone: Backbone) -> dict[str, list[str]]:
    # the dotted name of every projection in the model
    names = {id(module): name for name, module in backbone.model.named_modules()}
    return {p: [names[id(module)] for module in backbone.projections[p]] for p in PROJECTIONS}


def peft_tensors(backbone: Backbone, factors: dict[str, Factors]) -> dict[str, Tensor]:
    """Name the factors of every layer as PEFT does.

    ``base_model.model.<module>.lora_A.weight`` is (rank, d_in), ``lora_B`` (d_out, rank), float32.
    """
    tensors = {}
    for projection, paths in _paths(backbone).items():
        a, b = factors[projection]
        for layer, path in enumerate(paths):
            tensors[f"base_model.model.{path}.lora_A.weight"] = a[layer].float()
            tensors[f"base_model.model.{path}.lora_B.weight"] = b[layer].float()
    return tensors


def _config(source: str, rank: int) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [f"{p}_proj" for p in PROJECTIONS],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }


def _check_target(folder: Path) -> None:
    # another adapter may be replaced; anything else that lies in the folder may be precious
    if folder.is_dir():
        ours = {WEIGHTS_FILE, CONFIG_FILE, TEMPLATE_FILE, PROMPT_FILE}
        strange = {path.name for path in folder.iterdir()} - ours
        if strange:
            raise RaggdError(
                f"{folder} holds other files ({', '.join(sorted(strange)[:3])}): name a new or "
                "empty folder, or that of an earlier export."
            )
    elif folder.exists():
        raise RaggdError(f"{folder} is a file: name a folder for the adapter.")


def write_peft(
    folder: Path, backbone: Backbone, base: BaseAdapter, update: Update | None = None
) -> PeftFolder:
    """Write base adapter and update as one PEFT LoRA, in float32; an earlier export is replaced.

    Raises:
        RaggdError: backbone, base and update do not belong together, or the folder holds
            something else.
    """
    check_fits(backbone, base, update)
    _check_target(folder)
    factors = lora_factors(base, update)
    rank = factors["q"].a.shape[-2]
    source = model_source(backbone)
    metadata = {"format": "pt", "raggd_base": base.fingerprint, "backbone": backbone.fingerprint}
    (folder / CONFIG_FILE).unlink(missing_ok=True)  # no config, no adapter, until all is written
    save_tensors(folder / WEIGHTS_FILE, peft_tensors(backbone, factors), metadata)
    write_json(folder / CONFIG_FILE, _config(source, rank))
    return PeftFolder(folder, rank, source)


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
    """Read a PEFT folder as an adapter of the bare backbone, in float32.

    A projection that it leaves out is zero.

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
    """Average the effective changes of adapters of one backbone, by rank concatenation.

    Its product is the mean of the products: the mean of A and the mean of B apart would be another
    thing. Ranks may differ.
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
