"""A corpus that changes: what is read, sorted and encoded again, and that nothing else differs."""

from __future__ import annotations

import gzip
import json
import os
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raggd.cli.shared import refuse_skipped
from raggd.data import documents
from raggd.data.documents import Skipped
from raggd.data.documents.passages import Block
from raggd.records import Passage, RaggdError
from raggd.retrieval import bm25, build, store
from raggd.retrieval.base import RetrievalWarning
from raggd.retrieval.bm25 import BM25Kind, BM25Retriever
from raggd.retrieval.build import Changes, build_index
from raggd.retrieval.dense import DenseRetriever
from raggd.retrieval.encoder import Encoder, EncoderRules
from raggd.retrieval.folders import open_folder
from raggd.settings import RetrievalSettings
from retrieval_fixtures import build_bm25, build_dense, open_bm25, updated
from workflow_fixtures import run_cli

WORDS = [f"word{number}" for number in range(25)]
QUERIES = [*WORDS[::4], "word1 word2 word3", "word7 word7 word8"]
SPELT = ["", "", "e-mail", "e", "mail", "Zürich", "zurich"]  # words with other spellings: rare


def text_of(seed: int) -> str:
    rng = random.Random(seed)
    words = rng.choices(WORDS, k=rng.randint(1, 30))
    return " ".join([*words, rng.choice(SPELT)]) + "."


