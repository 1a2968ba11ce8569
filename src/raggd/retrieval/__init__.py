"""Finding evidence: BM25, dense and hybrid retrieval, one cache for all methods.

>>> from raggd.records import Passage
>>> import tempfile, pathlib
>>> corpus = [Passage("1", "Lima is the capital of Peru."), Passage("2", "Bees make honey.")]
>>> with tempfile.TemporaryDirectory() as folder:
...     retriever = build_bm25(corpus, pathlib.Path(folder) / "index")
...     retriever.search(["What is the capital of Peru?"], k=1)[0][0].passage.id
'1'
"""

from raggd.retrieval.base import RetrievalWarning, Retriever, top_k
from raggd.retrieval.bm25 import BM25Retriever, build_bm25, open_bm25
from raggd.retrieval.build import build_index, open_retriever
from raggd.retrieval.cache import CachedRetriever
from raggd.retrieval.corpus import Changes
from raggd.retrieval.dense import DenseRetriever, build_dense, open_dense
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.retrieval.evidence import evidence_for, hit_rate, make_demonstrations
from raggd.retrieval.update import Index

__all__ = [
    "BM25Retriever",
    "CachedRetriever",
    "Changes",
    "DenseRetriever",
    "Encoder",
    "Index",
    "RetrievalWarning",
    "Retriever",
    "build_bm25",
    "build_dense",
    "build_index",
    "evidence_for",
    "hit_rate",
    "load_encoder",
    "make_demonstrations",
    "open_bm25",
    "open_dense",
    "open_retriever",
    "top_k",
]
