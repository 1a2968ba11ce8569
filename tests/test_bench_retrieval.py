"""The bench of retrieval: what it finds on a small corpus, and its fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import retrieval
from benchmarks.resample import write_resampled
from benchmarks.setting import BenchSetting
from raggd.assembly import Assembly
from raggd.data.documents import read_passages
from raggd.settings import load_settings
from tiny import make_backbone
from workflow_fixtures import parts_with, settings_text, write_data, write_lines


@pytest.fixture(name="parts")
def _parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assembly:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    data = write_data(tmp_path / "data")
    corpus = tmp_path / "large.jsonl"
    write_resampled(read_passages(data / "corpus"), 300, corpus)
    path = tmp_path / "settings.toml"
    path.write_text(settings_text(data), encoding="utf-8")
    settings = load_settings(path, [f"data.corpus='{corpus}'"])
    return parts_with(settings, make_backbone())


def test_ours_and_peers_at_growing_sizes(parts: Assembly, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "SIZES", (100, 290))
    monkeypatch.setattr(retrieval, "PEERS_UP_TO", 200)
    found = retrieval.run(BenchSetting(parts, 2, lambda _: None))
    assert set(found.ratios) == {"bm25_vs_bm25s", "dense_vs_faiss"}
    small, large = found.facts["points"]
    assert (small["passages"], large["passages"]) == (100, 300)  # 290 is too near
    assert small["same_top_10"] == 1.0
    assert {"ours", "bm25s"} <= set(small["query_ms"])
    assert set(large["build"]) == {"ours"}
    assert large["build"]["ours"]["disk"] > small["build"]["ours"]["disk"]
    assert small["build"]["ours"]["peak_memory"] > 10**7
    growth = found.facts["growth"]
    assert all(axis["sizes"] == [100, 300] for axis in growth.values())
    record = found.record()
    assert "BM25 query, ours, 300" in record["ms"]
    assert "Quoted" in record["pyserini"]["source"]
    json.dumps(record)


def test_the_fit_goes_to_21_million() -> None:
    def point(size: int) -> dict:
        build = {"cpu_seconds": 6e-5 * size, "disk": 900 * size}
        query = {"p50": 0.001 * size**0.5, "p95": 0.002 * size**0.5}
        return {"passages": size, "build": {"ours": build}, "query_ms": {"ours": query}}

    assert retrieval.fits([point(10_000), point(100_000)]) == {}
    found = retrieval.fits([point(1_000), point(10_000), point(100_000), point(10**6)])
    assert found["disk"]["exponent"] == pytest.approx(1.0, abs=1e-4)
    assert found["query_p50_ms"]["exponent"] == pytest.approx(0.5, abs=1e-4)
    assert found["cpu_seconds"]["at_21_million"] == pytest.approx(6e-5 * retrieval.TARGET, rel=1e-3)


def test_lines_of_a_file_are_what_is_counted(tmp_path: Path) -> None:
    from benchmarks.measure import apart, build_bm25s, build_ours
    from retrieval_fixtures import open_bm25

    corpus = write_lines(
        tmp_path / "c.jsonl", [{"id": str(n), "contents": f"T\nword{n} and more"} for n in range(9)]
    )
    for name, build in (("ours", build_ours), ("bm25s", build_bm25s)):
        (tmp_path / name).mkdir()
        built = apart(build, corpus, 5, tmp_path / name, 3 * 10**9)
        assert built.seconds > 0
        files = (file for file in (tmp_path / name).rglob("*") if file.is_file())
        assert built.disk == sum(file.stat().st_size for file in files)
    assert len(open_bm25(tmp_path / "ours")) == 5
