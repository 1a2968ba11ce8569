"""Whether a backbone fits a graphics card, asked before anything is loaded."""

from __future__ import annotations

from typing import Any

import torch

from raggd.records import RaggdError
from raggd.settings import BackboneSettings

BYTES = {"nf4": 0.5625, "bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
"""Per weight of a layer; 4 bits and their scales for NF4, whose embeddings stay in 16 bits."""
SPARE = 1.5e9
"""Bytes for activations, a small cache, and the library itself."""


def weight_bytes(config: Any) -> dict[str, float]:
    """Return the bytes of a model's weights by the type they are held in.

    Args:
        config: of transformers; no weight is made.

    Returns:
        Bytes by the names of `BYTES`.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    make: Any = AutoModelForCausalLM.from_config
    with init_empty_weights():
        model = make(config)
    words, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    body = sum(p.numel() for p in model.parameters() if p is not words and p is not head)
    tables = words.numel() * (1 if getattr(config, "tie_word_embeddings", False) else 2)
    return {
        name: body * size + tables * (2.0 if name == "nf4" else size)
        for name, size in BYTES.items()
    }


def refuse_if_short(name: str, needed: dict[str, float], dtype: str, free: float) -> None:
    """Refuse a backbone that a card cannot hold.

    Args:
        name: of the backbone.
        needed: bytes of the weights by type.
        dtype: that it is to be held in.
        free: bytes of the card that nobody uses.

    Raises:
        RaggdError: too little; what is needed, and what would fit.
    """
    if needed[dtype] + SPARE <= free:
        return
    fits = needed["nf4"] + SPARE <= free and dtype != "nf4"
    offer = (
        f"In 4 bits it needs {_gb(needed['nf4'] + SPARE)}: --set backbone.dtype='nf4' (and the "
        "extra raggd[gpu]). A small evaluation.batch keeps what is left for long prompts."
        if fits
        else "Choose a smaller backbone, a card with more memory, or backbone.device = 'cpu'."
    )
    raise RaggdError(
        f"backbone '{name}' needs {_gb(needed[dtype] + SPARE)} of graphics memory in {dtype}, "
        f"{_gb(free)} are free. {offer}"
    )


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def check_room(source: str, settings: BackboneSettings, device: torch.device) -> None:
    """Ask before loading whether a backbone fits; on a processor nothing is asked.

    Args:
        source: folder or hub name.
        settings: name and dtype.
        device: where it goes.
    """
    if device.type != "cuda":
        return
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
        needed = weight_bytes(config)
    except (OSError, ValueError):  # loading says what is wrong with it
        return
    auto = "bfloat16" if settings.dtype == "auto" else settings.dtype
    refuse_if_short(settings.name, needed, auto, torch.cuda.mem_get_info(device)[0])
