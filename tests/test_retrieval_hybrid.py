"""Hybrid retrieval: reciprocal ranks against an oracle, and the whole way from settings."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.records import Hit, Passage, RaggdError
from raggd.retrieval.base import Retriever, fused
from raggd.retrieval.build import build_index, is_indexed
from raggd.retrieval.store import HybridRetriever
from raggd.settings import RetrievalSettings
from retrieval_fixtures import as_file
from test_retrieval_dense import CORPUS, save_tiny_bert

_ranking = st.lists(st.sampled_from("abcdefgh"), unique=True)


@settings(deadline=None)
@given(_ranking, _ranking)
def test_fusion_is_the_sum_of_reciprocal_ranks(first: list[str], second: list[str]) -> None:
    lists = [[Hit(Passage(name, "text"), 1.0) for name in names] for names in (first, second)]
    exact = {
        name: sum(Fraction(1, 61 + names.index(name)) for names in (first, second) if name in names)
        for name in {*first, *second}
    }
    expected = sorted(exact, key=lambda name: (-exact[name], name))
    assert [hit.passage.id for hit in fused(lists)] == expected
    assert [hit.score for hit in fused(lists)] == pytest.approx([float(exact[n]) for n in expected])


def test_hybrid_from_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    model = str(save_tiny_bert(tmp_path / "tiny"))
    chosen = RetrievalSettings(retriever="hybrid", encoder=model)
    file = as_file(CORPUS, tmp_path)
    assert not is_indexed(file, chosen)
    index = build_index(file, chosen)
    found = index.retriever
    assert isinstance(found, HybridRetriever)
    assert isinstance(found, Retriever)
    assert (index.built, build_index(file, chosen).built) == (True, False)
    assert is_indexed(file, chosen)
    queries = ["word3 word9", "word17"]
    parts = [
        build_index(file, chosen.model_copy(update={"retriever": kind})).retriever
        for kind in ("bm25", "dense")
    ]
    hits = found.search(queries, 5)
    assert hits != parts[0].search(queries, 5) != parts[1].search(queries, 5)
    assert hits[0] == fused([part.search(queries, 100)[0] for part in parts])[:5]
    assert found.search([], 3) == []
    assert (len(found), found.store.passage_at(3), found.store.passages(["p05"])) == (
        37,
        CORPUS[3],
        [CORPUS[5]],
    )
    assert found.fingerprint not in {part.fingerprint for part in parts}
    with pytest.raises(RaggdError, match="empty"):
        found.search([" "], 1)
    named = build_index(file, chosen, tmp_path / "named")
    again = build_index(file, chosen, tmp_path / "named")
    assert (named.built, again.built) == (True, False)
    assert again.retriever.search(queries, 5) == hits
