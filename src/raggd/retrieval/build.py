"""Index a corpus once: the same corpus and parameters find the index that is already there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from raggd.data import corpus as corpus_reader
from raggd.data.corpus import corpus_hash, read_passages
from raggd.files import cache_folder, file_hash, read_json, write_json
from raggd.records import Passage, RaggdError, content_id
from raggd.retrieval.base import Progress
from raggd.retrieval.bm25 import BM25Retriever, bm25_fingerprint, build_bm25, open_bm25
from raggd.retrieval.dense import DenseRetriever, build_dense, dense_fingerprint, open_dense
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.retrieval.store import FORMAT_VERSION, check_replaceable, read_manifest
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
    content = _content_hash(corpus)
    fingerprint = dense_fingerprint(encoder, content) if encoder else bm25_fingerprint(content)
    if folder is None:
        name = f"{settings.retriever}-v{FORMAT_VERSION}-{fingerprint}"
        folder = cache_folder() / "indexes" / name
    check_replaceable(folder)
    if _fingerprint_of(folder) == fingerprint:
        return Index(folder, _opened(folder, encoder), built=False)
    if encoder:
        build_dense(_streamed(corpus), folder, encoder, progress)
    else:
        build_bm25(_streamed(corpus), folder, progress)
    return Index(folder, _opened(folder, encoder), built=True)


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
        return read_passages(corpus)
    return corpus() if callable(corpus) else corpus


def _content_hash(corpus: Corpus) -> str:
    if not isinstance(corpus, Path):
        return corpus_hash(_streamed(corpus))
    # Reading and splitting files takes seconds to minutes: remembered while none of them changes.
    memo = cache_folder() / "indexes" / "corpora" / f"{_files_state(corpus)}.json"
    if memo.is_file():
        return str(read_json(memo, what="remembered corpus hash")["corpus_hash"])
    value = corpus_hash(read_passages(corpus))
    write_json(memo, {"path": str(corpus.resolve()), "corpus_hash": value})
    return value


def _files_state(path: Path) -> str:
    # The reader's own code counts too: split otherwise, the same files are another corpus.
    parts = [str(path.resolve()), file_hash(Path(corpus_reader.__file__))]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        state = file.stat()
        parts.append(f"{file} {state.st_size} {state.st_mtime_ns}")
    return content_id(*parts, length=32)
