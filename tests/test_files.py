"""Files that are whole or absent, whatever goes wrong while they are written or read."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import math
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raggd import files
from raggd.records import RaggdError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def _no_space(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_writes_a_new_file_and_replaces_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.txt"
    for text in ("one", "two"):
        with files.replacing(path) as temporary:
            assert temporary != path
            temporary.write_text(text)
            assert not path.exists() or path.read_text() != text  # not before the block ends
        assert path.read_text() == text
    assert _names(path.parent) == ["file.txt"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_file_that_grows_as_fast_as_it_is_read_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": "é"}\n' * 10, encoding="utf-8")
    read = 0
    with path.open("a", encoding="utf-8", buffering=1) as log:
        for number, _ in files.read_json_lines(path):
            log.write('{"a": "é"}\n' * 100_000)  # more than any buffer
            read = number
            assert number < 20
    assert read >= 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit, GeneratorExit])
@pytest.mark.parametrize("before", [None, "old"])
def test_an_interrupted_write_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], before: str | None
) -> None:
    path = tmp_path / "file.txt"
    if before:
        path.write_text(before)

    def write() -> None:
        with files.replacing(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert _names(tmp_path) == (["file.txt"] if before else [])
    assert not before or path.read_text() == before


def test_a_full_disk_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.json"
    files.write_json(path, {"old": 1})
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", _no_space)
        with pytest.raises(RaggdError, match=r"cannot write .*file\.json: the disk is full"):
            files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert _names(tmp_path) == ["file.json"]
    files.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"new": 2}


@pytest.mark.parametrize("step", ["replace", "mkdir"])
def test_a_full_disk_at_the_start_or_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "file.txt"
    files.write_text(path, "old")
    monkeypatch.setattr(Path, step, _no_space)
    with pytest.raises(RaggdError, match="the disk is full"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file.txt"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "blocker").write_text("a file, not a folder")
    with pytest.raises(RaggdError, match=r"cannot write .*blocker/file\.txt"):
        files.write_text(tmp_path / "blocker" / "file.txt", "x")


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    files.save_tensors(path, TENSORS, {"kind": "test"})
    tensors, metadata = files.load_tensors(path)
    assert metadata == {"kind": "test"}
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert _names(tmp_path) == ["weights.safetensors"]


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path: Path) -> None:
    metadata = {f"key {i}": f'value {i} "é"\n\x01/' for i in range(8)}
    hashes = set()
    for i in range(5):
        path = tmp_path / f"{i}.safetensors"
        turned = dict(sorted(metadata.items(), reverse=bool(i % 2)))
        files.save_tensors(path, TENSORS, turned)
        assert files.load_tensors(path)[1] == metadata
        hashes.add(files.file_hash(path))
    assert len(hashes) == 1
    files.save_tensors(path, TENSORS, {**metadata, "key 0": "another"})
    assert files.file_hash(path) not in hashes
    files.save_tensors(path, TENSORS, {})
    assert files.load_tensors(path)[1] == {}


def test_tensors_may_be_views_and_carry_gradients(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_(True).T
    files.save_tensors(tmp_path / "w", {"t": tensor}, {})
    assert torch.equal(files.load_tensors(tmp_path / "w")[0]["t"], tensor.detach())


def test_a_full_disk_while_tensors_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library reports a full disk by an error of its own, not by OSError."""
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        )

    path = tmp_path / "weights.safetensors"
    files.save_tensors(path, {"a": torch.zeros(1)}, {})
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(RaggdError, match=r"cannot write .*weights\.safetensors: the disk is full"):
        files.save_tensors(path, TENSORS, {})
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["weights.safetensors"]


