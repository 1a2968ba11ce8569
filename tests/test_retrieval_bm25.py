"""BM25: exact top-k, the formula, ties, folders that are whole or absent."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data.documents import corpus_hash
from raggd.records import Passage, RaggdError
from raggd.retrieval import base, build
from raggd.retrieval.base import RetrievalWarning, Retriever, top_k
from raggd.retrieval.bm25 import K1, B, BM25Kind, BM25Retriever
from raggd.retrieval.build import build_index
from raggd.retrieval.terms import tokenize
from raggd.settings import RetrievalSettings
from retrieval_fixtures import as_file, build_bm25, open_bm25, updated
from workflow_fixtures import ENGLISH as CORPUS


@pytest.fixture(name="built")
def _built(tmp_path: Path) -> BM25Retriever:
    return build_bm25(CORPUS, tmp_path / "index")


def ids(hits: list) -> list[str]:
    return [hit.passage.id for hit in hits]


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("group", [2, 128])  # small: the pass that leaves most rows out
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, -1.0]), max_size=30),
    st.integers(0, 40),
    st.sampled_from([-math.inf, 0.0, 0.5]),
    st.randoms(use_true_random=False),
)
def test_top_k_equals_sorting_everything(group, values, k, above, random) -> None:
    ties = list(range(len(values)))
    random.shuffle(ties)
    expected = sorted(
        (row for row in range(len(values)) if values[row] > above),
        key=lambda row: (-values[row], ties[row]),
    )[:k]
    scores = np.array(values, dtype=np.float32)
    before = scores.copy()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(base, "_GROUP", group)
        found = top_k(scores, np.array(ties, dtype=np.int64), k, above)
    assert found.tolist() == expected
    assert np.array_equal(scores, before)


def lucene_scores(query: str, corpus: list[Passage]) -> dict[str, float]:
    """The formula of the module's docstring, term by term."""
    documents = {p.id: Counter(tokenize(f"{p.title} {p.text}")) for p in corpus}
    mean = sum(d.total() for d in documents.values()) / len(documents)
    scores = dict.fromkeys(documents, 0.0)
    for term in tokenize(query):
        df = sum(term in d for d in documents.values())
        idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
        for name, d in documents.items():
            norm = K1 * (1 - B + B * d.total() / mean)
            scores[name] += idf * d[term] / (d[term] + norm)
    return scores


@pytest.mark.parametrize(
    "query",
    ["river London", "capital of England", "queen bees queen", "Thames", "bridges of Paris"],
)
def test_ranking_equals_the_formula(built: BM25Retriever, query: str) -> None:
    scores = lucene_scores(query, CORPUS)
    expected = sorted((n for n in scores if scores[n] > 0), key=lambda n: (-scores[n], n))
    hits = built.search([query], k=5)[0]
    assert ids(hits) == expected
    assert [hit.score for hit in hits] == pytest.approx([scores[n] for n in expected], rel=1e-5)
    assert len({round(score, 6) for score in scores.values()}) > 1  # the formula does rank


def test_the_result_is_the_passage_as_given(built: BM25Retriever) -> None:
    assert isinstance(built, Retriever)
    assert built.search(["honey"], k=1)[0][0].passage == CORPUS[3]
    assert built.store.passages(["e", "a"]) == [CORPUS[4], CORPUS[2]]
    with pytest.raises(RaggdError, match="'zz'"):
        built.store.passages(["zz"])


def test_k_beyond_the_corpus_and_no_term_in_common(built: BM25Retriever) -> None:
    assert set(ids(built.search(["London"], k=100)[0])) == {"b", "d", "e"}
    assert built.search(["quantum xylophone", "the of and"], k=3) == [[], []]
    assert built.search(["London"], k=0) == [[]]
    assert built.search([], k=3) == []


def test_ties_go_by_passage_id(tmp_path: Path) -> None:
    corpus = [Passage(name, "one same text") for name in ("p10", "p9", "p1", "z", "A")]
    retriever = build_bm25(corpus, tmp_path / "index")
    assert ids(retriever.search(["same text"], k=4)[0]) == ["A", "p1", "p10", "p9"]
    assert ids(retriever.search(["same"], k=2)[0]) == ["A", "p1"]