def write(folder: Path, files: dict[str, int], age: int = 10) -> Path:
    """Write files of words by seed, as old as given in seconds; others are deleted."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.name not in files:
            file.unlink()
    for name, seed in files.items():
        file, text = folder / name, "\n\n".join(text_of(100 * seed + part) for part in range(3))
        if not file.exists() or file.read_text() != text:
            file.write_text(text)
            then = time.time() - age - seed / 1000
            os.utime(file, (then, then))
    return folder


class FakeEncoder(Encoder):
    """Counts words; counts what it encodes."""

    def __init__(self, name: str = "fake") -> None:
        self.name, self.rules, self.precision = name, EncoderRules(), "float32"
        self.encoded: list[str] = []

    width = 25  # type: ignore[assignment]
    fingerprint = "fake"  # type: ignore[assignment]

    def _vectors(self, texts: list[str]) -> np.ndarray:
        made = np.array([[t.split().count(w) + 0.01 for w in WORDS] for t in texts], np.float32)
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    def encode_queries(self, queries):
        return self._vectors([f"{q} " for q in queries])

    def encode_passages(self, passages, done: Callable[[int], None] | None = None):
        self.encoded += [p.text for p in passages]
        return self._vectors([p.text.replace(".", " ") for p in passages])


def same_hits(one: BM25Retriever | DenseRetriever, other: BM25Retriever | DenseRetriever) -> None:
    for k in (1, 3, 50):
        queries = [*QUERIES, "email", "zurich", "zuerich"]
        assert one.search(queries, k) == other.search(queries, k)
    assert one.fingerprint == other.fingerprint
    assert list(one.store) == list(other.store)
    assert [one.store.passage_at(n).id for n in range(len(one))] == [p.id for p in other.store]


_files = st.dictionaries(st.sampled_from(["a.txt", "b.txt", "c.md", "d.txt"]), st.integers(0, 9))


def test_spellings_go_with_the_last_passage_of_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25, "_SMALL", 0)
    texts = {"1": "e mail", "2": "by e-mail", "3": "zurich", "4": "Zürich"}
    (tmp_path / "docs").mkdir()
    for name, text in texts.items():
        (tmp_path / "docs" / f"{name}.txt").write_text(text)
    asked = ["email", "zurich"]
    found = build_bm25(tmp_path / "docs", tmp_path / "index").search(asked, 9)
    assert [len(hits) for hits in found] == [2, 1]
    for gone, left in (("3", [2, 1]), ("2", [0, 1]), ("4", [0, 0])):
        (tmp_path / "docs" / f"{gone}.txt").unlink()
        found = build_bm25(tmp_path / "docs", tmp_path / "index").search(asked, 9)
        assert [len(hits) for hits in found] == left


@settings(deadline=None, max_examples=25)
@given(st.lists(_files.filter(bool), min_size=2, max_size=5), st.booleans())
def test_an_updated_index_is_a_new_one(states: list[dict[str, int]], merge: bool) -> None:
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(bm25, "_SMALL", 1000 if merge else 0)
        root, encoder = Path(name), FakeEncoder()
        for number, files in enumerate(states):
            path = write(root / "docs", files)
            words = build_bm25(path, root / "bm25", rows=4)
            dense = build_dense(path, root / "dense", encoder, shard=3)
            same_hits(words, build_bm25(path, root / f"new-bm25-{number}", rows=4))
            same_hits(dense, build_dense(path, root / f"new-dense-{number}", FakeEncoder()))
        versions = [p.name for p in (root / "bm25").iterdir() if p.name.startswith("data-")]
        assert len(versions) == 1


def read_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    read: list[str] = []
    real = documents.stream_file

    def noted(file: documents.SourceFile, lost: list[str]) -> Iterator[Passage]:
        read.append(file.name)
        return real(file, lost)

    monkeypatch.setattr(documents, "stream_file", noted)
    return read


def test_only_what_changed_is_read_and_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write(tmp_path / "docs", {f"{n}.txt": n for n in range(8)})
    encoder = FakeEncoder()
    update = lambda: build_dense(docs, tmp_path / "index", encoder)  # noqa: E731
    update()
    read = read_in(monkeypatch)
    encoder.encoded.clear()
    update()
    assert (read, encoder.encoded) == ([], [])
    (docs / "3.txt").write_text((docs / "3.txt").read_text() + "\n\nword1 word2 entirely new.")
    update()
    assert read == ["3.txt"]
    assert len(encoder.encoded) == 1
    (docs / "moved").mkdir()
    (docs / "3.txt").rename(docs / "moved" / "3.txt")
    encoder.encoded.clear()
    read.clear()
    found = update()
    assert read == ["moved/3.txt"]
    assert encoder.encoded == []  # other ids, but the same titles and texts
    assert found.search(["word1"], 1)


def test_the_index_says_what_changed(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": 1, "b.txt": 2, "c.txt": 3})
    kind, folder = BM25Kind(), tmp_path / "index"
    first = updated(docs, folder, kind)
    count = len(first.retriever)
    assert first.changes == Changes(files_added=3, passages_added=count)
    again = updated(docs, folder, kind)
    assert (again.built, again.changes) == (False, Changes())
    (docs / "a.txt").write_text("word1 alone.")
    (docs / "b.txt").unlink()
    (docs / "d.txt").write_text("word2 alone.")
    changed = updated(docs, folder, kind).changes
    assert (changed.files_added, changed.files_changed, changed.files_removed) == (1, 1, 1)
    assert (changed.passages_added, changed.passages_changed) == (1, 1)
    assert changed.passages_removed == count - len(open_bm25(folder)) + 1
    assert str(changed).startswith("files: 1 added, 1 changed, 1 removed; passages: 1 added")


def test_an_edit_that_leaves_size_and_time_is_seen_while_it_can_happen(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("word1 stands here.")
    state = (docs / "a.txt").stat()
    build_bm25(docs, tmp_path / "index")
    (docs / "a.txt").write_text("word2 stands here.")  # within the clock's tick
    os.utime(docs / "a.txt", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert build_bm25(docs, tmp_path / "index").search(["word2"], 1)[0]


@pytest.mark.parametrize("then", [1, 315_532_800])
def test_bytes_that_come_under_the_time_of_others_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: int
) -> None:
    # as archives with fixed times, and copies that keep them, put them there
    monkeypatch.setattr(build, "_TICK_NS", 0)
    docs = tmp_path / "docs"
    docs.mkdir()
    other = tmp_path / "other.txt"
    for path, word in ((docs / "a.txt", "word1"), (other, "word2")):
        path.write_text(f"{word} stands here.")
        os.utime(path, (then, then))
    build_bm25(docs, tmp_path / "index")
    assert not updated(docs, tmp_path / "index", BM25Kind()).built
    other.replace(docs / "a.txt")
    assert (docs / "a.txt").stat().st_mtime == then
    assert build_bm25(docs, tmp_path / "index").search(["word2"], 1)[0]


def test_a_touched_file_is_compared_by_its_bytes_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_TICK_NS", 0)
    docs = write(tmp_path / "docs", {"a.txt": 1, "b.txt": 2}, age=1000)
    build_bm25(docs, tmp_path / "index")
    os.utime(docs / "a.txt", (1, 1))
    hashed: list[Path] = []
    real = build.file_hash
    monkeypatch.setattr(build, "file_hash", lambda path: hashed.append(path) or real(path))
    kind = BM25Kind()
    assert not updated(docs, tmp_path / "index", kind).built
    assert set(hashed) == {docs / "a.txt"}
    hashed.clear()
    assert not updated(docs, tmp_path / "index", kind).built
    assert hashed == []


def test_a_bad_file_is_named_until_it_is_mended(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"a.txt": 1, "b.txt": 2})
    (docs / "bad.jsonl").write_text("{")
    kind, folder = BM25Kind(), tmp_path / "index"
    for built in (True, False):
        index = updated(docs, folder, kind)
        assert (index.built, [each.file for each in index.skipped]) == (built, ["bad.jsonl"])
    (docs / "bad.jsonl").write_text('{"id": "x", "contents": "T\\nword1"}')
    mended = updated(docs, folder, kind)
    assert mended.skipped == ()
    assert "x" in {hit.passage.id for hit in mended.retriever.search(["word1"], 100)[0]}


def test_what_is_read_in_part_is_named_by_every_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(path: Path) -> Iterator[Block]:
        yield from (Block("Honey."), Block("", lost="its end cannot be read"))

    docs = write(tmp_path / "docs", {"a.txt": 1, "b.rst": 2})
    monkeypatch.setattr("raggd.data.documents.rst.read", half)
    for built in (True, False):
        index = updated(docs, tmp_path / "index", BM25Kind())
        assert index.skipped == (Skipped("b.rst", "its end cannot be read", partly=True),)
        assert (index.built, len(index.retriever)) == (built, 2)
    with pytest.raises(RaggdError, match=r"1 file is read in part \(b\.rst: its end"):
        refuse_skipped(docs, index.skipped)


def test_a_full_disk_is_one_message_and_leaves_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs, folder = write(tmp_path / "docs", {f"{n}.txt": n for n in range(30)}), tmp_path / "index"
    assert updated(docs, folder, BM25Kind()).built
    write(docs, {f"{n}.txt": n + 1 for n in range(200)})
    with monkeypatch.context() as full:
        full.setattr(store, "_START", f"PRAGMA max_page_count = 3; {store._START}")
        with pytest.raises(RaggdError, match=r"cannot write the index .*: the disk is full"):
            updated(docs, folder, BM25Kind())
    assert len(open_bm25(folder)) == 30
    assert updated(docs, folder, BM25Kind()).built


def test_a_file_that_cannot_be_opened_is_named_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "docs" / f"{name}.txt").write_text(f"Text of {name}.")
        os.utime(tmp_path / "docs" / f"{name}.txt", (1, 1))
    opened = Path.open

    def refused(path: Path, *args: Any, **more: Any) -> Any:
        if path.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)

    settings = RetrievalSettings()
    with monkeypatch.context() as locked:
        locked.setattr(Path, "open", refused)
        for _ in range(2):
            index = build_index(tmp_path / "docs", settings, tmp_path / "index")
            assert [(s.file, s.reason) for s in index.skipped] == [("b.txt", "Permission denied.")]
    index = build_index(tmp_path / "docs", settings, tmp_path / "index")
    assert (len(index.retriever), index.skipped) == (2, ())


def test_a_line_without_an_id_is_named_after_its_file(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.JSONL.GZ").write_bytes(gzip.compress(b'{"id": "", "text": "one"}'))
    (tmp_path / "docs" / "b.jsonl").write_text('{"text": "two"}\n{"id": 1e999, "text": "three"}\n')
    index = build_index(tmp_path / "docs", RetrievalSettings(), tmp_path / "index")
    assert [hit.passage.id for hit in index.retriever.search(["one"], 3)[0]] == ["a.JSONL.GZ#1"]
    assert [(s.file, s.reason.partition(":")[0]) for s in index.skipped] == [("b.jsonl", "line 2")]


def test_a_reader_keeps_its_version_while_the_index_is_replaced(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {f"{n}.txt": n for n in range(5)})
    reader = build_bm25(docs, tmp_path / "index")
    before, passages = reader.search(QUERIES, 5), list(reader.store)
    write(docs, {"0.txt": 9})
    assert len(build_bm25(docs, tmp_path / "index")) < len(reader)
    assert reader.search(QUERIES, 5) == before
    assert list(reader.store) == passages


@pytest.mark.parametrize("name", ["data-old", "data-1", "data-2024", "data-"])
def test_folders_of_others_that_are_called_alike_stay(tmp_path: Path, name: str) -> None:
    docs = write(tmp_path / "docs", {"0.txt": 0})
    theirs = tmp_path / "theirs"
    (theirs / name).mkdir(parents=True)
    with pytest.raises(RaggdError, match="holds other files, which would be lost"):
        build_bm25(docs, theirs)
    index = tmp_path / "index"
    build_bm25(docs, index)
    if name != "data-1":
        (index / name).mkdir()
    write(docs, {"0.txt": 1})
    build_bm25(docs, index)
    assert [(theirs / name).is_dir(), (index / name).is_dir()] == [True, name != "data-1"]
    assert len(list(index.iterdir())) == (2 if name == "data-1" else 3)


@pytest.mark.parametrize("replaced", [True, False])
def test_what_went_wrong_because_of_a_replacement_is_read_again(
    tmp_path: Path, replaced: bool
) -> None:
    docs = write(tmp_path / "docs", {"0.txt": 0})
    build_bm25(docs, tmp_path / "index")
    tried: list[Path] = []

    def load(data: Path, _: object) -> Path:
        tried.append(data)
        if len(tried) == 1:
            if replaced:
                build_bm25(write(docs, {"0.txt": 7}), tmp_path / "index")
            raise RaggdError("a file of the version before is gone")
        return data

    if replaced:
        assert open_folder(tmp_path / "index", "bm25", load) == tried[1] != tried[0]
    else:
        with pytest.raises(RaggdError, match=r"^a file of the version before is gone$"):
            open_folder(tmp_path / "index", "bm25", load)
        assert len(tried) == 1


def test_indexes_open_while_they_are_replaced_again_and_again(tmp_path: Path) -> None:
    docs = write(tmp_path / "docs", {"0.txt": 0})
    build_bm25(docs, tmp_path / "index")
    failed: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                assert open_bm25(tmp_path / "index").search(["word1"], 100)
            except BaseException as error:
                failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for seed in range(1, 15):
        write(docs, {f"{seed}.txt": seed, "0.txt": 0})
        build_bm25(docs, tmp_path / "index")
    done.set()
    thread.join()
    assert failed == []


def test_a_store_that_vanishes_while_it_is_opened_counts_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bm25([Passage("a", "word1")], tmp_path / "index")

    def gone(_: Path) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(store, "_opened", gone)
    with pytest.raises(RaggdError, match="damaged"):
        open_bm25(tmp_path / "index")


def test_segments_stay_few_however_often_a_corpus_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bm25, "_SMALL", 0)
    files = {f"{n:03d}.txt": n for n in range(4)}
    for number in range(4, 40):
        files[f"{number:03d}.txt"] = number
        built = build_bm25(write(tmp_path / "docs", files), tmp_path / "index")
    sizes = [segment.count for segment in built._segments]
    assert len(sizes) <= 7
    assert sum(sizes) == len(built)


def test_a_corpus_has_one_index_per_kind_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    docs = write(tmp_path / "docs", {"a.txt": 1})
    for seed in range(1, 4):
        write(docs, {"a.txt": seed})
        assert build_index(docs, RetrievalSettings()).built
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 1
    other = write(tmp_path / "other", {"a.txt": 1})
    build_index(other, RetrievalSettings())
    assert len(list((tmp_path / "cache" / "indexes").iterdir())) == 2


def test_an_id_given_twice_names_the_files(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (docs / name).write_text('{"id": "same", "contents": "T\\nword1"}')
    with pytest.raises(RaggdError, match=r"'same' occurs twice.*in a\.jsonl and b\.jsonl"):
        build_bm25(docs, tmp_path / "index")


def test_passages_of_one_file_are_told_by_their_ids(tmp_path: Path) -> None:
    corpus_one = [Passage("a", "word1"), Passage("b", "word2")]
    build_bm25(corpus_one, tmp_path / "index")
    changed = updated([*corpus_one, Passage("c", "word3")], tmp_path / "index", BM25Kind())
    assert changed.changes.passages_added == 1
    assert changed.changes.passages_removed == 0


def test_the_command_says_what_changed_and_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    docs = write(tmp_path / "docs", {"a.txt": 1, "b.txt": 2})
    run_cli("index", docs)
    (docs / "a.txt").write_text("word1 alone.")
    (docs / "photo.png").write_bytes(b"PNG")
    with pytest.warns(RetrievalWarning, match=r"1 file is skipped \(photo\.png"):
        told = json.loads(run_cli("index", docs, "--json").out)
    assert told["built"]
    assert told["changes"]["files_changed"] == 1
    assert [each["file"] for each in told["skipped"]] == ["photo.png"]
    with pytest.warns(RetrievalWarning, match="skipped"):
        assert "already indexed" in run_cli("index", docs).out
    assert "photo.png" in run_cli("index", docs, "--strict").refusal()