def test_damaged_and_truncated_weights_are_refused_at_every_length(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    files.save_tensors(path, TENSORS, {"kind": "test"})
    whole = path.read_bytes()
    files.load_tensors(path)
    for length in [0, 4, 8, 20, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(RaggdError, match="truncated or damaged"):
            files.load_tensors(path)
    for damaged in [b"\xff" * len(whole), whole[:8] + b"x" + whole[9:], whole + b"more"]:
        path.write_bytes(damaged)
        with pytest.raises(RaggdError, match=r"weights\.safetensors.*truncated or damaged"):
            files.load_tensors(path)
    path.unlink()
    with pytest.raises(RaggdError, match="no weight file"):
        files.load_tensors(path)


@given(st.recursive(st.floats() | st.text() | st.none(), lambda inner: st.lists(inner)
       | st.tuples(inner, inner) | st.dictionaries(st.text(), inner)))  # fmt: skip
def test_what_is_written_is_json_as_others_read_it(value: object) -> None:
    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def bounded(value: object) -> object:
        if isinstance(value, dict):
            return {key: bounded(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [bounded(inner) for inner in value]
        return value if not isinstance(value, float) or abs(value) < math.inf else None

    text = files.as_json(value)
    assert json.loads(text, parse_constant=refused) == bounded(value)


def test_json_that_is_missing_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(RaggdError, match=r"cannot read the store at .*a\.json"):
        files.read_json(path, what="the store")
    files.write_json(path, ["é"])
    assert files.read_json(path, what="the store") == ["é"]
    path.write_text('{"half":')
    with pytest.raises(RaggdError, match=r"the store at .*a\.json is not valid JSON"):
        files.read_json(path, what="the store")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RaggdError, match="not valid JSON"):
        files.read_json(path, what="the store")


@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_are_counted_from_one_and_blanks_skipped(tmp_path: Path, packed: bool) -> None:
    data = b'{"a": 1}\n\n  \n{"a": 2}\n'
    path = tmp_path / ("x.jsonl.gz" if packed else "x.jsonl")
    path.write_bytes(gzip.compress(data) if packed else data)
    assert list(files.read_json_lines(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("data", "line"),
    [(b"{}\n{oops}\n", 2), (b'{}\n{}\n"text"\n', 3), (b"[1]\n", 1)],
)
def test_a_bad_line_is_named(tmp_path: Path, data: bytes, line: int) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    with pytest.raises(RaggdError, match=rf"x\.jsonl, line {line}: "):
        list(files.read_json_lines(path))


def test_lines_before_a_bad_one_are_given(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{oops}\n')
    lines = files.read_json_lines(path)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(RaggdError):
        next(lines)


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    lines = [{"n": number} for number in range(20_000)]  # more than a pipe holds at once
    text = "\n".join(map(json.dumps, lines))
    writing = threading.Thread(target=path.write_text, args=(text,), daemon=True)
    writing.start()
    assert [value for _, value in files.read_json_lines(path)] == lines
    writing.join()


def _packed(rows: int = 3000) -> bytes:
    lines = (json.dumps({"n": i * 7919 % 10007}) for i in range(rows))
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def test_unreadable_json_lines_raise_one_kind_of_error(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(_packed())
    assert len(list(files.read_json_lines(path))) == 3000
    whole = _packed()
    damaged = [whole[: len(whole) // 2], b"not gzip at all", b"", whole[:-4]]
    for at in range(12, len(whole) - 60, len(whole) // 40):  # damage somewhere in the stream
        damaged.append(whole[:at] + bytes(b ^ 0xFF for b in whole[at : at + 50]) + whole[at + 50 :])
    for data in damaged:
        path.write_bytes(data)
        if not data:
            assert list(files.read_json_lines(path)) == []
            continue
        with pytest.raises(RaggdError, match=r"x\.jsonl\.gz"):
            list(files.read_json_lines(path))
    with pytest.raises(RaggdError, match="cannot read"):
        list(files.read_json_lines(tmp_path / "absent.jsonl"))


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.file_hash(path) == known
    path.write_bytes(b"abd")
    assert files.file_hash(path) != known


def test_a_link_stays_one_and_a_pipe_is_written_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("deep/file.json")
    files.write_json(tmp_path / "link", [1])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "deep" / "file.json").read_text()) == [1]
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_text(tmp_path / "pipe", "hello")
        assert os.read(reader, 100) == b"hello"
    finally:
        os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "link", "pipe"]


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "own"))
    assert files.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("RAGGD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_folder() == tmp_path / "xdg" / "raggd"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # set to nothing is not set
    assert files.cache_folder() == tmp_path / ".cache" / "raggd"
    monkeypatch.setenv("RAGGD_CACHE", "~/own")  # as no shell has read it
    assert files.cache_folder() == tmp_path / "own"


def test_a_user_without_a_home_names_a_cache_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("RAGGD_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", homeless)
    with pytest.raises(RaggdError, match="name one by RAGGD_CACHE"):
        files.cache_folder()


def test_a_key_given_twice_is_found_in_linear_time() -> None:
    class Key(str):
        compared = 0

        def __eq__(self, other: object) -> bool:
            Key.compared += 1
            return str(self) == other

        __hash__ = str.__hash__

    pairs: list[tuple[str, Any]] = [(Key(n), 0) for n in [*range(999), 998]]
    with pytest.raises(ValueError, match='the key "998" occurs twice'):
        files.each_key_once(pairs)
    assert Key.compared < 10_000


LINE = {"question": "Où?", "answer": "à Zürich 🚲"}


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_are_read_in_the_encoding_of_their_mark(tmp_path: Path, coding: str) -> None:
    text = json.dumps(LINE, ensure_ascii=False) + "\n\n" + json.dumps(LINE) + "\n"
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    plain.write_bytes(text.encode(coding))
    packed.write_bytes(gzip.compress(text.encode(coding)))
    assert list(files.read_json_lines(plain)) == [(1, LINE), (3, LINE)]
    assert list(files.read_json_lines(packed)) == [(1, LINE), (3, LINE)]


def test_halves_of_pairs_are_replaced_and_whole_pairs_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ["x \\ud83d\\ude00", {"b\\udc00": "\\uD83C y"}]}\n')
    assert list(files.read_json_lines(path)) == [(1, {"a": ["x 😀", {"b\ufffd": "\ufffd y"}]})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": NaN}', "line 2: not JSON .*NaN"),
        ('{"a": -Infinity}', "line 2: not JSON .*-Infinity"),
        ('"text"', "line 2: expected one JSON object, found str"),
        ("[" * 100_000, "line 2: not JSON"),
        ('{"a": ' + "9" * 5000 + "}", "line 2: not JSON"),
        ('{"a": "\x00"}', "line 2: not JSON"),
    ],
)
def test_what_is_no_object_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    with pytest.raises(RaggdError, match=message):
        list(files.read_json_lines(path))


def test_bytes_of_no_encoding_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(RaggdError, match="line 1"):
        list(files.read_json_lines(path))


@pytest.mark.fuzz
@given(st.binary(max_size=60))
def test_any_bytes_are_lines_or_one_error(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.jsonl", "a.jsonl.gz"):
            path = Path(folder, name)
            path.write_bytes(data)
            with contextlib.suppress(RaggdError):
                list(files.read_json_lines(path))


def test_a_name_that_is_no_text_survives_in_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"file": "caf\udce9"})
    assert files.read_json(path, what="names") == {"file": "caf\udce9"}
