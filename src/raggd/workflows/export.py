"""`raggd export`: base adapter and update, in the forms that other engines load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raggd.api import Rag
from raggd.assembly import Assembly
from raggd.core.low_rank import Update
from raggd.core.storage import load_update
from raggd.data.supports import load_support, supports_folder
from raggd.records import RaggdError


@dataclass(frozen=True, slots=True)
class Chosen:
    """Where the update comes from; with none of the three, the base adapter alone is exported.

    Attributes:
        demonstrations: file of answered questions.
        support: id of a stored support set.
        update: file that `Update.save` wrote.
    """

    demonstrations: Path | None = None
    support: str | None = None
    update: Path | None = None


def chosen_update(rag: Rag, chosen: Chosen) -> Update | None:
    """Make or load the update to export.

    Args:
        rag: adapts.
        chosen: where the update comes from.

    Returns:
        The update; None for the base adapter alone.

    Raises:
        RaggdError: more than one source is named.
    """
    named = [chosen.demonstrations, chosen.support, chosen.update]
    if sum(value is not None for value in named) > 1:
        raise RaggdError("name one of --demonstrations, --support and --update, not several.")
    if chosen.update is not None:
        return load_update(chosen.update)
    if chosen.support is not None:
        return rag.adapt(load_support(supports_folder(), chosen.support))
    return rag.adapt(chosen.demonstrations) if chosen.demonstrations is not None else None


def run_export_peft(parts: Assembly, folder: Path, chosen: Chosen) -> dict[str, Any]:
    """Write a PEFT LoRA.

    Args:
        parts: settings, backbone, weights.
        folder: to write to.
        chosen: where the update comes from.

    Returns:
        ``folder``, ``rank``, ``backbone`` (what to load it over) and ``adapted``.
    """
    rag = Rag(parts)
    update = chosen_update(rag, chosen)
    written = rag.export_peft(folder, update)
    return {
        "folder": str(written.folder),
        "rank": written.rank,
        "backbone": written.backbone,
        "adapted": update is not None,
    }


def run_export_gguf(parts: Assembly, file: Path, chosen: Chosen) -> dict[str, Any]:
    """Write a GGUF LoRA.

    Args:
        parts: settings, backbone, weights.
        file: to write to.
        chosen: where the update comes from.

    Returns:
        ``file``, ``bytes`` and ``adapted``.
    """
    rag = Rag(parts)
    update = chosen_update(rag, chosen)
    path = rag.export_gguf(file, update)
    return {"file": str(path), "bytes": path.stat().st_size, "adapted": update is not None}
