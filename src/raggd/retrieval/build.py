"""Index a corpus once: the same corpus and parameters find the index that is already there."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raggd.data import corpus as corpus_reader
from raggd.data.corpus import corpus_hash, read_passages
from raggd.files import cache_folder, file_hash, read_json, write_json
from raggd.records import Passage, RaggdError, content_id
from raggd.retrieval.base import Progress
from raggd.retrieval.bm25 import BM25Retriever, bm25_fingerprint, build_bm25, open_bm25
from raggd.retrieval.dense import DenseRetriever, build_dense, dense_fingerprint, open_dense
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.retrieval.folders import FORMATS, check_replaceable, read_manifest
from raggd.retrieval.memory import Budget, parse_size
from raggd.retrieval.store import id_key, storable
from raggd.settings import RetrievalSettings

Corpus = Path | Sequence[Passage] | Callable[[], Iterable[Passage]]
"""A file or folder, passages, or a function that streams passages anew at each call."""

IndexRetriever = BM25Retriever | DenseRetriever


@dataclass(frozen=True, slots=True)
class Index:
    """An index on disk, opened.

    Attributes:
        folder: where it lies.
        retriever: searches it.
        built: whether it was made now, not found.
    """

    folder: Path
    retriever: IndexRetriever
    built: bool


def build_index(
    corpus: Corpus,
    settings: RetrievalSettings,
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Index:
    """Open the index of a corpus, building it first unless it is there.

    Args:
        corpus: the passages, or where to read them.
        settings: kind of retriever and, for dense, its encoder.
        folder: the index folder; None names one by fingerprint in the cache folder.
        progress: called with the number of passages done and, where known, of all passages.

    Returns:
        The index; it is built anew when corpus, parameters, tokenizer or encoder differ.
    """
    encoder = _encoder_of(settings)
    count, content = _content(corpus)
    fingerprint = dense_fingerprint(encoder, content) if encoder else bm25_fingerprint(content)
    folder = folder or _cached_folder(settings.retriever, fingerprint)
    check_replaceable(folder)
    if _fingerprint_of(folder) == fingerprint:
        return Index(folder, _opened(folder, encoder), built=False)
    if encoder:
        build_dense(_streamed(corpus), folder, encoder, progress, known=content)
    else:
        budget = Budget(parse_size(settings.memory))
        build_bm25(_streamed(corpus), folder, progress, budget=budget, known=(count, content))
    return Index(folder, _opened(folder, encoder), built=True)


def _cached_folder(kind: str, fingerprint: str) -> Path:
    # An index of an older format that is there already is as good.
    versions = range(FORMATS[kind], 0, -1)
    folders = [cache_folder() / "indexes" / f"{kind}-v{v}-{fingerprint}" for v in versions]
    return next((folder for folder in folders if _fingerprint_of(folder)), folders[0])


def open_retriever(folder: Path, settings: RetrievalSettings) -> IndexRetriever:
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
    if settings.retriever != "dense":
        return None
    return load_encoder(settings.encoder, precision=settings.precision)


def _opened(folder: Path, encoder: Encoder | None) -> IndexRetriever:
    return open_dense(folder, encoder) if encoder else open_bm25(folder)


def _fingerprint_of(folder: Path) -> str:
    # What cannot be read as an index is replaced by one, so it is no error here.
    try:
        return str(read_manifest(folder).get("fingerprint"))
    except RaggdError:
        return ""


def _streamed(corpus: Corpus) -> Iterable[Passage]:
    if isinstance(corpus, Path):
        return read_passages(corpus, unique=False)  # the index finds ids given twice
    return corpus() if callable(corpus) else corpus


def _content(corpus: Corpus) -> tuple[int, str]:
    # Number of passages and hash of a corpus.
    if not isinstance(corpus, Path):
        count, value = _counted(_streamed(corpus))
        return abs(count), value
    # Reading and splitting files takes seconds to minutes: remembered while none of them changes.
    memo = cache_folder() / "indexes" / "corpora" / f"{_files_state(corpus)}.json"
    if memo.is_file():
        known = read_json(memo, what="remembered corpus hash")
        return int(known["passages"]), str(known["corpus_hash"])
    count, value = _counted(_streamed(corpus))
    if count < 0:
        for _ in read_passages(corpus):  # slower, but it names the id and the file
            pass
        count = -count
    entry = {"path": str(corpus.resolve()), "passages": count, "corpus_hash": value}
    write_json(memo, entry)
    return count, value


def _counted(passages: Iterable[Passage]) -> tuple[int, str]:
    # Number of passages, below 0 if two seem to have the same id, and hash.
    keys = array("Q")

    def seen() -> Iterator[Passage]:
        for passage in map(storable, passages):
            keys.append(id_key(passage.id))
            yield passage

    value = corpus_hash(seen())
    same = len(np.unique(np.frombuffer(keys, dtype=np.uint64))) < len(keys)
    return -len(keys) if same else len(keys), value


def _files_state(path: Path) -> str:
    # The reader's own code counts too: split otherwise, the same files are another corpus.
    parts = [str(path.resolve()), file_hash(Path(corpus_reader.__file__))]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        state = file.stat()
        parts.append(f"{file} {state.st_size} {state.st_mtime_ns}")
    return content_id(*parts, length=32)
