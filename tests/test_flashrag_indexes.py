"""Indexes in FlashRAG's layout, written as its index builder writes them, open as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer

from raggd.records import Passage, RaggdError
from raggd.retrieval.base import Retriever
from raggd.retrieval.build import build_index
from raggd.retrieval.encoder import Encoder, load_encoder
from raggd.settings import RetrievalSettings
from test_retrieval_dense import passage, save_tiny_bert
from workflow_fixtures import ENGLISH, run_cli

DENSE = [passage(number) for number in range(37)]
QUERIES = ["word3 word9", "word17", "word30 word31 word32"]


def write_corpus(path: Path, passages: list[Passage]) -> Path:
    """FlashRAG's corpus form; titles in quotes, as in its Wikipedia."""
    lines = [
        json.dumps({"id": p.id, "contents": f'"{p.title}"\n{p.text}'}, ensure_ascii=False)
        for p in passages
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def flashrag_bm25(corpus: Path, save_dir: Path) -> bm25s.BM25:
    """What `build_bm25_index_bm25s` writes: tokenizer with English stop words and stems."""
    contents = [json.loads(line)["contents"] for line in corpus.read_text().splitlines()]
    folder = save_dir / "bm25"
    folder.mkdir(parents=True)
    tokenizer = bm25s.tokenization.Tokenizer(stopwords="en", stemmer=Stemmer.Stemmer("english"))
    tokens = tokenizer.tokenize(contents, return_as="tuple", show_progress=False)
    retriever = bm25s.BM25(backend="numpy")
    retriever.index(tokens, show_progress=False)
    retriever.save(folder, corpus=None, show_progress=False)
    tokenizer.save_vocab(folder)
    tokenizer.save_stopwords(folder)
    return retriever


def flashrag_faiss(vectors: np.ndarray, save_dir: Path, kind: str = "Flat") -> Path:
    """What `save_faiss_index` writes: by inner product, of the type that faiss's factory makes."""
    faiss = pytest.importorskip("faiss")
    save_dir.mkdir(parents=True, exist_ok=True)
    index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(save_dir / f"e5_{kind}.index"))
    return save_dir / f"e5_{kind}.index"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "e5-tiny")


@pytest.fixture(name="encoder", scope="module")
def _encoder(model: Path) -> Encoder:
    return load_encoder(str(model), device="cpu", precision="float32")


def ids(hits: list) -> list[str]:
    return [hit.passage.id for hit in hits]


