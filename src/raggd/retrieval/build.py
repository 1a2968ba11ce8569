"""Index a corpus once: the same corpus and parameters find the index that is already there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from raggd.files import cache_folder
from raggd.records import RaggdError, require_known
from raggd.retrieval.base import Progress, SizedRetriever
from raggd.retrieval.bm25 import bm25_fingerprint, build_bm25, open_bm25
from raggd.retrieval.contents import Corpus, content, streamed
from raggd.retrieval.dense import Sizes, build_dense, dense_fingerprint, open_dense
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.retrieval.estimate import (
    LONG,
    TRIAL,
    Announce,
    Estimate,
    estimate_bm25,
    estimate_dense,
)
from raggd.retrieval.folders import FORMATS, check_replaceable, read_manifest
from raggd.retrieval.memory import Budget, parse_size
from raggd.settings import RetrievalSettings


@dataclass(frozen=True, slots=True)
class Index:
    """An index, opened.

    Attributes:
        folder: where it lies.
        retriever: searches it.
        built: whether it was made now, not found.
    """

    folder: Path
    retriever: SizedRetriever
    built: bool


def build_index(
    corpus: Corpus,
    settings: RetrievalSettings,
    folder: Path | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Index:
    """Open the index of a corpus, building it first unless it is there.

    Args:
        corpus: the passages, or where to read them.
        settings: kind of retriever and, for dense, its encoder.
        folder: the index folder; None names one by fingerprint in the cache folder.
        progress: called with the number of passages done and, where known, of all passages.
        announce: told what a long build will take, before it starts.

    Returns:
        The index; it is built anew when corpus, parameters, tokenizer or encoder differ.
    """
    encoder = _encoder_of(settings)
    count, corpus_hash = content(corpus)
    fingerprint = _fingerprint(count, corpus_hash, settings, encoder)
    folder = folder or _cached_folder(settings.retriever, fingerprint)
    check_replaceable(folder)
    if _fingerprint_of(folder) == fingerprint:
        return Index(folder, _opened(folder, encoder), built=False)
    if announce is not None and count >= LONG:
        announce(_estimated(corpus, count, settings, encoder))
    if encoder:
        build_dense(streamed(corpus), folder, encoder, progress, known=corpus_hash)
    else:
        budget = Budget(parse_size(settings.memory))
        build_bm25(streamed(corpus), folder, progress, budget=budget, known=(count, corpus_hash))
    return Index(folder, _opened(folder, encoder), built=True)


def estimate_index(corpus: Corpus, settings: RetrievalSettings) -> Estimate | None:
    """Estimate what `build_index` would take with its cached folder, without building.

    Args:
        corpus: the passages, or where to read them.
        settings: kind of retriever and, for dense, its encoder.

    Returns:
        The estimate; None if the index is there already.

    Raises:
        RaggdError: corpus or encoder cannot be loaded.
    """
    encoder = _encoder_of(settings)
    count, corpus_hash = content(corpus)
    fingerprint = _fingerprint(count, corpus_hash, settings, encoder)
    if _fingerprint_of(_cached_folder(settings.retriever, fingerprint)) == fingerprint:
        return None
    return _estimated(corpus, count, settings, encoder)


def _estimated(
    corpus: Corpus, count: int, settings: RetrievalSettings, encoder: Encoder | None
) -> Estimate:
    sample = list(islice(streamed(corpus), TRIAL))
    if encoder:
        return estimate_dense(sample, count, encoder)
    return estimate_bm25(sample, count, Budget(parse_size(settings.memory)))


def _fingerprint(
    count: int, corpus_hash: str, settings: RetrievalSettings, encoder: Encoder | None
) -> str:
    if encoder is None:
        return bm25_fingerprint(corpus_hash)
    return dense_fingerprint(encoder, corpus_hash, Sizes().way(count))


def _cached_folder(kind: str, fingerprint: str) -> Path:
    # An index of an older format that is there already is as good.
    versions = range(FORMATS[kind], 0, -1)
    folders = [cache_folder() / "indexes" / f"{kind}-v{v}-{fingerprint}" for v in versions]
    return next((folder for folder in folders if _fingerprint_of(folder)), folders[0])


def open_retriever(folder: Path, settings: RetrievalSettings) -> SizedRetriever:
    """Open an index folder as the settings describe it.

    Args:
        folder: an index folder.
        settings: kind of retriever and, for dense, its encoder.

    Returns:
        The retriever; a folder of another kind, encoder or format is refused.
    """
    read_manifest(folder, settings.retriever)
    return _opened(folder, _encoder_of(settings))


def _encoder_of(settings: RetrievalSettings) -> Encoder | None:
    if ":" in settings.retriever:
        raise RaggdError(
            f"retrieval.retriever={settings.retriever} brings its own index: there is none to "
            "build. Fill it with the means of its library."
        )
    require_known("kind of index", settings.retriever, list(FORMATS))
    if settings.retriever == "bm25":
        return None
    return load_encoder(settings.encoder, precision=settings.precision)


def _opened(folder: Path, encoder: Encoder | None) -> SizedRetriever:
    return open_dense(folder, encoder) if encoder else open_bm25(folder)


def _fingerprint_of(folder: Path) -> str:
    # What cannot be read as an index is replaced by one, so it is no error here.
    try:
        return str(read_manifest(folder).get("fingerprint"))
    except RaggdError:
        return ""
