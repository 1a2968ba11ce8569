"""Where a backbone runs: device, computing type, room on a card, and how a processor is used."""

from __future__ import annotations

import ctypes
import sys
import threading
from functools import cache
from typing import Any

import torch

from raggd.files import first_line
from raggd.records import RaggdError
from raggd.settings import BackboneSettings

BYTES = {"nf4": 0.5625, "bfloat16": 2.0, "float16": 2.0, "float32": 4.0}
"""Per weight of a layer; 4 bits and their scales for NF4, whose embeddings stay in 16 bits."""
SPARE = 1.5e9  # bytes for activations, a small cache, and the library itself
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from glibc's malloc.h
_TEMPORARY = 2**30  # bytes up to which a tensor comes from the heap instead of a mapping of its own
_KEPT = 2**31 - 1  # bytes of free heap that are kept; mallopt takes an int


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    try:  # Apple's GPUs have it from macOS 14 on
        ones = torch.ones(2, 2, device=device, dtype=torch.bfloat16)
        return bool((ones @ ones == 2).all())
    except (RuntimeError, TypeError):
        return False


def choose_dtype(settings: BackboneSettings, device: torch.device) -> torch.dtype:
    """Choose the computing type: as set, else bfloat16 where native, float16 on a GPU, float32."""
    card = device.type == "cuda"
    if settings.dtype in {"auto", "nf4"}:
        other = torch.float16 if card else torch.float32
        return torch.bfloat16 if _has_bfloat16(device) else other
    if settings.dtype == "bfloat16" and card and not _has_bfloat16(device):
        raise RaggdError(
            f"backbone.dtype = 'bfloat16': {torch.cuda.get_device_name(device)} does not "
            "compute in it. Use 'float16', or 'auto', which chooses it there."
        )
    return getattr(torch, settings.dtype)  # type: ignore[no-any-return]


def choose_device(name: str) -> torch.device:
    """Find a device; ``auto`` is CUDA, Apple's GPU or the processor; a missing one is refused."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise _unusable(name, first_line(error)) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        why = "no driver of NVIDIA answers" if torch.version.cuda else "this torch is built without"
        raise _unusable(name, f"CUDA cannot be used here, {why}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise _unusable(name, f"torch sees {torch.cuda.device_count()} GPUs")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise _unusable(name, "there is no GPU of Apple")
    return device


def _unusable(name: str, reason: str) -> RaggdError:
    return RaggdError(f"backbone.device = '{name}': {reason}. Use 'auto' or 'cpu'.")


def quantization(settings: BackboneSettings, device: torch.device) -> dict[str, Any]:
    """Return transformers' options for 4-bit weights, or none; off a GPU they are refused."""
    if settings.dtype != "nf4":
        return {}
    if device.type != "cuda":
        raise RaggdError(
            "backbone.dtype = 'nf4' needs a GPU: on a processor bitsandbytes silently loses the "
            "adapter's gradients. Use 'auto'."
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=choose_dtype(settings, device),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def weight_bytes(config: Any) -> dict[str, float]:
    """Return the bytes of a model's weights by the names of `BYTES`; no weight is made."""
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
    """Refuse a backbone that needs more bytes than are free; say what would fit."""
    if needed[dtype] + SPARE <= free:
        return
    fits = needed["nf4"] + SPARE <= free and dtype != "nf4"
    wanted, narrow = ((needed[kind] + SPARE) / 1e9 for kind in (dtype, "nf4"))
    offer = (
        f"In 4 bits it needs {narrow:.1f} GB: --set backbone.dtype='nf4' (and the extra "
        "raggd[gpu]). A small evaluation.batch keeps what is left for long prompts."
        if fits
        else "Choose a smaller backbone, a card with more memory, or backbone.device = 'cpu'."
    )
    raise RaggdError(
        f"backbone '{name}' needs {wanted:.1f} GB of graphics memory in {dtype}, "
        f"{free / 1e9:.1f} GB are free. {offer}"
    )


def check_room(source: str, settings: BackboneSettings, device: torch.device) -> None:
    """Ask before loading whether a card holds a backbone; on a processor nothing is asked."""
    if device.type != "cuda":
        return
    from transformers import AutoConfig

    try:
        needed = weight_bytes(AutoConfig.from_pretrained(source))
    except (OSError, ValueError):  # loading says what is wrong with it
        return
    auto = "bfloat16" if settings.dtype == "auto" else settings.dtype
    refuse_if_short(settings.name, needed, auto, torch.cuda.mem_get_info(device)[0])


@cache
def keep_freed_memory() -> bool:
    """Tell glibc's allocator, for the whole process, to keep freed blocks; say whether it can.

    A forward pass makes and frees tensors of a few megabytes in every layer. By default each is
    mapped anew and zeroed by the kernel: a sixth of the time of reading a batch of prompts.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _TEMPORARY) and mallopt(_TRIM_THRESHOLD, _KEPT))


def leave_one() -> int:
    """Leave one processor thread to every thread that computes from now on; return the number.

    For `claim` in the one thread that shall run the model: OpenMP keeps helpers for every thread
    that ever computed, and puts them to sleep after each product once all together are more than
    the cores, which nearly halves the speed of decoding.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    return before


def claim(threads: int) -> None:
    """Let this thread, and no other, compute with as many threads as `leave_one` returned."""
    torch.get_num_threads()  # a thread's first question sets it to the default
    torch.set_num_threads(threads)
    # the number holds for this thread and is the default of new ones: another thread sets that back
    other = threading.Thread(target=torch.set_num_threads, args=(1,))
    other.start()
    other.join()
