"""raggd: retrieval-augmented generation that adapts to a task in one forward pass.

The library follows the way of a question: documents -> index -> hits -> demonstrations -> update ->
answer -> scores -> report. The names below are loaded when they are first used, so that importing
raggd costs nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# read when torch is imported: what Apple's GPU lacks runs on the processor, and torch says so once
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_GROUPS = {
    "raggd.records": (
        "Demonstration",
        "Hit",
        "Passage",
        "Prediction",
        "Question",
        "RaggdError",
        "RunRecord",
        "SupportSet",
    ),
    "raggd.api": ("Answer", "Rag", "load"),
    "raggd.settings": ("Settings", "load_settings"),
    "raggd.core.low_rank": ("AdapterSpec", "BaseAdapter", "Update", "load_update"),
    "raggd.data.documents": ("read_passages",),
    "raggd.data.remarks": ("DemonstrationWarning",),
    "raggd.retrieval.base": ("Retriever",),
    "raggd.retrieval.build": ("build_index",),
    "raggd.backbone.load": ("Backbone", "load_backbone"),
    "raggd.backbone.interface": ("attach",),
    "raggd.assembly": ("Assembly",),
}
_HOME = {name: module for module, names in _GROUPS.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'raggd' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
