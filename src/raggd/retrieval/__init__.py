"""Finding evidence: BM25, dense and hybrid retrieval, one cache for all methods.

>>> from raggd.records import Passage
>>> from raggd.settings import RetrievalSettings
>>> import tempfile, pathlib
>>> corpus = [Passage("1", "Lima is the capital of Peru."), Passage("2", "Bees make honey.")]
>>> with tempfile.TemporaryDirectory() as folder:
...     index = build_index(corpus, RetrievalSettings(), pathlib.Path(folder) / "index")
...     index.retriever.search(["What is the capital of Peru?"], k=1)[0][0].passage.id
'1'
"""

from raggd.retrieval.base import RetrievalWarning, Retriever, top_k
from raggd.retrieval.build import Index, build_index
from raggd.retrieval.cache import CachedRetriever
from raggd.retrieval.corpus import Changes
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.retrieval.evidence import evidence_for, make_demonstrations

__all__ = [
    "CachedRetriever",
    "Changes",
    "Encoder",
    "Index",
    "RetrievalWarning",
    "Retriever",
    "build_index",
    "evidence_for",
    "load_encoder",
    "make_demonstrations",
    "top_k",
]
