"""From settings to an index: which kind, in which folder."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from raggd.data.documents import read_passages
from raggd.files import cache_folder
from raggd.records import RaggdError, content_id
from raggd.retrieval.base import Progress, SizedRetriever
from raggd.retrieval.bm25 import BM25Kind
from raggd.retrieval.corpus import Corpus, Listing, look_at
from raggd.retrieval.dense import DenseKind
from raggd.retrieval.encoder import load_encoder
from raggd.retrieval.folders import read_manifest
from raggd.retrieval.hybrid import HybridRetriever
from raggd.retrieval.memory import Budget, parse_size
from raggd.retrieval.update import (
    TRIAL,
    Announce,
    Estimate,
    Index,
    Kind,
    up_to_date,
    update_index,
)
from raggd.settings import RetrievalSettings

FUSED = ("bm25", "dense")
"""The kinds of index that ``hybrid`` fuses."""


def build_index(
    corpus: Corpus,
    settings: RetrievalSettings,
    folder: Path | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
    *,
    strict: bool = False,
) -> Index:
    """Open the index of a corpus, making it or bringing it up to date unless it is so.

    An index belongs to the place of a corpus and to the settings: files that did not change since
    are not read again, and there is one version of it, the newest.

    Args:
        corpus: the passages, or where to read them.
        settings: kind of retriever and, for dense and hybrid, its encoder.
        folder: the index folder; None names one in the cache folder.
        progress: called with the number of passages done and, where known, of all passages.
        announce: told what a long build will take, before it starts.
        strict: refuse a folder with files that cannot be read.

    Returns:
        The index.
    """
    if settings.retriever == "hybrid":
        return _hybrid(look_at(corpus), settings, folder, progress, announce, strict)
    kind, listing = _kind(settings), look_at(corpus)
    folder = folder or _cached_folder(listing, settings)
    return update_index(listing, folder, kind, progress, announce, strict=strict)


def _hybrid(
    listing: Listing, settings: RetrievalSettings, folder: Path | None,
    progress: Progress | None, announce: Announce | None, strict: bool,
) -> Index:  # fmt: skip
    parts = []
    for kind in FUSED:
        own = folder and folder / kind
        chosen = _only(settings, kind)
        parts.append(build_index(listing, chosen, own, progress, announce, strict=strict))
    retriever, built = HybridRetriever([p.retriever for p in parts]), any(p.built for p in parts)
    return Index(folder or parts[0].folder, retriever, built, parts[0].changes, parts[0].skipped)


def _only(settings: RetrievalSettings, kind: str) -> RetrievalSettings:
    return settings.model_copy(update={"retriever": kind})


def _kind(settings: RetrievalSettings) -> Kind:
    if settings.retriever == "bm25":
        return BM25Kind(Budget(parse_size(settings.memory)))
    if settings.retriever == "dense":
        encoder = load_encoder(settings.encoder, precision=settings.precision)
        return DenseKind(encoder, settings.index_factory)
    raise RaggdError(
        f"retrieval.retriever={settings.retriever} brings its own index: there is none to build. "
        "Fill it with the means of its library."
    )


def _cached_folder(listing: Listing, settings: RetrievalSettings) -> Path:
    parts = [settings.retriever, listing.key]
    if settings.retriever == "dense":
        parts += [settings.encoder, settings.precision, settings.index_factory]
    return cache_folder() / "indexes" / f"{settings.retriever}-{content_id(*parts)}"


def estimate_index(corpus: Corpus, settings: RetrievalSettings) -> Estimate | None:
    """Return what `build_index` would take with its cached folder; None: nothing is to be built."""
    if ":" in settings.retriever:
        return None
    if settings.retriever == "hybrid":
        parts = [estimate_index(corpus, _only(settings, kind)) for kind in FUSED]
        left = [part for part in parts if part]
        return max(left, key=lambda part: part.seconds) if left else None
    kind, listing = _kind(settings), look_at(corpus)
    if up_to_date(listing, _cached_folder(listing, settings), kind):
        return None
    read = read_passages(corpus, unique=False) if isinstance(corpus, Path) else listing.read("")
    passages = iter(read)
    sample = list(islice(passages, TRIAL))
    return kind.estimate(sample, len(sample) + sum(1 for _ in passages))


def open_retriever(folder: Path, settings: RetrievalSettings) -> SizedRetriever:
    """Return the index in a folder; one of another kind, encoder or format is refused."""
    if settings.retriever == "hybrid":
        parts = [open_retriever(folder / kind, _only(settings, kind)) for kind in FUSED]
        return HybridRetriever(parts)
    read_manifest(folder, settings.retriever)
    return _kind(settings).open(folder)
