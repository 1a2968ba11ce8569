"""Made-up settings, folders and question files through the command line: one kind of error.

Requests to the server are in ``test_serving_schema.py``; `make fuzz` runs all with 10,000 cases.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fuzzing import cases
from raggd.data.documents import READERS
from raggd.data.questions import read_prepared, write_prepared
from raggd.files import read_json, write_json
from raggd.records import RaggdError
from raggd.serving.gate import read_keys
from raggd.settings import Settings, load_settings
from raggd.study.plan import load_study
from raggd.study.run import read_record
from workflow_fixtures import Ran, prepared_row, run_cli

pytestmark = pytest.mark.fuzz

SECTIONS = {
    name: list(field.annotation.model_fields)  # type: ignore[union-attr]
    for name, field in Settings.model_fields.items()
}
NAMES = st.sampled_from(
    [f"{section}.{name}" for section, names in SECTIONS.items() for name in names]
)
NUMBERS = (
    st.integers()
    | st.floats().map(repr)
    | st.sampled_from(["1e400", "9" * 5000, "0x" + "f" * 5000, "-0"])
)
WORDS = st.text(max_size=12) | st.sampled_from(["", "nq", "pocket", "hub", "dense", "a:b", "\0"])
VALUES = (
    NUMBERS.map(str)
    | WORDS
    | WORDS.map(json.dumps)
    | st.lists(WORDS, max_size=3).map(json.dumps)
    | st.sampled_from(["true", "[" * 3000, "{a = " * 900, "1979-05-27", "1979-02-30", "{}", "'''"])
)
ASSIGNED = st.tuples(NAMES, VALUES).map("=".join) | st.text(max_size=20)
HEADS = st.sampled_from(
    [*(f"[{name}]" for name in SECTIONS), "[[backbones]]", "[[retrievers]]", "[x]"]
)
LISTED = ("name", "model", "methods", "weights", "retriever", "seeds")
KEYS = st.sampled_from([*LISTED, *(name for names in SECTIONS.values() for name in names)])
LINES = HEADS | st.tuples(KEYS, VALUES).map(" = ".join) | st.text(max_size=20)
FILES = st.lists(LINES, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "replace"))
HEAD_OF_A_STUDY = b'[[backbones]]\nname = "a"\nmethods = ["base"]\n'


def held(settings: Settings) -> None:
    """What was accepted is written into records and comes back the same."""
    assert type(settings)(**json.loads(json.dumps(settings.model_dump()))) == settings


def ended_well(ran: Ran) -> None:
    assert ran.code in {0, 2}, ran.err
    if ran.code == 2:
        last = ran.err.removesuffix("\n").split("\n")[-1]
        assert last.startswith("raggd: "), ran.err
        assert last.isprintable()


@cases(100)
@given(st.lists(ASSIGNED, max_size=3))
@example(["target.learning_rate=inf"])
@example(["retrieval.top_k=" + "9" * 5000])
@example(["evaluation.seed=0x" + "f" * 5000])
@example(["data.folder=" + "[" * 3000])
@example(["data.folder=a\udce9"])
def test_any_assignment_is_a_setting_or_one_error(assigned: list[str]) -> None:
    with contextlib.suppress(RaggdError):
        held(load_settings(assignments=assigned))


@cases(100)
@given(st.binary(max_size=80) | FILES, st.booleans())
@example(b"\xef\xbb\xbf[retrieval]\ntop_k = 4\n", False)
@example("[retrieval]\ntop_k = 4\n".encode("utf-16"), False)
def test_any_settings_file_is_settings_or_one_error(data: bytes, study: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "settings.toml")
        path.write_bytes(HEAD_OF_A_STUDY * study + data)
        with contextlib.suppress(RaggdError):
            held(load_study(path) if study else load_settings(path))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    return tmp_path


@cases(20)
@given(data=FILES, assigned=st.lists(ASSIGNED, max_size=1))
def test_a_command_takes_any_settings_or_refuses_them(
    cache: Path, data: bytes, assigned: list[str]
) -> None:
    path = cache / "settings.toml"
    path.write_bytes(data)
    more = [f"--set={assignment}" for assignment in assigned]
    ended_well(run_cli("data", "list", "--settings", path, *more))
    path.write_bytes(HEAD_OF_A_STUDY + data)
    ended_well(run_cli("data", "list", "--settings", path, *more))


KINDS = [*READERS, ".bin", ""]
TEXTS = st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass"))
LEAVES = st.dictionaries(
    st.tuples(st.integers(0, 3), st.sampled_from(KINDS)).map(lambda pair: f"f{pair[0]}{pair[1]}"),
    st.binary(max_size=80) | TEXTS | st.just(b'{"id": "x", "contents": "Same id.\\nTwice."}\n'),
    max_size=4,
)


@cases(20)
@given(files=LEAVES, strict=st.booleans())
def test_any_folder_is_a_corpus_or_one_error(
    cache: Path, files: dict[str, bytes], strict: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        options = ["--json", *["--strict"] * strict]
        ran = run_cli("index", folder, *options)
        ended_well(ran)
        if ran.code == 2:
            return
        first = ran.json()
        named = {Path(each["file"]).name for each in first["skipped"]}
        assert named <= set(files)
        assert not (strict and named)
        assert first["passages"] >= 1
        again = run_cli("index", folder, *options).json()
        assert not again["built"]
        assert again["fingerprint"] == first["fingerprint"]


WRITTEN = {
    "rows.jsonl.gz": read_prepared,
    "record.json": read_record,
    "keys": read_keys,
    "plan.json": lambda path: read_json(path, what="the plan"),
}


def _whole(path: Path) -> bytes:
    if path.name == "rows.jsonl.gz":
        write_prepared(path, [prepared_row(number) for number in range(3)])
    elif path.name == "keys":
        path.write_text("alice k1\nshop k2\n")
    else:
        write_json(path, {"method": "base", "predictions": [{"answer": "Zoë"}]})
    return path.read_bytes()


@cases(20)
@given(
    name=st.sampled_from(sorted(WRITTEN)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), max_size=4),
    nested=st.booleans(),
)
def test_a_damaged_file_of_ours_is_read_or_one_error(
    tmp_path: Path, name: str, changes: list[tuple[float, bytes]], nested: bool
) -> None:
    path = tmp_path / name
    data = bytearray(_whole(path))
    for at, other in changes:
        start = int(at * len(data))
        data[start : start + len(other)] = other
    path.write_bytes(b"[" * 5000 if nested and not changes else data)
    with contextlib.suppress(RaggdError):
        WRITTEN[name](path)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        name: st.text(max_size=8) | JSON
        for name in ("id", "question", "answer", "golden_answers", "passages", "x")
    },
)
GOOD = st.just({"question": "Where?", "answer": "Turin"})
TABLES = st.lists(GOOD | ROWS, max_size=4).map(lambda rows: "\n".join(map(json.dumps, rows)))


@cases(20)
@given(data=st.binary(max_size=60) | TABLES.map(str.encode))
def test_any_file_of_demonstrations_is_kept_or_refused(cache: Path, data: bytes) -> None:
    corpus = cache / "corpus.txt"
    corpus.write_text("The pump is repaired in Turin. The valve is repaired in Ghent.")
    path = cache / "shown.jsonl"
    path.write_bytes(data)
    ran = run_cli("supports", "add", path, "--corpus", corpus, "--json")
    ended_well(ran)
    if ran.code == 0:
        name = ran.json()["id"]
        dumped = run_cli("supports", "dump", name)
        assert dumped.code == 0
        path.write_text(dumped.out, encoding="utf-8")
        assert run_cli("supports", "add", path, "--corpus", corpus, "--json").json()["id"] == name
