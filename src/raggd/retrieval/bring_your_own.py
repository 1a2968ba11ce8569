"""One door for every other retriever: LangChain's, LlamaIndex's, or a class of one's own.

``retrieval.retriever = "my_module:make_retriever"`` names what makes it; what that returns is
wrapped by its type. Databases come in this way, through the packages of their makers
(docs/retrieval.md). The order of the hits is the other library's.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from raggd.data.text import normal_text
from raggd.records import Hit, Passage, RaggdError, content_id
from raggd.retrieval.base import RetrievalWarning, Retriever, check_search
from raggd.settings import Settings

Search = Callable[[Sequence[str], int], Iterable[Iterable[Any]]]  # how many is only a wish
_TITLES = ("title", "file_name", "source")
_REMEMBERED = 10_000
_LONGEST = 100_000  # characters of a passage: far more than a context shows


class ForeignRetriever:
    """Another's search as a `Retriever`: its hits are looked at before a model is shown them.

    They are text in the normal form, each once; whatever fails or is no hit is one error. Passages
    without text are left out, and counted in `empty`; those without bound are cut (`cut`).
    """

    def __init__(self, kind: str, search: Search, fingerprint: Callable[[], Any]) -> None:
        self.empty = self.cut = 0
        self._kind, self._search, self._fingerprint = kind, search, fingerprint

    @property
    def fingerprint(self) -> str:
        """Equal where it vouches for equal hits; one that has none is refused."""
        try:
            found = self._fingerprint()
        except Exception as error:  # of any kind: it is another's code
            found = error
        if not isinstance(found, str | int) or not str(found):
            raise RaggdError(
                f"the fingerprint of the {self._kind} retriever is {found!r}: expected text that "
                "is another one when it finds something else."
            )
        return str(found)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Return at most `k` hits per query, in its order; what failed or is no hit is refused."""
        check_search(queries, k)
        if not k:
            return [[] for _ in queries]
        try:
            lists = list(map(list, self._search(queries, k)))
        except Exception as error:  # of any kind: it is another's code, or a database
            raise RaggdError(
                f"the {self._kind} retriever failed ({type(error).__name__}: {error}): see that "
                "what it searches is there and can be reached."
            ) from error
        if len(lists) != len(queries):
            raise RaggdError(
                f"the {self._kind} retriever returned {len(lists)} lists of hits for "
                f"{len(queries)} queries: expected one for each, empty where nothing is found."
            )
        return [self._evidence(found)[:k] for found in lists]

    def _evidence(self, found: Sequence[Any]) -> list[Hit]:
        first: dict[tuple[str, str], Hit] = {}
        for hit, size in map(self._hit, found):
            if size > _LONGEST:
                self.cut += 1
                if self.cut == 1:
                    self._warn(
                        f"passages of more than {_LONGEST} characters: they are cut, and of what "
                        "is left a model sees what fits its context. Let it return parts of "
                        "documents."
                    )
            if hit.passage.text.strip():
                first.setdefault((hit.passage.title, hit.passage.text), hit)
                continue
            self.empty += 1
            if self.empty == 1:
                self._warn("passages without text: they are no evidence and are left out.")
        return list(first.values())

    def _warn(self, what: str) -> None:
        told = f"the {self._kind} retriever returned {what}"
        warnings.warn(told, RetrievalWarning, stacklevel=4)

    def _hit(self, found: Any) -> tuple[Hit, int]:
        passage = found.passage if isinstance(found, Hit) else None
        if not isinstance(passage, Passage) or not isinstance(passage.text, str):
            what = type(found).__name__ + (" without a text" if passage is not None else "")
            raise RaggdError(
                f"the {self._kind} retriever found a {what}: expected raggd.Hit(raggd.Passage(id, "
                "text, title), score)."
            )
        parts = (passage.id, passage.text, passage.title, passage.source)
        fields = ["" if part is None else str(part) for part in parts]
        size = max(map(len, fields))
        return Hit(Passage(*(normal_text(f[:_LONGEST]) for f in fields)), found.score), size


def ranked(passages: Sequence[Passage], scores: Sequence[float | None]) -> list[Hit]:
    """Return hits in the given order; scores that are missing or do not fall become ranks."""
    known = [score for score in scores if score is not None]
    falling = all(a >= b for a, b in pairwise(known))
    if len(known) < len(passages) or not falling:
        known = [-float(rank) for rank in range(1, len(passages) + 1)]
    return [Hit(passage, score) for passage, score in zip(passages, known, strict=True)]


