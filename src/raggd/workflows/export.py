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


def _to_peft(rag: Rag, folder: Path, update: Update | None) -> dict[str, Any]:
    written = rag.export_peft(folder, update)
    return {"folder": str(written.folder), "rank": written.rank, "backbone": written.backbone}


def _to_gguf(rag: Rag, file: Path, update: Update | None) -> dict[str, Any]:
    path = rag.export_gguf(file, update)
    return {"file": str(path), "bytes": path.stat().st_size}


FORMS = {"peft": _to_peft, "gguf": _to_gguf}


def run_export(parts: Assembly, form: str, to: Path, chosen: Chosen) -> dict[str, Any]:
    """Write base adapter and update in the form of another engine.

    Args:
        parts: settings, backbone, weights.
        form: one of `FORMS`.
        to: folder (peft) or file (gguf) to write.
        chosen: where the update comes from.

    Returns:
        ``adapted``, and of peft ``folder``, ``rank`` and ``backbone`` (what to load it over), of
        gguf ``file`` and ``bytes``.
    """
    rag = Rag(parts)
    update = chosen_update(rag, chosen)
    return {**FORMS[form](rag, to, update), "adapted": update is not None}
