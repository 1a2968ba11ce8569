"""Index one's own documents once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.assembly import Assembly
from raggd.retrieval.memory import peak_memory
from raggd.retrieval.update import Estimate


def run_index(
    parts: Assembly,
    path: Path,
    announce: Callable[[str], None] | None = None,
    *,
    strict: bool = False,
) -> dict[str, Any]:
    """Index a corpus, or bring its index up to date.

    Args:
        parts: settings of the retriever.
        path: the corpus.
        announce: told in one line what a long build will take, before it starts.
        strict: refuse a folder with files that cannot be read.

    Returns:
        ``passages``, ``fingerprint``, ``folder``, ``built`` (false: it was there), ``changes``
        (files and passages that came, changed and went; ``changed``: in one line), ``skipped``
        (files that are not in it, with reasons), ``seconds``, ``peak_memory`` (bytes that the
        process held at most) and ``estimate`` (of a long build, else None).
    """
    started = time.perf_counter()
    estimates: list[Estimate] = []

    def told(estimate: Estimate) -> None:
        estimates.append(estimate)
        if announce is not None:
            announce(f"{estimate}.")

    index = parts.index_of(path, told, strict=strict)
    return {
        "passages": len(index.retriever),
        "fingerprint": index.retriever.fingerprint,
        "folder": str(index.folder),
        "built": index.built,
        "changes": asdict(index.changes),
        "changed": str(index.changes),
        "skipped": [asdict(each) for each in index.skipped],
        "seconds": round(time.perf_counter() - started, 2),
        "peak_memory": peak_memory(),
        "estimate": asdict(estimates[0]) if estimates else None,
    }