@pytest.mark.parametrize("query", ["", "  \n"])
def test_blank_query_and_negative_k_are_refused(built: BM25Retriever, query: str) -> None:
    with pytest.raises(RaggdError, match="number 2 of 2"):
        built.search(["fine", query], k=1)
    with pytest.raises(RaggdError, match="one text"):
        built.search("fine", k=1)
    with pytest.raises(RaggdError, match="-1"):
        built.search(["fine"], k=-1)


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], "holds no passage"),
        ([Passage("1", "the of and")], "words"),
        ([Passage("1", "text"), Passage("2", " ")], "line 2: passage '2' is empty"),
        (
            [Passage("1", "text"), Passage("2", "text"), Passage("1", "other")],
            "'1' occurs twice, as numbers 1 and 3",
        ),
    ],
)
def test_bad_corpora_leave_nothing(tmp_path: Path, corpus: list[Passage], message: str) -> None:
    with pytest.raises(RaggdError, match=message):
        build_bm25(corpus, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_the_old_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[Passage]:
        yield Passage("new", "new text")
        raise KeyboardInterrupt

    folder = tmp_path / "index"
    for old in ([], [folder]):
        if old:
            build_bm25(CORPUS, folder)
        with monkeypatch.context() as patched:
            patched.setattr(build, "passages_in", interrupted)
            with pytest.raises(KeyboardInterrupt):
                build_bm25(CORPUS[1:], folder)
        assert list(tmp_path.iterdir()) == old
    assert ids(open_bm25(folder).search(["honey"], k=1)[0]) == ["c"]


def test_a_folder_of_other_files_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RaggdError, match="other files"):
        build_bm25(CORPUS, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_reopened_equals_built_and_builds_are_equal_bytes(tmp_path: Path) -> None:
    built = build_bm25(CORPUS, tmp_path / "one")
    again = build_bm25(as_file(CORPUS, tmp_path / "one"), tmp_path / "two")
    queries = ["river London", "queen"]
    assert open_bm25(tmp_path / "one").search(queries, 4) == built.search(queries, 4)
    assert built.fingerprint == again.fingerprint
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    other = build_bm25(CORPUS[:-1], tmp_path / "three")
    assert other.fingerprint != built.fingerprint
    manifest = json.loads((tmp_path / "one" / "index.json").read_text())
    assert manifest["corpus_hash"] == corpus_hash(CORPUS)


@pytest.mark.parametrize(
    ("entry", "value", "readable"),
    [
        ("format", 999, False),
        ("kind", "dense", False),
        ("tokenizer", "0123abcd", True),
        ("parameters", {"k1": 1.5}, True),
    ],
)
def test_an_index_of_another_version_is_made_anew(
    built: BM25Retriever, tmp_path: Path, entry: str, value: object, readable: bool
) -> None:
    folder, kind = tmp_path / "index", BM25Kind()
    assert not updated(CORPUS, folder, kind).built
    manifest = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**manifest, entry: value}))
    if not readable:
        with pytest.raises(RaggdError, match="no bm25 index that this raggd reads"):
            open_bm25(folder)
    assert updated(CORPUS, folder, kind).built
    assert json.loads((folder / "index.json").read_text())[entry] == manifest[entry]


def test_missing_and_damaged_indexes_are_named(built: BM25Retriever, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="raggd index"):
        open_bm25(tmp_path / "nowhere")
    for name in ("passages.sqlite3", "segment-000000000000/scores.npy", "term_keys.npy"):
        folder = tmp_path / f"without {Path(name).stem}"
        shutil.copytree(tmp_path / "index", folder)
        file = folder / "data-1" / name
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(RaggdError, match="damaged"):
            open_bm25(folder)


def test_warns_when_the_top_hit_never_changes(built: BM25Retriever) -> None:
    same = [f"honey {number}" for number in range(25)]
    with pytest.warns(RetrievalWarning, match="'c' for all of 25"):
        built.search(same, k=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.search(same, k=1)  # once is enough


def test_no_warning_for_repeated_or_varied_queries(built: BM25Retriever) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.search(["honey"] * 50, k=1)
        built.search(["Paris", *(f"honey {number}" for number in range(50))], k=1)


def test_words_of_pdf_files_and_accents_are_found(tmp_path: Path) -> None:
    retriever = build_bm25([Passage("1", "a \ufb01ne cafe\u0301 in 1969")], tmp_path / "index")
    assert ids(retriever.search(["fine"], 1)[0]) == ["1"]
    assert ids(retriever.search(["caf\u00e9"], 1)[0]) == ["1"]


def test_build_index_builds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "notes.jsonl"
    lines = [json.dumps({"id": p.id, "title": p.title, "text": p.text}) for p in CORPUS]
    file.write_text("\n".join(lines))
    seen: list[int] = []
    settings = RetrievalSettings()
    first = build_index(file, settings, progress=lambda _, done, total: seen.append(done))
    again = build_index(file, settings)
    assert (first.built, again.built) == (True, False)
    assert first.folder == again.folder
    assert seen[-1] == len(CORPUS)
    opened = open_bm25(first.folder)
    assert opened.search(["London"], 3) == first.retriever.search(["London"], 3)


def test_build_index_into_a_named_folder_replaces_another_index(tmp_path: Path) -> None:
    folder = tmp_path / "index"
    settings = RetrievalSettings()
    assert build_index(as_file(CORPUS, folder), settings, folder).built
    assert not build_index(as_file(CORPUS, folder), settings, folder).built
    replaced = build_index(as_file(CORPUS[1:], folder), settings, folder)
    assert replaced.built
    assert len(replaced.retriever) == len(CORPUS) - 1
    assert list(tmp_path.iterdir()) == [folder]
