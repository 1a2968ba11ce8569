"""The weight files that methods use, and the command that makes each."""

from __future__ import annotations

BASE_FILE = "base.safetensors"
PREDICTOR_FILE = "predictor.safetensors"
MEAN_FILE = "mean.safetensors"
TASK_MEAN_FILE = "task-mean.safetensors"
HYPER_FILE = "hyper.safetensors"
TUNED_FILE = "tuned.safetensors"
GATE_FILE = "gate.safetensors"
PROMPT_FILE = "prompt.safetensors"

FILES_OF: dict[str, tuple[str, ...]] = {
    "query-only": (),
    "vanilla-rag": (),
    "base": (BASE_FILE,),
    "mean-update": (BASE_FILE, MEAN_FILE),
    "tt-sgd": (BASE_FILE,),
    "rag-gd": (BASE_FILE, PREDICTOR_FILE),
}
"""Files of the weights folder that each method reads."""
