"""Adapters of stored support sets, in PEFT's form, made once and kept in the cache folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from raggd.adaptation.export import CONFIG_FILE
from raggd.api import Rag
from raggd.data.supports import load_support, supports_folder
from raggd.files import cache_folder, file_hash
from raggd.methods.weights import PREDICTOR_FILE
from raggd.records import content_id

BASE_NAME = "base"
"""In the place of a support set's id: the base adapter alone."""


def adapter_folder(rag: Rag, name: str) -> Path:
    """Return the PEFT folder of a stored support set, predicting and writing it the first time.

    An adapter that is there already costs no model: only the weight files are hashed.

    Args:
        rag: settings, backbone, weights.
        name: id of a stored support set, or ``base``.

    Returns:
        The folder, named by the support set, the base adapter and the predictor.
    """
    parts = rag.parts
    support = None if name == BASE_NAME else load_support(supports_folder(), name)
    predictor = file_hash(parts.weights / PREDICTOR_FILE) if support else ""
    key = content_id(name, parts.base.fingerprint, predictor)
    folder = cache_folder() / "adapters" / f"{name}-{key}"
    if not (folder / CONFIG_FILE).is_file():
        update = rag.adapt(support) if support else None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder.parent) as scratch:
            made = Path(scratch) / "adapter"
            rag.export_peft(made, update)
            if not (folder / CONFIG_FILE).is_file():  # another process may have been faster
                shutil.rmtree(folder, ignore_errors=True)
                made.rename(folder)
    return folder
