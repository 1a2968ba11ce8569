"""The weight files that methods use, and the command that makes each."""

from __future__ import annotations

from pathlib import Path

from raggd.files import file_hash
from raggd.records import RaggdError

BASE_FILE = "base.safetensors"
PREDICTOR_FILE = "predictor.safetensors"
MEAN_FILE = "mean.safetensors"
TASK_MEAN_FILE = "task-mean.safetensors"
HYPER_FILE = "hyper.safetensors"
TUNED_FILE = "tuned.safetensors"
MEAN_TUNED_FILE = "mean-tuned.safetensors"
RIDGE_FILE = "ridge.safetensors"
GATE_FILE = "gate.safetensors"
PROMPT_FILE = "prompt.safetensors"

_MADE_BY = {
    BASE_FILE: "raggd train base",
    TASK_MEAN_FILE: "raggd train task-mean",
    HYPER_FILE: "raggd train hyper",
    TUNED_FILE: "raggd train hyper --set hyper_tuning.start=predictor",
    MEAN_TUNED_FILE: "raggd train hyper --set hyper_tuning.start=mean",
    RIDGE_FILE: "raggd train ridge",
    GATE_FILE: "raggd train gate",
    PROMPT_FILE: "raggd train prompt",
}
_RAG_GD = (BASE_FILE, PREDICTOR_FILE)
FILES_OF: dict[str, tuple[str, ...]] = {
    "query-only": (),
    "vanilla-rag": (),
    "vanilla-few-shot": (),
    "base": (BASE_FILE,),
    "base-few-shot": (BASE_FILE,),
    "prompt-tuning": (PROMPT_FILE,),
    "hyper-tuning": (BASE_FILE, HYPER_FILE),
    "mean-update": (BASE_FILE, MEAN_FILE),
    "mean-tuned": (BASE_FILE, MEAN_TUNED_FILE),
    "task-mean": (BASE_FILE, TASK_MEAN_FILE),
    "tt-sgd-k1": (BASE_FILE,),
    "tt-sgd": (BASE_FILE,),
    "tt-sgd-k10": (BASE_FILE,),
    "rag-gd-k1": (BASE_FILE, "predictor-k1.safetensors"),
    "rag-gd": _RAG_GD,
    "rag-gd-k10": (BASE_FILE, "predictor-k10.safetensors"),
    "rag-gd-ridge": (BASE_FILE, RIDGE_FILE),
    "rag-gd-tuned": (BASE_FILE, TUNED_FILE),
    "rag-gd-gated": (BASE_FILE, TUNED_FILE, GATE_FILE),
    "rag-gd-step": _RAG_GD,
    "shuffled-support": _RAG_GD,
    "irrelevant-passages": _RAG_GD,
    "rag-gd-x0.5": _RAG_GD,
    "rag-gd-x2": _RAG_GD,
}
"""Files of the weights folder that each method reads, methods in the order of the tables."""
GRADIENT_STEPS = {"tt-sgd-k1": 1, "tt-sgd": 0, "tt-sgd-k10": 10, "rag-gd-step": 1}
"""Gradient steps that methods take at test time; 0: as many as `target.steps` says."""


def made_by(file: str) -> str:
    """Return the command that makes a weight file."""
    steps = file.removeprefix("predictor-k").removesuffix(".safetensors")
    if steps.isdecimal():
        return f"raggd train predictor --set predictor.target_steps={steps}"
    return _MADE_BY.get(file, "raggd train predictor")


def weight_file(folder: Path, file: str) -> Path:
    """Find a weight file.

    Args:
        folder: of the weights.
        file: its name.

    Returns:
        Its path.

    Raises:
        RaggdError: it is not there; the command that makes it is named.
    """
    path = folder / file
    if not path.is_file():
        raise RaggdError(
            f"no weight file at {path}: make it with `{made_by(file)}` and name its folder by "
            "adapter.weights."
        )
    return path


def adapting_method(folder: Path) -> str:
    """Name the method by which demonstrations adapt the model where nobody names another.

    Args:
        folder: of the weights.

    Returns:
        ``rag-gd-tuned`` where its predictor is there, else the paper's ``rag-gd``.
    """
    return "rag-gd-tuned" if (folder / TUNED_FILE).is_file() else "rag-gd"


def weights_hash(path: Path) -> str:
    """Return the short hash by which records name a weight file: 16 hexadecimal digits."""
    return file_hash(path)[:16]
