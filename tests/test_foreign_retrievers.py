"""Retrievers of LangChain and LlamaIndex, the real packages, behind raggd's protocol."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest

from raggd.records import Passage, RaggdError
from raggd.retrieval import Retriever
from raggd.retrieval.foreign import ForeignRetriever, ranked
from raggd.retrieval.langchain import from_langchain
from raggd.retrieval.llamaindex import from_llamaindex

TEXTS = {
    "a": "Lima is the capital of Peru.",
    "b": "Oslo is the capital of Norway.",
    "c": "Bees make honey.",
    "d": "Peru lies south of Ecuador; Lima lies on its coast.",
}


def words(text: str) -> list[float]:
    """A vector of a text: which of a few words it holds."""
    low = text.lower()
    return [float(word in low) for word in ("lima", "peru", "capital", "oslo", "bees", "coast")]


def langchain_store() -> Any:
    vectorstores = pytest.importorskip("langchain_core.vectorstores")
    embeddings = pytest.importorskip("langchain_core.embeddings")

    class ByWords(embeddings.Embeddings):  # type: ignore[misc, name-defined]
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [words(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return words(text)

    store = vectorstores.InMemoryVectorStore(ByWords())
    metadatas = [{"title": f"Title {name}"} for name in TEXTS]
    store.add_texts(list(TEXTS.values()), metadatas, ids=list(TEXTS))
    return store


def llama_nodes() -> list[Any]:
    schema = pytest.importorskip("llama_index.core.schema")
    return [
        schema.TextNode(id_=name, text=text, metadata={"file_name": f"{name}.md"})
        for name, text in TEXTS.items()
    ]


class Fixed:
    """Made at run time: a retriever of either library that returns all it has, in its order."""

    @staticmethod
    def langchain(order: str) -> Any:
        retrievers = pytest.importorskip("langchain_core.retrievers")
        documents = pytest.importorskip("langchain_core.documents")

        class All(retrievers.BaseRetriever):  # type: ignore[misc, name-defined]
            calls: ClassVar[list[str]] = []

            def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
                self.calls.append(query)
                return [documents.Document(page_content=TEXTS[name], id=name) for name in order]

        return All()

    @staticmethod
    def llamaindex(order: str, scores: list[float | None]) -> Any:
        base = pytest.importorskip("llama_index.core.base.base_retriever")
        schema = pytest.importorskip("llama_index.core.schema")
        nodes = {node.node_id: node for node in llama_nodes()}

        class All(base.BaseRetriever):  # type: ignore[misc, name-defined]
            def _retrieve(self, query_bundle: Any) -> list[Any]:
                pairs = zip(order, scores, strict=True)
                return [schema.NodeWithScore(node=nodes[n], score=s) for n, s in pairs]

        return All()


def ids(retriever: ForeignRetriever, query: str, k: int, *excluded: str) -> str:
    hits = retriever.search([query], k, [excluded])[0]
    assert all(a.score >= b.score for a, b in pairwise(hits))
    return "".join(hit.passage.id for hit in hits)


def test_a_vector_store_of_langchain_is_asked_for_the_number_wanted() -> None:
    retriever = from_langchain(langchain_store().as_retriever(search_kwargs={"k": 1}))
    assert isinstance(retriever, Retriever)
    assert ids(retriever, "Lima, capital of Peru", 1) == "a"
    assert ids(retriever, "Lima, capital of Peru", 3) == "adb"
    assert ids(retriever, "Lima, capital of Peru", 2, "a") == "db"
    assert ids(retriever, "Lima", 0) == ""
    found = retriever.search(["Oslo"], 1)[0][0].passage
    assert found == Passage("b", TEXTS["b"], "Title b")
    assert retriever.passages(["b"]) == [found]


def test_the_order_of_the_other_library_is_kept() -> None:
    plain = from_langchain(Fixed.langchain("cab"))
    assert ids(plain, "anything", 2) == "ca"
    assert ids(plain, "anything", 5, "a") == "cb"
    falling = from_llamaindex(Fixed.llamaindex("cab", [0.9, 0.5, 0.5]))
    assert [hit.score for hit in falling.search(["x"], 3)[0]] == [0.9, 0.5, 0.5]
    for scores in ([0.1, 0.5, 0.9], [0.9, None, 0.1]):  # reranked, or scored in part
        assert ids(from_llamaindex(Fixed.llamaindex("cab", scores)), "x", 3) == "cab"


def test_an_index_of_llamaindex() -> None:
    core = pytest.importorskip("llama_index.core")
    embeddings = pytest.importorskip("llama_index.core.embeddings")

    class ByWords(embeddings.BaseEmbedding):  # type: ignore[misc, name-defined]
        def _get_query_embedding(self, query: str) -> list[float]:
            return words(query)

        def _get_text_embedding(self, text: str) -> list[float]:
            return words(text)

        async def _aget_query_embedding(self, query: str) -> list[float]:
            return words(query)

    index = core.VectorStoreIndex(llama_nodes(), embed_model=ByWords())
    retriever = from_llamaindex(index.as_retriever(similarity_top_k=3))
    assert isinstance(retriever, Retriever)
    assert ids(retriever, "Lima, capital of Peru", 2) == "ad"
    assert retriever.search(["Oslo"], 1)[0][0].passage == Passage("b", TEXTS["b"], "b.md")


def test_only_an_id_makes_a_fingerprint_that_lasts() -> None:
    first, second = (from_langchain(Fixed.langchain("ab")) for _ in range(2))
    assert first.fingerprint != second.fingerprint
    named = [from_langchain(Fixed.langchain("ab"), name) for name in ("docs 1", "docs 1", "docs 2")]
    assert named[0].fingerprint == named[1].fingerprint != named[2].fingerprint
    assert from_llamaindex(Fixed.llamaindex("a", [1.0]), "docs 1").fingerprint not in {
        retriever.fingerprint for retriever in named
    }


@pytest.mark.parametrize(("name", "asked"), [(None, 3), ("docs 1", 2)])
def test_nothing_is_remembered_without_an_id(name: str | None, asked: int) -> None:
    theirs = Fixed.langchain("ab")
    theirs.calls.clear()
    retriever = from_langchain(theirs, name)
    for query in ("one", "two", "one"):
        retriever.search([query], 1)
    assert len(theirs.calls) == asked


def test_what_is_refused() -> None:
    with pytest.raises(RaggdError, match="a list is not a LangChain retriever"):
        from_langchain([])  # type: ignore[arg-type]
    with pytest.raises(RaggdError, match="a list is not a LlamaIndex retriever"):
        from_llamaindex([])  # type: ignore[arg-type]
    retriever = from_langchain(Fixed.langchain("ab"))
    with pytest.raises(RaggdError, match="passage 'a' was not found by a search yet"):
        retriever.passages(["a"])
    with pytest.raises(RaggdError, match="the query is empty"):
        retriever.search([" "], 1)


def test_documents_without_an_id_are_named_by_their_content() -> None:
    documents = pytest.importorskip("langchain_core.documents")
    retrievers = pytest.importorskip("langchain_core.retrievers")

    class Two(retrievers.BaseRetriever):  # type: ignore[misc, name-defined]
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            return [documents.Document(page_content=text) for text in ("one", "two")]

    first, second = (hit.passage for hit in from_langchain(Two()).search(["x"], 2)[0])
    assert first.id != second.id
    assert len(first.id) == 16
    assert ranked([], []) == []