_KINDS: tuple[tuple[str, str, Callable[[Any, str, int], Sequence[Any]]], ...] = (
    ("langchain_core.vectorstores", "VectorStoreRetriever", lambda it, q, k: it.invoke(q, k=k)),
    ("langchain_core.retrievers", "BaseRetriever", lambda it, q, k: it.invoke(q)),
    ("langchain_core.vectorstores", "VectorStore", lambda it, q, k: it.similarity_search(q, k=k)),
    ("llama_index.core.base.base_retriever", "BaseRetriever", lambda it, q, k: it.retrieve(q)),
    (
        "llama_index.core.indices.base",
        "BaseIndex",
        lambda it, q, k: it.as_retriever(similarity_top_k=k).retrieve(q),
    ),
)
"""What can be wrapped, by module and class, and how it is asked for `k` passages."""


def _hits(found: Sequence[Any]) -> list[Hit]:
    # documents of LangChain, or scored nodes of LlamaIndex
    passages, scores = [], []
    for each in found:
        if hasattr(each, "page_content"):
            text, name, score = each.page_content, each.id, None
        else:
            text, name, score = each.get_content(), each.node_id, each.score
        title = next((str(each.metadata[key]) for key in _TITLES if each.metadata.get(key)), "")
        passages.append(Passage(name or content_id(title, text), text, title))
        scores.append(score)
    return ranked(passages, scores)


def _is(thing: object, module: str, name: str) -> bool:
    # Without importing a library that the user does not use.
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(thing, kind)


def wrap_retriever(thing: Any, name: str | None = None) -> Retriever:
    """Make a raggd retriever of a retriever or vector store of LangChain or LlamaIndex.

    A vector store or an index is asked for as many passages as the settings name; a retriever of
    its own returns what it was set up to return, cut to that number. What has ``search``
    and ``fingerprint`` is taken as it is, its hits looked at. A document's id becomes the
    passage's, its metadata's ``title``, ``file_name`` or ``source`` the title.

    What it searches may change unseen, so nothing is remembered and no two have one fingerprint,
    unless a `name` vouches for the content: change it when either changes. With it, equal searches
    of this process are made once, and run records can be compared.

    Raises:
        RaggdError: it is none of these.
    """
    if isinstance(thing, Retriever) and not isinstance(thing, type):
        if type(thing).__module__.startswith("raggd."):
            return thing
        return ForeignRetriever(type(thing).__name__, thing.search, lambda: thing.fingerprint)
    if _is(thing, "llama_index.core.vector_stores.types", "BasePydanticVectorStore"):
        from llama_index.core import VectorStoreIndex

        thing = VectorStoreIndex.from_vector_store(thing)
    known = [(module, ask) for module, kind, ask in _KINDS if _is(thing, module, kind)]
    if not known:
        raise RaggdError(
            f"a {type(thing).__name__} is no retriever that raggd knows: expected a retriever or "
            "vector store of LangChain or LlamaIndex, or an object with search and fingerprint."
        )
    module, ask = known[0]
    library = "LangChain" if module.startswith("langchain") else "LlamaIndex"
    own = content_id(library, name or f"unnamed {uuid.uuid4()}")

    def hits(query: str, k: int) -> list[Hit]:
        return _hits(ask(thing, query, k))

    one = lru_cache(_REMEMBERED)(hits) if name else hits
    return ForeignRetriever(library, lambda queries, k: [one(q, k) for q in queries], lambda: own)


def open_named(path: str, settings: Settings) -> Retriever:
    """Return what ``module:function`` makes, wrapped; it is found as by a script that runs here."""
    module, _, attribute = path.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), attribute)
        wanted = inspect.signature(make).parameters.values()
        needed = (p for p in wanted if p.default is p.empty and p.kind < p.VAR_POSITIONAL)
        takes = any(needed) or any(p.name == "settings" for p in wanted)
        return wrap_retriever(make(settings) if takes else make())
    except RaggdError:
        raise
    except Exception as error:  # of any kind: it is the user's own code
        raise RaggdError(
            f"retrieval.retriever={path} did not make a retriever ({type(error).__name__}: "
            f"{error}): expected MODULE:FUNCTION that can be imported from {here} and is called "
            "with nothing or with the settings."
        ) from error
    finally:
        sys.path.remove(here)
