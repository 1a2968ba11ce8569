"""Dense retrieval with a tiny random BERT: exact search, stored embeddings, resumed builds."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.records import Passage, RaggdError
from raggd.retrieval.base import Retriever
from raggd.retrieval.build import build_index
from raggd.retrieval.dense import (
    DenseKind,
    DenseRetriever,
    build_faiss,
    factory_for,
    nearest,
    open_faiss,
)
from raggd.retrieval.encoder import Encoder, load_encoder, mean_pooled, rules_for
from raggd.settings import RetrievalSettings
from retrieval_fixtures import as_file, build_dense, open_bm25, open_dense, updated

WORDS = [f"word{number}" for number in range(40)]


def passage(number: int) -> Passage:
    picked = [WORDS[(number * 7 + step * step) % 40] for step in range(3 + number % 5)]
    return Passage(f"p{number:02d}", " ".join(picked), WORDS[number % 40])


CORPUS = [passage(number) for number in range(37)]


def save_tiny_bert(folder: Path, seed: int = 0) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "query", "passage", ":", *WORDS]
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab={word: at for at, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


@pytest.fixture(name="models", scope="module")
def _models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    save_tiny_bert(root / "tiny")
    save_tiny_bert(root / "e5-tiny")
    save_tiny_bert(root / "other", seed=1)
    return root


@pytest.fixture(name="encoder", scope="module")
def _encoder(models: Path) -> Encoder:
    return load_encoder(str(models / "tiny"), device="cpu", precision="float32")


@pytest.fixture(name="built")
def _built(tmp_path: Path, encoder: Encoder) -> DenseRetriever:
    return build_dense(CORPUS, tmp_path / "index", encoder, shard=8)


def ids(hits: list) -> list[str]:
    return [hit.passage.id for hit in hits]


def files(folder: Path) -> dict[str, bytes]:
    found = (file for file in folder.rglob("*") if file.is_file())
    return {file.name: file.read_bytes() for file in found if file.name != "index.json"}


def test_mean_pooling_leaves_padding_out() -> None:
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]]])
    pooled = mean_pooled(states, torch.tensor([[1, 1, 0]]))
    assert torch.allclose(pooled, torch.tensor([[0.6, 0.8]]))
    assert not torch.allclose(pooled, mean_pooled(states, torch.tensor([[1, 1, 1]])))


def test_vectors_have_length_one_and_differ(encoder: Encoder) -> None:
    vectors = encoder.encode_passages(CORPUS)
    assert vectors.shape == (37, 32)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    similar = vectors @ vectors.T - np.eye(37)
    assert similar.max() < 0.9999  # no two passages look the same to this encoder


def test_passages_keep_their_order_and_queries_stand_alone(encoder: Encoder) -> None:
    together = encoder.encode_passages(CORPUS)
    alone = np.concatenate([encoder.encode_passages([p]) for p in CORPUS])
    assert np.allclose(together, alone, atol=1e-5)
    queries = ["word1", "word2 word3 word4 word5", "word6"]
    batch = encoder.encode_queries(queries)
    assert np.array_equal(batch[2], encoder.encode_queries(["word6"])[0])
    assert not np.allclose(batch[0], batch[2])


def test_bfloat16_is_for_passages_only_and_part_of_the_fingerprint(
    models: Path, encoder: Encoder, tmp_path: Path
) -> None:
    rough = load_encoder(str(models / "tiny"), device="cpu", precision="bfloat16")
    exact, rounded = encoder.encode_passages(CORPUS), rough.encode_passages(CORPUS)
    assert not np.array_equal(exact, rounded)
    assert (exact * rounded).sum(axis=1).min() > 0.999
    queries = ["word1", "word2 word3"]
    assert np.array_equal(rough.encode_queries(queries), encoder.encode_queries(queries))
    built = build_dense(CORPUS, tmp_path / "rough", rough)
    other = build_dense(CORPUS, tmp_path / "exact", encoder)
    assert built.fingerprint != other.fingerprint
    # An index moves: it opens where the encoder would now choose another precision.
    opened = open_dense(tmp_path / "rough", encoder)
    assert opened.search(queries, 5) == built.search(queries, 5)
    assert opened.fingerprint == built.fingerprint


def test_long_and_short_passages_share_no_batch(encoder: Encoder) -> None:
    mixed = [Passage(f"m{n}", "word1 " * (1 if n % 2 else 60)) for n in range(40)]
    seen: list[int] = []
    vectors = encoder.encode_passages(mixed, seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(mixed)
    assert len(seen) > 2  # 20 rows of 62 tokens are more than a batch
    assert np.allclose(vectors[0], vectors[38], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)


def test_prefixes_follow_the_name(models: Path, encoder: Encoder) -> None:
    assert rules_for("intfloat/multilingual-e5-small").passage_prefix == "passage: "
    assert rules_for("sentence-transformers/all-MiniLM-L6-v2").query_prefix == ""
    with pytest.raises(RaggdError, match="instructions"):
        rules_for("intfloat/e5-mistral-7b-instruct")
    prefixed = load_encoder(
        str(models / "e5-tiny"), device="cpu", precision="float32"
    )  # the same weights
    assert not np.allclose(prefixed.encode_queries(["word1"]), encoder.encode_queries(["word1"]))
    text = Passage("1", "query: word1")
    assert np.allclose(prefixed.encode_queries(["word1"]), encoder.encode_passages([text]))
    assert prefixed.fingerprint != encoder.fingerprint


def test_search_equals_sorting_all_cosines(built: DenseRetriever, encoder: Encoder) -> None:
    assert isinstance(built, Retriever)
    queries = ["word3 word9", "word17", "word30 word31 word32"]
    cosines = encoder.encode_queries(queries) @ encoder.encode_passages(CORPUS).T
    for hits, row in zip(built.search(queries, k=6), cosines, strict=True):
        expected = sorted(range(37), key=lambda at, row=row: -row[at])[:6]
        assert ids(hits) == [CORPUS[at].id for at in expected]
        assert [h.score for h in hits] == pytest.approx(row[expected].tolist(), abs=1e-5)
        assert hits[0].passage in CORPUS
    assert built.store.passages(["p05", "p01"]) == [CORPUS[5], CORPUS[1]]


def test_k_and_batches_are_exact(built: DenseRetriever) -> None:
    everything = built.search(["word3"], k=100)[0]
    assert len(everything) == len(CORPUS)
    many = built.search([f"word{n}" for n in range(40)], k=5)
    assert many[3] == everything[:5]  # scores bitwise, whatever the batch
    with pytest.raises(RaggdError, match="empty"):
        built.search([" "], k=1)


def finds_nothing(query, k):
    """A first pass that finds too little for every query."""
    return


def finds_everything_once(query, k):
    """A first pass with candidates for the second query only."""
    return None if query[0] else np.arange(finds_everything_once.rows)


_components = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(_components, min_size=4, max_size=4), min_size=1, max_size=40),
    st.integers(0, 45),
    st.sampled_from([None, finds_nothing, finds_everything_once]),
)
def test_nearest_equals_an_oracle(vectors, k, first_pass) -> None:
    # Coarse components give many equal scores, so that the order of ties is tested.
    embeddings = np.array(vectors, dtype=np.float32)
    queries = np.array([[1, 0.5, 0, -1], [0, 0, 0.5, 0.5]], dtype=np.float32)
    ties = np.arange(len(embeddings))[::-1].copy()
    finds_everything_once.rows = len(embeddings)
    found = nearest(embeddings, queries, k, ties, first_pass=first_pass)
    for query, (rows, scores) in zip(queries, found, strict=True):
        exact = embeddings.astype(float) @ query.astype(float)
        expected = sorted(range(len(embeddings)), key=lambda row: (-exact[row], ties[row]))[:k]
        assert rows.tolist() == expected
        assert scores.tolist() == exact[expected].tolist()


@pytest.fixture(name="large")
def _large(tmp_path: Path, encoder: Encoder) -> tuple[DenseRetriever, DenseRetriever]:
    """The same 300 passages with a graph and compared one by one."""
    corpus = [passage(number) for number in range(300)]
    corpus = [
        Passage(f"p{n:03d}", f"{p.text} {WORDS[n // 40]}", p.title) for n, p in enumerate(corpus)
    ]
    graph = build_dense(corpus, tmp_path / "graph", encoder, factory="HNSW32")
    return graph, build_dense(corpus, tmp_path / "exact", encoder, factory="")


def test_a_graph_finds_the_same(large: tuple[DenseRetriever, DenseRetriever]) -> None:
    graph, exact = large
    assert graph._first_pass is not None
    assert exact._first_pass is None
    assert graph.fingerprint != exact.fingerprint
    queries = [f"word{n} word{n + 3}" for n in range(0, 36, 4)]
    found = graph.search(queries, 5)
    assert found == exact.search(queries, 5)
    assert graph.search(queries[3:4], 5) == found[3:4]
    assert graph.search(queries, 400) == exact.search(queries, 400)


def test_a_graph_is_built_alike_and_checked(
    large: tuple[DenseRetriever, DenseRetriever], encoder: Encoder, tmp_path: Path
) -> None:
    corpus = list(large[0].store)
    again = build_dense(corpus, tmp_path / "again", encoder, factory="HNSW32")
    assert again.fingerprint == large[0].fingerprint
    assert files(tmp_path / "again") == files(tmp_path / "graph")
    graph = (tmp_path / "graph" / "data-1" / "index.faiss").read_bytes()
    (tmp_path / "graph" / "data-1" / "index.faiss").write_bytes(graph[: len(graph) // 2])
    with pytest.raises(RaggdError, match="damaged"):
        open_dense(tmp_path / "graph", encoder, "HNSW32")
    build_dense(corpus[:200], tmp_path / "smaller", encoder, factory="HNSW32")
    (tmp_path / "smaller" / "data-1" / "index.faiss").write_bytes(graph)
    with pytest.raises(RaggdError, match="of 300 passages, its index of 200"):
        open_dense(tmp_path / "smaller", encoder, "HNSW32")


def test_the_index_of_faiss_goes_by_size() -> None:
    assert factory_for(199_999, 384) == ""
    assert factory_for(200_000, 384) == "HNSW32"
    assert factory_for(21_000_000, 1024) == "IVF16384,PQ128"
    assert factory_for(10, 384, "Flat") == "Flat"


def test_an_ivf_index_scores_exactly_and_is_checked(
    large: tuple[DenseRetriever, DenseRetriever], encoder: Encoder, tmp_path: Path
) -> None:
    exact, corpus = large[1], list(large[1].store)
    ivf = build_dense(corpus, tmp_path / "ivf", encoder, factory="IVF4,PQ4")
    assert len({ivf.fingerprint, large[0].fingerprint, exact.fingerprint}) == 3
    queries = [f"word{n} word{n + 3}" for n in range(0, 36, 4)]
    assert ivf.search(queries, 5) == exact.search(queries, 5)  # so few are compared one by one
    build_dense(corpus, tmp_path / "again", encoder, factory="IVF4,PQ4")
    assert files(tmp_path / "again") == files(tmp_path / "ivf")
    with pytest.raises(RaggdError, match="index_factory=IVF4,PQ5 of 37"):
        build_dense(CORPUS, tmp_path / "wrong", encoder, factory="IVF4,PQ5")
    with pytest.raises(RaggdError, match="index_factory=nonsense"):
        build_dense(CORPUS, tmp_path / "wrong", encoder, factory="nonsense")


def test_ivf_candidates_hold_the_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(4_000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    factory = "IVF512,PQ4"  # 256 of its 512 cells are searched
    build_faiss(vectors, factory, tmp_path / "ivf.faiss")
    first_pass = open_faiss(tmp_path / "ivf.faiss", factory, 4_000)
    queries = vectors[::400] + 0.1 * rng.normal(size=(10, 32)).astype(np.float32)
    ties = np.arange(4_000)
    exact = nearest(vectors, queries, 5, ties)
    found = nearest(vectors, queries, 5, ties, first_pass=first_pass)
    proposed = [first_pass(query, 5) for query in queries]
    assert all(rows is not None and len(rows) < 1_000 for rows in proposed)
    shared = [len(set(a) & set(b)) for (a, _), (b, _) in zip(exact, found, strict=True)]
    assert sum(shared) >= 45  # of 50
    for (rows, scores), query in zip(found, queries, strict=True):
        assert np.allclose(scores, vectors[rows].astype(float) @ query.astype(float))


def test_without_faiss_the_extra_is_named(
    large: tuple[DenseRetriever, DenseRetriever],
    encoder: Encoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RaggdError, match=r"raggd\[dense\]"):
        open_dense(tmp_path / "graph", encoder, "HNSW32")
    with pytest.raises(RaggdError, match=r"raggd\[dense\]"):
        build_dense(CORPUS, tmp_path / "new", encoder, factory="HNSW32")
    open_dense(tmp_path / "exact", encoder)  # small ones need none


def killing_after(encoder: Encoder, calls: int) -> Callable[..., np.ndarray]:
    real, seen = encoder.encode_passages, []

    def encode(passages, done=None):
        seen.append(len(passages))
        if len(seen) > calls:
            raise KeyboardInterrupt
        return real(passages, done)

    return encode


def test_a_killed_build_resumes_to_the_same_bytes(
    built: DenseRetriever, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "resumed"
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_passages", killing_after(encoder, 2))
        with pytest.raises(KeyboardInterrupt):
            build_dense(CORPUS, folder, encoder, shard=8)
    assert not folder.exists()
    seen: list[tuple[int, int | None]] = []
    encoded: list[int] = []
    real = encoder.encode_passages
    with monkeypatch.context() as patched:
        patched.setattr(
            encoder,
            "encode_passages",
            lambda passages, done=None: encoded.append(len(passages)) or real(passages, done),
        )
        build_dense(CORPUS, folder, encoder, lambda _, *at: seen.append(at), shard=8)
    assert encoded == [8, 8, 5]  # of 8, 8, 8, 8, 5
    assert seen[0] == (16, 37)
    assert seen[-1] == (37, 37)
    assert files(folder) == files(tmp_path / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "resumed"]


def test_shards_of_another_corpus_are_not_used(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(encoder, "encode_passages", killing_after(encoder, 2))
        with pytest.raises(KeyboardInterrupt):
            build_dense(CORPUS, tmp_path / "index", encoder, shard=8)
    changed = [Passage("new", "word5 word6"), *CORPUS[1:]]
    build_dense(changed, tmp_path / "index", encoder, shard=8)
    build_dense(changed, tmp_path / "direct", encoder, shard=8)
    assert files(tmp_path / "index") == files(tmp_path / "direct")


def test_another_encoder_or_prefix_encodes_everything_anew(
    built: DenseRetriever, encoder: Encoder, models: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "index"
    assert not updated(CORPUS, folder, DenseKind(encoder)).built
    for name in ("other", "e5-tiny"):
        other = load_encoder(str(models / name), device="cpu", precision="float32")
        assert updated(CORPUS, folder, DenseKind(other)).built
        fresh = build_dense(CORPUS, tmp_path / name, other)
        assert open_dense(folder, other).search(["word3"], 3) == fresh.search(["word3"], 3)


def test_damage_is_refused(built: DenseRetriever, encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "index"
    np.save(folder / "data-1" / "embeddings.npy", np.zeros((3, 32), dtype=np.float32))
    with pytest.raises(RaggdError, match="damaged"):
        open_dense(folder, encoder)


def test_missing_encoder_and_broken_weights(models: Path, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no-such-encoder"):
        load_encoder(str(tmp_path / "no-such-encoder"))
    cut = tmp_path / "cut"
    shutil.copytree(models / "tiny", cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(RaggdError, match=r"cannot load the encoder '.*cut'"):
        load_encoder(str(cut))
    broken = load_encoder(str(models / "tiny"), device="cpu", precision="float32")
    with torch.no_grad():
        next(broken._model.parameters()).fill_(float("nan"))
    with pytest.raises(RaggdError, match="not numbers"):
        broken.encode_queries(["word1"])


def test_build_index_with_an_encoder(models: Path, tmp_path: Path) -> None:
    chosen = RetrievalSettings(retriever="dense", encoder=str(models / "tiny"))
    first = build_index(as_file(CORPUS, tmp_path), chosen, tmp_path / "index")
    again = build_index(as_file(CORPUS, tmp_path), chosen, tmp_path / "index")
    assert (first.built, again.built) == (True, False)
    assert again.retriever.search(["word3"], 2) == first.retriever.search(["word3"], 2)
    with pytest.raises(RaggdError, match="no bm25 index"):
        open_bm25(tmp_path / "index")