@pytest.mark.parametrize("named", ["indexes", "indexes/bm25"])
def test_a_bm25s_folder(tmp_path: Path, named: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", ENGLISH)
    theirs = flashrag_bm25(corpus, tmp_path / "indexes")
    settings = RetrievalSettings(index_path=str(tmp_path / named))
    index = build_index(corpus, settings)
    found = index.retriever
    assert not index.built
    assert isinstance(found, Retriever)
    queries = ["the river of London", "queen bees", "capital of France"]
    stemmer = Stemmer.Stemmer("english")
    for query, hits in zip(queries, found.search(queries, 5), strict=True):
        tokens = bm25s.tokenize([query], stemmer=stemmer, show_progress=False)
        rows, scores = theirs.retrieve(tokens, k=5, show_progress=False)
        expected = [
            (ENGLISH[row].id, score)
            for row, score in zip(rows[0].tolist(), scores[0].tolist(), strict=True)
            if score > 0
        ]
        assert {(h.passage.id, h.score) for h in hits} == set(expected)
        assert [h.score for h in hits] == sorted([s for _, s in expected], reverse=True)
    assert found.passages(["a"]) == [ENGLISH[2]]
    own = build_index(corpus, RetrievalSettings()).retriever
    assert own.fingerprint != found.fingerprint
    assert own.search(queries, 5) != found.search(queries, 5)  # another k1 and b
    without = found.search(queries[:1], 5, [{"d"}])[0]
    assert "d" not in ids(without)
    assert build_index(corpus, settings).retriever.search(queries, 5) == found.search(queries, 5)


@pytest.mark.parametrize("kind", ["Flat", "HNSW16", "SQ8"])
def test_a_faiss_file(tmp_path: Path, model: Path, encoder: Encoder, kind: str) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", DENSE)
    file = flashrag_faiss(encoder.encode_passages(DENSE), tmp_path / "indexes", kind)
    settings = RetrievalSettings(
        retriever="dense", encoder=str(model), precision="float32", index_path=str(file)
    )
    found = build_index(corpus, settings).retriever
    assert isinstance(found, Retriever)
    own = build_index(corpus, settings.model_copy(update={"index_path": ""})).retriever
    assert own.fingerprint != found.fingerprint
    exclude = [{"p03"}, set(), {"p30", "unknown"}]
    ours, theirs = own.search(QUERIES, 5, exclude), found.search(QUERIES, 5, exclude)
    if kind == "SQ8":  # its vectors are rounded to bytes
        assert sum(len(set(ids(a)) & set(ids(b))) for a, b in zip(ours, theirs, strict=True)) >= 12
        return
    assert [ids(hits) for hits in theirs] == [ids(hits) for hits in ours]
    for a, b in zip(ours, theirs, strict=True):
        assert [h.score for h in a] == pytest.approx([h.score for h in b], abs=1e-5)
    if kind == "Flat":  # a graph need not reach every passage
        assert len(found.search(["word3"], 100)[0]) == 37
    assert found.search(QUERIES[1:2], 5) == found.search(QUERIES, 5)[1:2]


def test_equal_vectors_go_by_passage_id(tmp_path: Path, model: Path, encoder: Encoder) -> None:
    same = [Passage(name, "word1 word2", "word3") for name in ("p10", "p9", "Z", "a", "p1")]
    corpus = write_corpus(tmp_path / "corpus.jsonl", same)
    file = flashrag_faiss(encoder.encode_passages(same), tmp_path)
    settings = RetrievalSettings(
        retriever="dense", encoder=str(model), precision="float32", index_path=str(file)
    )
    assert ids(build_index(corpus, settings).retriever.search(["word1"], 3)[0]) == ["Z", "a", "p1"]


def test_what_does_not_fit_is_named(tmp_path: Path, model: Path, encoder: Encoder) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", DENSE)
    shorter = write_corpus(tmp_path / "shorter.jsonl", DENSE[:-1])
    file = flashrag_faiss(encoder.encode_passages(DENSE), tmp_path / "indexes")
    wide = flashrag_faiss(np.eye(37, 48, dtype=np.float32), tmp_path / "wide")
    flashrag_bm25(corpus, tmp_path / "words")
    (tmp_path / "broken").mkdir()
    damaged = tmp_path / "broken" / "e5_Flat.index"
    damaged.write_bytes(file.read_bytes()[:100])
    shutil.copytree(tmp_path / "words" / "bm25", tmp_path / "half")
    (tmp_path / "half" / "data.csc.index.npy").write_bytes(b"short")
    dense = RetrievalSettings(retriever="dense", encoder=str(model), precision="float32")
    words = RetrievalSettings()

    def refusal(settings: RetrievalSettings, path: Path, of: Path = corpus) -> str:
        with pytest.raises(RaggdError) as told:
            build_index(of, settings.model_copy(update={"index_path": str(path)}))
        return str(told.value)

    assert "no index of FlashRAG" in refusal(dense, tmp_path / "nowhere")
    assert "no index of FlashRAG" in refusal(words, tmp_path / "indexes")
    assert "set retrieval.retriever=dense" in refusal(words, file)
    assert "set retrieval.retriever=bm25" in refusal(dense, tmp_path / "words")
    assert "of 37 passages, its corpus holds 36" in refusal(dense, file, shorter)
    assert "of 37 passages, its corpus holds 36" in refusal(words, tmp_path / "words", shorter)
    assert "width 48" in refusal(dense, wide)
    assert "damaged" in refusal(dense, damaged)
    assert "damaged" in refusal(words, tmp_path / "half")


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", ENGLISH)
    flashrag_bm25(corpus, tmp_path / "indexes")
    ran = run_cli(
        "index", corpus, "--set", f"retrieval.index_path='{tmp_path / 'indexes'}'", "--json"
    )
    told = json.loads(ran.out)
    assert (told["passages"], told["built"]) == (5, False)
    assert told["folder"] == str(tmp_path / "indexes")
