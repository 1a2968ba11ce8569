"""The four tables: reading, hashes, errors, normalisations, neighbours, statistics."""

from __future__ import annotations

import gzip
import io
import urllib.error
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from raggd.data.tables import SOURCES, TABLES, load_table, to_table, values_hash
from raggd.linear.tables import (
    SPLITS,
    Normalisation,
    draw,
    nearest,
    normalise,
    prepare,
    statistics,
)
from raggd.records import RaggdError

WINE = [["acid", "quality"], ["1.5", "6"], ["2.5", "5"]]


@pytest.fixture
def small_wine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the hash of a two-row table stand for that of the wine table; no other folders."""
    expected = values_hash(np.array([[1.5], [2.5]]), np.array([6.0, 5.0]))
    monkeypatch.setitem(SOURCES, "wine", replace(SOURCES["wine"], sha256=expected))
    monkeypatch.delenv("RAGGD_DATA", raising=False)
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def write(folder: Path, text: str) -> None:
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / "winequality_white.csv.gz", "wt") as opened:
        opened.write(text)


def answer_with(monkeypatch: pytest.MonkeyPatch, data: bytes | Exception) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        if isinstance(data, Exception):
            raise data
        return io.BytesIO(data)

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return asked


@pytest.mark.usefixtures("small_wine")
def test_local_file_is_read_and_checked(tmp_path: Path) -> None:
    write(tmp_path / "t", "acid,quality\n1.5,6\n2.5,5\n")
    table = load_table("wine", tmp_path / "t")
    assert table.columns == ("acid",)
    assert table.x.tolist() == [[1.5], [2.5]]
    assert table.y.tolist() == [6.0, 5.0]
    write(tmp_path / "t", "acid,quality\n1.5,6\n2.51,5\n")
    with pytest.raises(RaggdError, match="not those of UCI Wine"):
        load_table("wine", tmp_path / "t")


@pytest.mark.usefixtures("small_wine")
def test_fetched_once_then_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("winequality-white.csv", '"acid";"quality"\n1.5;6\n2.5;5\n')
    asked = answer_with(monkeypatch, packed.getvalue())
    assert load_table("wine").y.tolist() == [6.0, 5.0]
    assert load_table("wine").y.tolist() == [6.0, 5.0]
    assert asked == [SOURCES["wine"].url]


@pytest.mark.usefixtures("small_wine")
@pytest.mark.parametrize("answer", [urllib.error.URLError("no route"), b"<html>moved</html>"])
def test_missing_source_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: bytes | Exception
) -> None:
    answer_with(monkeypatch, answer)
    with pytest.raises(RaggdError, match=r"could not be fetched.*--tables"):
        load_table("wine")
    with pytest.raises(RaggdError, match="asks for an account"):
        load_table("calories")
    with pytest.raises(RaggdError, match=r"no winequality_white\.csv"):
        load_table("wine", tmp_path)
    with pytest.raises(RaggdError, match="did you mean 'wine'"):
        load_table("vine")


@pytest.mark.parametrize(
    "rows", [[["acid", "taste"], ["1", "2"]], [["acid", "quality"], ["many", "2"]], [["a"]], []]
)
def test_damaged_tables_are_refused(rows: list[list[str]]) -> None:
    with pytest.raises(RaggdError, match="not those of UCI Wine"):
        to_table("wine", rows)


def test_real_tables_load_without_their_identifiers(shared_data: Path) -> None:
    width = {"california": 8, "bike": 14, "wine": 11, "calories": 7}
    for name in TABLES:
        table = load_table(name, shared_data / "tabular")
        assert table.x.shape[1] == width[name] == len(table.columns)
        assert len(table.y) >= sum(SPLITS[name])
        assert not {"instant", "dteday", "User_ID"} & set(table.columns)


def test_normalisations_use_training_rows_only() -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(200, 3, generator=generator, dtype=torch.float64).exp()
    train[:, 2] = 7.0  # a constant feature
    x = torch.cat([train, train[:5] * 100])
    z = normalise(x, train, Normalisation.z_score)
    torch.testing.assert_close(z[:200, :2].mean(0), torch.zeros(2, dtype=torch.float64))
    torch.testing.assert_close(z[:200, :2].std(0, correction=0), torch.ones(2, dtype=torch.float64))
    low_high = normalise(train, train, Normalisation.min_max)[:, :2]
    assert low_high.amin() == 0
    assert low_high.amax() == 1
    rank = normalise(x, train, Normalisation.rank)
    assert rank[:200, 0].argsort().tolist() == train[:, 0].argsort().tolist()
    assert 0 <= rank.amin() <= rank.amax() <= 1
    assert (rank[:, 2] == 0.5)[:200].all()
    torch.testing.assert_close(normalise(x, train, Normalisation.tanh), z.tanh())
    for how in Normalisation:
        assert normalise(x, train, how).isfinite().all()


def test_neighbours_are_nearest_and_never_the_row_itself() -> None:
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    found = nearest(rows, rows[:50], 4)
    distance = torch.cdist(rows, rows[:50])
    for i in range(60):
        if i < 50:
            distance[i, i] = torch.inf
            assert i not in found[i]
        assert found[i].tolist() == distance[i].argsort()[:4].tolist()


def test_tasks_and_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SPLITS, "wine", (300, 40))
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(350, 4, generator=generator, dtype=torch.float64)
    heavy = x.clone()
    heavy[0] = 60.0
    data = prepare("wine", x, x.sum(1), seeds=2, seed=0, documents=3)
    assert [tuple(label.values()) for label in data.labels[:3]] == [
        ("z-score", 0),
        ("z-score", 1),
        ("min-max", 0),
    ]
    tasks = draw(data, 5, 6, generator, test=True)
    assert tasks.x1.shape == (8, 5, 7, 4)
    assert tasks.documents is not None
    assert tasks.documents.shape == (8, 5, 3, 4)
    plain = statistics(data)
    tailed = statistics(prepare("wine", heavy, heavy.sum(1), seeds=2, seed=0, documents=3))
    assert plain["kurtosis"][0].abs() < 1
    assert (tailed["kurtosis"][0] > 10) or (tailed["kurtosis"][1] > 10)
    assert 1 <= plain["effective_rank"].amin() <= plain["effective_rank"].amax() <= 3
    with pytest.raises(RaggdError, match="the split needs 300"):
        prepare("wine", x[:300], x[:300].sum(1), seeds=1, seed=0, documents=3)
