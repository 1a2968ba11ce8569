"""The generator of large corpora, and the estimate of what indexing them takes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from raggd.data.documents import read_passages, split_sentences
from raggd.data.resample import resample, write_resampled
from raggd.records import Passage, RaggdError
from raggd.retrieval import build
from raggd.retrieval.base import Estimate, held_memory
from raggd.retrieval.build import build_index
from raggd.settings import RetrievalSettings
from workflow_fixtures import run_cli

REAL = [
    Passage(f"r{n}", f"Fact {n} is known. Bees make honey {n}. It rains in Oslo.", f"T{n}")
    for n in range(30)
]


def test_resampled_passages_hold_real_sentences_and_titles() -> None:
    made = list(resample(REAL, 200))
    known = {sentence for p in REAL for sentence in split_sentences(p.text)}
    assert all(set(split_sentences(p.text)) <= known for p in made)
    assert {p.title for p in made} <= {p.title for p in REAL}
    assert len({p.id for p in made}) == 200
    assert len({p.text for p in made}) > 190  # they differ from each other
    assert {p.text for p in made}.isdisjoint(p.text for p in REAL)


def test_resampling_is_a_stream_and_deterministic() -> None:
    endless = resample(REAL, 10**12)
    first = list(itertools.islice(endless, 5))
    assert first == list(resample(REAL, 5))
    assert first != list(resample(REAL, 5, seed=1))


@pytest.mark.parametrize(("corpus", "count"), [(REAL, 0), ([], 3)])
def test_nothing_to_resample_is_refused(corpus: list[Passage], count: int) -> None:
    with pytest.raises(RaggdError, match="cannot generate"):
        list(resample(corpus, count))


def test_the_file_reads_back(tmp_path: Path) -> None:
    size = write_resampled(REAL, 40, tmp_path / "made.jsonl")
    assert size == (tmp_path / "made.jsonl").stat().st_size
    assert list(read_passages(tmp_path / "made.jsonl")) == list(resample(REAL, 40))


def test_the_command_writes_and_the_index_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    corpus, made = tmp_path / "real.jsonl", tmp_path / "made.jsonl"
    write_resampled(REAL, 30, corpus)
    ran = run_cli(
        "data", "resample", "--passages", "50", "--out", made, "--corpus", corpus, "--json"
    )
    assert (ran.code, json.loads(ran.out)["passages"]) == (0, 50)
    bound = held_memory() // 10**6 + 2000  # this process may hold models of other tests
    told = run_cli("index", made, "--memory", f"{bound}MB", "--json")
    assert (told.code, json.loads(told.out)["passages"]) == (0, 50)
    assert json.loads(told.out)["estimate"] is None  # short builds need none
    small = run_cli("index", corpus, "--memory", "10MB")
    assert small.code == 2
    assert "too small" in small.err
    wrong = run_cli("index", corpus, "--memory", "lots")
    assert wrong.code == 2
    assert "'lots' is not a size" in wrong.err


def test_an_estimate_comes_before_a_long_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path))
    monkeypatch.setattr(build, "LONG", 100)
    events: list[object] = []

    def announce(estimate: Estimate) -> None:
        events.append(estimate)

    def progress(done: int, total: int | None) -> None:
        events.append(done)

    corpus = list(resample(REAL, 120))
    build_index(corpus[:99], RetrievalSettings(), progress=progress, announce=announce)
    assert not any(isinstance(event, Estimate) for event in events)
    events.clear()
    built = build_index(corpus, RetrievalSettings(), progress=progress, announce=announce)
    estimate = events[0]
    assert isinstance(estimate, Estimate)
    assert estimate.passages == 120
    disk = sum(file.stat().st_size for file in built.folder.rglob("*") if file.is_file())
    assert 0.5 * disk < estimate.disk < 2 * disk
    assert "120 passages" in str(estimate)
