"""The generator of large corpora, and indexing them within a bound."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.resample import app, resample, write_resampled
from raggd.data.documents import read_passages, split_sentences
from raggd.records import Passage, RaggdError
from raggd.retrieval.base import held_memory
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
    ran = CliRunner().invoke(
        app, ["--passages", "50", "--out", str(made), "--corpus", str(corpus), "--json"]
    )
    assert (ran.exit_code, json.loads(ran.stdout)["passages"]) == (0, 50)
    bound = held_memory() // 10**6 + 2000  # this process may hold models of other tests
    told = run_cli("index", made, "--memory", f"{bound}MB", "--json")
    assert (told.code, json.loads(told.out)["passages"]) == (0, 50)
    small = run_cli("index", corpus, "--memory", "10MB")
    assert small.code == 2
    assert "too small" in small.err
    wrong = run_cli("index", corpus, "--memory", "lots")
    assert wrong.code == 2
    assert "'lots' is not a size" in wrong.err
