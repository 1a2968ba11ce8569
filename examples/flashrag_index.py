"""An index that FlashRAG built, searched as it is: a faiss file, or a folder of bm25s.

    export FLASHRAG_INDEX=indexes/e5_Flat.index
    raggd ask "..." --corpus wiki18_100w.jsonl --set retrieval.encoder=intfloat/e5-base-v2 \
        --set retrieval.retriever=flashrag_index:make_retriever

Such an index knows passages by their line, so the corpus is the file that it was built from.
"""

import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raggd import Settings
from raggd.records import Hit, Passage, content_id
from raggd.retrieval.encoder import load_encoder

SPARE = 32


class FlashragIndex:
    """What raggd asks of a retriever: `search`, `passages` and a `fingerprint`."""

    def __init__(self, index: Path, corpus: Path, encoder: str) -> None:
        self.fingerprint = content_id("flashrag", str(index.resolve()), str(index.stat()), encoder)
        self._lines, self._starts = corpus.open("rb"), array("q", [0])
        for line in self._lines:
            self._starts.append(self._starts[-1] + len(line))
        self._best = self._bm25s(index) if index.is_dir() else self._faiss(index, encoder)

    def _bm25s(self, folder: Path) -> Any:
        import bm25s
        import Stemmer

        found = bm25s.BM25.load(folder, mmap=True)
        split = {"stemmer": Stemmer.Stemmer("english"), "show_progress": False}

        def best(query: str, k: int) -> tuple[Any, Any]:
            tokens = bm25s.tokenize([query], **split)
            rows, scores = found.retrieve(tokens, k=min(k, self._size), show_progress=False)
            return rows[0][scores[0] > 0], scores[0][scores[0] > 0]

        return best

    def _faiss(self, file: Path, encoder: str) -> Any:
        import faiss

        found, encode = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC), load_encoder(encoder)

        def best(query: str, k: int) -> tuple[Any, Any]:
            scores, rows = found.search(encode.encode_queries([query]), min(k, self._size))
            return rows[0][rows[0] >= 0], scores[0][rows[0] >= 0]

        return best

    @property
    def _size(self) -> int:
        return len(self._starts) - 1

    def _passage(self, row: int) -> Passage:
        self._lines.seek(self._starts[row])
        line = json.loads(self._lines.readline())
        title, _, text = line["contents"].partition("\n")
        return Passage(str(line["id"]), text, title.strip('"'))

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find the best passages for each query."""
        found = []
        for query in queries:
            rows, scores = self._best(query, k + SPARE)
            pairs = zip(rows.tolist(), scores.tolist(), strict=True)
            hits = [Hit(self._passage(row), score) for row, score in pairs]
            hits.sort(key=lambda hit: (-hit.score, hit.passage.id))
            found.append(hits[:k])
        return found


def make_retriever(settings: Settings) -> FlashragIndex:
    """Open the index that the environment names, over the corpus of the settings."""
    index = Path(os.environ["FLASHRAG_INDEX"])
    return FlashragIndex(index, Path(settings.data.corpus), settings.retrieval.encoder)
