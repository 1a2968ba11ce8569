"""Base adapter and update as one LoRA in PEFT's folder form, which peft, vLLM and others load.

The effective weight is ``s B A`` of the base plus ``s (dB A + (B + dB) dA)`` of the update. The
parts are put side by side by rank concatenation, so the file has rank r for the base alone and 3r
with an update: a small update keeps its digits even where an engine rounds the factors to
bfloat16. The scale s is multiplied into B, and PEFT's alpha equals the rank (a scale of 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from raggd.adaptation.export_prompt import PROMPT_FILE, TEMPLATE_FILE
from raggd.backbone.interface import check_fits
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    BaseAdapter,
    Factors,
    Update,
    concat,
    effective_change,
    effective_weight,
)
from raggd.files import save_tensors, write_json
from raggd.records import RaggdError

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """What was written.

    Attributes:
        folder: holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        rank: of the LoRA; an engine's largest allowed rank must not be below it.
        backbone: the model to load it over, a folder or a Hugging Face name.
    """

    folder: Path
    rank: int
    backbone: str


def lora_factors(base: BaseAdapter, update: Update | None) -> dict[str, Factors]:
    """Base and update as one product per projection, scale included.

    Args:
        base: the shared interface.
        update: a single step from it, or None.

    Returns:
        Factors of rank r without an update, 3r with one, float32, layers stacked.

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

    Args:
        backbone: gives the names of the modules.
        factors: from `lora_factors`.

    Returns:
        ``base_model.model.<module>.lora_A.weight`` (rank, d_in) and ``lora_B`` (d_out, rank).
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
    """Write base adapter and update as one PEFT LoRA, in float32.

    Args:
        folder: to write to; an earlier export in it is replaced.
        backbone: the model that they belong to.
        base: the shared interface.
        update: a single step from it; None writes the base adapter alone.

    Returns:
        Folder, rank and the model to load it over.

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
