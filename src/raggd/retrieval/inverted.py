"""A faiss IVF-PQ index over stored embeddings: candidates for dense search in very large corpora.

Cells and codes are trained on a sample; a passage then takes an eighth of a byte per component
in memory where a graph holds every vector in full. What it proposes is scored exactly.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raggd.files import replacing
from raggd.retrieval.graph import first_pass, import_faiss, read_faiss
from raggd.retrieval.vectors import FirstPass

_PROBES = 256
_CANDIDATES, _CANDIDATES_PER_HIT = 200, 20
_SAMPLE_PER_CELL, _SAMPLE_BYTES = 64, 500_000_000
_ADDED_AT_ONCE = 16_384

IVF_RULES = f"ivf-pq {_PROBES} {_CANDIDATES} {_CANDIDATES_PER_HIT} {_SAMPLE_PER_CELL}"
"""Everything that decides which candidates are found, for fingerprints."""


def cells_for(count: int) -> int:
    """Return the number of cells for a corpus: a power of two near four times its square root."""
    wanted = 4 * count**0.5
    return int(max(1, min(2 ** round(np.log2(wanted)), count // 39)))


def _code_bytes(width: int) -> int:
    # One byte per eight components, or the nearest count that divides the width.
    return next(size for size in range(max(1, width // 8), 0, -1) if width % size == 0)


def build_ivf(embeddings: NDArray[np.float32], file: Path) -> None:
    """Train on a sample, add every vector, and write the index atomically.

    Args:
        embeddings: vectors of length 1, shape (n, width); may be mapped.
        file: the file to write.
    """
    faiss = import_faiss()
    count, width = embeddings.shape
    cells = cells_for(count)
    quantizer = faiss.IndexFlatIP(width)
    inner = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFPQ(quantizer, width, cells, _code_bytes(width), 8, inner)
    for clustering in (index.cp, index.pq.cp):
        clustering.min_points_per_centroid = 1  # small corpora occur in tests: no warnings
    most = min(count, max(256, _SAMPLE_PER_CELL * cells), max(256, _SAMPLE_BYTES // (4 * width)))
    rows = np.sort(np.random.default_rng(0).choice(count, most, replace=False))
    index.train(np.ascontiguousarray(embeddings[rows]))
    for start in range(0, count, _ADDED_AT_ONCE):
        index.add(np.ascontiguousarray(embeddings[start : start + _ADDED_AT_ONCE]))
    with replacing(file) as temporary:
        faiss.write_index(index, str(temporary))


def open_ivf(file: Path, count: int) -> FirstPass:
    """Open the index for searching; its lists stay on disk until they are read.

    Args:
        file: what `build_ivf` wrote.
        count: passages of the corpus, to check against.

    Returns:
        A function that proposes candidates.
    """
    faiss = import_faiss()
    index = read_faiss(file, count, mapped=True)
    probes = faiss.SearchParametersIVF(nprobe=min(_PROBES, int(index.nlist)))
    return first_pass(
        index,
        lambda k, excluded: max(_CANDIDATES, _CANDIDATES_PER_HIT * k) + excluded,
        lambda _: probes,
    )
