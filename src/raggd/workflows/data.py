"""`raggd data`: which benchmarks there are, and fetching them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raggd.assembly import POCKET, Assembly
from raggd.data.benchmarks import (
    BENCHMARKS,
    available,
    known_benchmarks,
    scored_questions,
    support_pool,
)
from raggd.data.documents import read_passages
from raggd.data.pocket import POCKET_NAMES, POCKET_SPLITS
from raggd.data.resample import write_resampled
from raggd.data.sources import HUB
from raggd.records import RaggdError


def run_data_list(parts: Assembly) -> dict[str, Any]:
    """List the seven benchmarks with the splits that the source holds; fetches nothing.

    Args:
        parts: settings that name the source.

    Returns:
        ``source`` and ``benchmarks``: name, title, held_out, splits (empty for the hub, which is
        not asked).

    Raises:
        RaggdError: the source is a folder that does not exist.
    """
    folder = parts.settings.data.folder
    splits: dict[str, list[str]] = {name: [] for name in BENCHMARKS}
    if folder == POCKET:
        splits |= {name: list(POCKET_SPLITS) for name in POCKET_NAMES}
    elif folder != HUB:
        if not Path(folder).is_dir():
            raise RaggdError(f"no data folder at {folder}: give a folder in FlashRAG's layout.")
        for benchmark, split, _ in available(folder):
            splits[benchmark.name].append(split)
    entries = [
        {"name": b.name, "title": b.title, "held_out": b.held_out, "splits": splits[b.name]}
        for b in BENCHMARKS.values()
    ]
    return {"source": folder, "benchmarks": entries}


def run_data_fetch(parts: Assembly) -> dict[str, Any]:
    """Fetch what the settings name and count it.

    Args:
        parts: settings that name the source and the benchmarks.

    Returns:
        ``source`` and by benchmark the sizes of support pool and scored set.
    """
    pocket = parts.settings.data.folder == POCKET
    names = list(POCKET_NAMES) if pocket else known_benchmarks(parts.settings.evaluation.benchmarks)
    counts = {
        name: {
            "pool": len(support_pool(parts.source, name)),
            "scored": len(scored_questions(parts.source, name)),
        }
        for name in names
    }
    return {"source": parts.source, "benchmarks": counts}


def run_data_resample(parts: Assembly, passages: int, out: Path, seed: int) -> dict[str, Any]:
    """Write a corpus of any size, made of the sentences of the corpus that the settings name.

    Args:
        parts: settings that name the corpus.
        passages: how many to generate.
        out: the file to write.
        seed: of the draws.

    Returns:
        ``passages``, ``bytes``, ``seed`` and ``file``.
    """
    parts.say(f"putting sentences together to {passages} passages")
    size = write_resampled(read_passages(parts.corpus), passages, out, seed)
    return {"passages": passages, "bytes": size, "seed": seed, "file": str(out)}
