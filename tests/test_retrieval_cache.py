"""The cache gives back exactly what the retriever gave, and never mixes two of them."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

from raggd.files import CacheWarning
from raggd.records import Hit, Passage, RaggdError
from raggd.retrieval.base import Retriever
from raggd.retrieval.build import build_index
from raggd.retrieval.cache import CachedRetriever, list_cache, prune_cache
from raggd.settings import RetrievalSettings
from retrieval_fixtures import as_file

PASSAGES = {name: Passage(name, f"text of {name}") for name in ("a", "b", 'c,"\n', "d")}


class Fake:
    """Counts what is searched; scores have no short decimal form."""

    def __init__(self, fingerprint: str = "one") -> None:
        self.fingerprint, self.store = fingerprint, self
        self.searched: list[str] = []

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.searched += queries
        return [self._one(query, k) for query in queries]

    def _one(self, query: str, k: int) -> list[Hit]:
        return [
            Hit(passage, (len(query) + len(self.fingerprint)) / 3 / (place + 0.7))
            for place, passage in enumerate([*PASSAGES.values()][:k])
        ]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        return [PASSAGES[name] for name in ids]


def test_cached_equals_uncached_bitwise(tmp_path: Path) -> None:
    fake = Fake()
    cached = CachedRetriever(fake, tmp_path)
    assert isinstance(cached, Retriever)
    assert cached.fingerprint == "one"
    queries = ["first", "second one", "first"]
    expected = Fake().search(queries, 3)
    assert expected[0] != expected[1]
    for _ in range(2):
        found = cached.search(queries, 3)
        assert found == expected
        assert [h.score.hex() for h in found[1]] == [h.score.hex() for h in expected[1]]
    assert sorted(fake.searched) == ["first", "second one"]


def test_a_new_process_finds_the_results(tmp_path: Path) -> None:
    first = CachedRetriever(Fake(), tmp_path).search(["q"], 4)
    fresh = Fake()
    assert CachedRetriever(fresh, tmp_path).search(["q"], 4) == first
    assert fresh.searched == []


def test_every_part_of_the_key_counts(tmp_path: Path) -> None:
    calls = [("one", "q", 3), ("two", "q", 3), ("one", "other", 3), ("one", "q", 2)]
    for fingerprint, query, k in calls:
        fake = Fake(fingerprint)
        found = CachedRetriever(fake, tmp_path).search([query], k)
        assert fake.searched == [query]
        assert found == Fake(fingerprint).search([query], k)


def test_empty_results_are_remembered_and_bad_arguments_refused(tmp_path: Path) -> None:
    fake = Fake()
    cached = CachedRetriever(fake, tmp_path)
    assert cached.search(["q"], 0) == cached.search(["q"], 0) == [[]]
    assert fake.searched == ["q"]
    assert cached.search([], 3) == []
    with pytest.raises(RaggdError, match="empty"):
        cached.search([" "], 3)


def test_changing_a_result_does_not_change_the_cache(tmp_path: Path) -> None:
    cached = CachedRetriever(Fake(), tmp_path)
    found = cached.search(["q", "q"], 2)
    found[0].clear()
    assert len(found[1]) == 2
    assert len(cached.search(["q"], 2)[0]) == 2


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "retrieval.sqlite3").write_bytes(b"not a database at all" * 100)
    with pytest.raises(RaggdError, match=r"retrieval\.sqlite3.*delete"):
        CachedRetriever(Fake(), tmp_path).search(["q"], 1)


@pytest.mark.parametrize("known", [False, True])
def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    if known:
        CachedRetriever(Fake(), tmp_path).search(["known"], 2)
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **_: connect(f"file:{path}?mode=ro", uri=True)
    )
    fake = Fake()
    cached = CachedRetriever(fake, tmp_path)
    with pytest.warns(CacheWarning, match=r"not kept in .*retrieval\.sqlite3: "):
        assert cached.search(["known", "new"], 2) == Fake().search(["known", "new"], 2)
    assert sorted(fake.searched) == (["new"] if known else ["known", "new"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        assert cached.search(["newer"], 2) == Fake().search(["newer"], 2)


def test_what_cannot_be_deleted_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path))
    CachedRetriever(Fake(), tmp_path / "retrieval").search(["q"], 1)

    def refused(path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as locked:
        locked.setattr(Path, "unlink", refused)
        with pytest.raises(RaggdError, match=r"cannot delete .*retrieval\.sqlite3: Read-only"):
            prune_cache(max_bytes=0)
    assert [entry.kind for entry in prune_cache(max_bytes=0)] == ["retrieval"]


def test_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(10):
                cached = CachedRetriever(Fake(), tmp_path)
                query = f"query {(number + step) % 7}"
                assert cached.search([query], 3) == Fake().search([query], 3)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    fresh = Fake()
    CachedRetriever(fresh, tmp_path).search([f"query {n}" for n in range(7)], 3)
    assert fresh.searched == []


def test_the_cache_is_listed_and_pruned_by_age_and_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path))
    assert list_cache() == []
    files = [as_file([Passage("a", f"text {n}")], tmp_path / str(n)) for n in range(3)]
    built = [build_index(file, RetrievalSettings()) for file in files]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "model.whl").write_bytes(b"x" * 1000)
    for days, index in zip((9, 5, 1), built, strict=True):
        then = time.time() - 86400 * days
        os.utime(index.folder / "index.json", (then, then))
    entries = list_cache()
    assert [entry.path for entry in entries[:3]] == [index.folder for index in built]
    assert entries[0].what.startswith("bm25, 1 passages")
    assert (entries[3].kind, entries[3].bytes) == ("wheels", 1000)
    assert [entry.path for entry in prune_cache(older_than_days=7)] == [built[0].folder]
    assert prune_cache(older_than_days=7) == []
    reader = built[1].retriever
    assert [entry.path for entry in prune_cache(max_bytes=entries[2].bytes)] == [built[1].folder]
    assert reader.search(["text"], 1)[0]  # it has the files open
    assert {entry.kind for entry in list_cache()} == {"index", "wheels"}
    build_index(files[2], RetrievalSettings())  # used again
    assert prune_cache(older_than_days=0.5) == []
