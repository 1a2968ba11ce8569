"""`raggd supports`: answered questions, kept with their passages under an id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raggd.api import Rag
from raggd.assembly import Assembly
from raggd.data.supports import list_supports, save_support, supports_folder


def run_supports_add(parts: Assembly, demonstrations: Path) -> dict[str, Any]:
    """Retrieve for answered questions and keep them.

    Args:
        parts: gives the retriever.
        demonstrations: file of answered questions.

    Returns:
        ``id``, ``demonstrations`` (how many) and ``file``.
    """
    support = Rag(parts).support(demonstrations)
    path = save_support(supports_folder(), support)
    return {"id": support.id, "demonstrations": len(support.demonstrations), "file": str(path)}


def run_supports_list() -> dict[str, Any]:
    """List what is kept.

    Returns:
        ``folder`` and ``supports``: id, number of demonstrations and the first question of each.
    """
    folder = supports_folder()
    found = [
        {
            "id": support.id,
            "demonstrations": len(support.demonstrations),
            "question": support.demonstrations[0].question,
        }
        for support in list_supports(folder)
    ]
    return {"folder": str(folder), "supports": found}
