"""What a corpus is, wherever it comes from: a stream of passages, their number, their hash."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from raggd.data.documents import corpus_hash, read_passages, readers_fingerprint
from raggd.files import cache_folder, read_json, write_json
from raggd.records import Passage, content_id
from raggd.retrieval.store import id_key, storable

Corpus = Path | Sequence[Passage] | Callable[[], Iterable[Passage]]
"""A file or folder, passages, or a function that streams passages anew at each call."""


def streamed(corpus: Corpus) -> Iterable[Passage]:
    """Return the passages of a corpus as a stream, from the first."""
    if isinstance(corpus, Path):
        return read_passages(corpus, unique=False)  # the index finds ids given twice
    return corpus() if callable(corpus) else corpus


def content(corpus: Corpus) -> tuple[int, str]:
    """Count and hash a corpus; of files, this is remembered while none of them changes.

    Args:
        corpus: the passages, or where to read them.

    Returns:
        Number of passages and content hash.
    """
    if not isinstance(corpus, Path):
        count, value = _counted(streamed(corpus))
        return abs(count), value
    # Reading and splitting files takes seconds to minutes: remembered while none of them changes.
    memo = cache_folder() / "indexes" / "corpora" / f"{_files_state(corpus)}.json"
    if memo.is_file():
        known = read_json(memo, what="remembered corpus hash")
        return int(known["passages"]), str(known["corpus_hash"])
    count, value = _counted(streamed(corpus))
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
    parts = [str(path.resolve()), readers_fingerprint()]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        state = file.stat()
        parts.append(f"{file} {state.st_size} {state.st_mtime_ns}")
    return content_id(*parts, length=32)
