"""The seven sets: layout, splits, the held-out rule, pools; and a hub served over real HTTP."""

import gzip
import hashlib
import io
import json
import os
import random
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raggd.data import benchmarks as b
from raggd.data.benchmarks import HUB_CORPUS, HUB_REPOSITORY, find_corpus
from raggd.data.questions import QuestionWarning
from raggd.records import Question, RaggdError

Row = dict[str, object]


def rows(split: str, n: int) -> list[Row]:
    return [
        {"id": f"{split}_{i}", "question": f"Who is {split} {i}?", "golden_answers": [f"A{i}"]}
        for i in range(n)
    ]


def write(folder: Path, name: str, split: str, values: list[Row], packed: bool = False) -> Path:
    path = folder / name / f"{split}.jsonl{'.gz' if packed else ''}"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps(value) + "\n" for value in values).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with the splits that FlashRAG publishes."""
    for name in ("nq", "triviaqa"):
        for split in b.SPLITS:
            write(tmp_path, name, split, rows(split, 5))
    for name in ("hotpotqa", "2wikimultihopqa", "musique"):
        for split in ("train", "dev"):
            write(tmp_path, name, split, rows(split, 5))
    write(tmp_path, "popqa", "test", rows("test", 300))
    write(tmp_path, "bamboogle", "test", rows("test", 40))
    return tmp_path


def test_the_seven_sets_and_the_held_out_two() -> None:
    assert list(b.BENCHMARKS) == [
        "nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle",
    ]  # fmt: skip
    assert {"popqa", "bamboogle"} == b.HELD_OUT


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "qa"])
def test_local_layouts(tmp_path: Path, packed: bool, below: str) -> None:
    write(tmp_path / below, "nq", "test", rows("test", 2), packed)
    questions = b.load_questions(tmp_path, "nq", "test")
    assert [(q.id, q.text, q.answers, q.task) for q in questions] == [
        ("nq:test_0", "Who is test 0?", ("A0",), "nq"),
        ("nq:test_1", "Who is test 1?", ("A1",), "nq"),
    ]


def test_ids_that_name_their_task_stay(tmp_path: Path) -> None:
    write(
        tmp_path,
        "nq",
        "test",
        [{"id": "nq:7", "question": "Q?", "golden_answers": [" A ", "A", ""]}],
    )
    (question,) = b.load_questions(str(tmp_path), "nq", "test")
    assert (question.id, question.answers) == ("nq:7", ("A",))


SPELLED = list(dict.fromkeys("['Huey Smith']"))


def test_letters_of_a_split_list_are_no_answers(tmp_path: Path) -> None:
    whole = ["Huey Smith", "Huey 'Piano' Smith"]
    values: list[Row] = [
        {"id": "split", "question": "Q?", "golden_answers": [*SPELLED, *whole]},
        {"id": "short", "question": "Q?", "golden_answers": ["5", "five"]},
        {"id": "bracket", "question": "Q?", "golden_answers": ["[", "square bracket"]},
    ]
    write(tmp_path, "nq", "test", values)
    assert {q.id: q.answers for q in b.load_questions(tmp_path, "nq", "test")} == {
        "nq:split": tuple(whole), "nq:short": ("5", "five"), "nq:bracket": ("[", "square bracket"),
    }  # fmt: skip


def test_a_question_with_nothing_but_letters_is_left_out_and_counted(tmp_path: Path) -> None:
    lost: Row = {"id": "lost", "question": "Q?", "golden_answers": SPELLED}
    write(tmp_path, "nq", "test", [*rows("test", 2), lost])
    with pytest.warns(QuestionWarning, match=r"test.jsonl: .* single letters: 1\."):
        found = b.load_questions(tmp_path, "nq", "test")
    assert [q.id for q in found] == ["nq:test_0", "nq:test_1"]
    write(tmp_path, "nq", "test", [lost])
    with pytest.raises(RaggdError, match="holds no question"):
        b.load_questions(tmp_path, "nq", "test")


@pytest.mark.parametrize("name", ["popqa", "bamboogle"])
def test_held_out_sets_refuse_training(published: Path, name: str) -> None:
    write(published, name, "train", rows("train", 20))
    with pytest.raises(RaggdError, match=f"'{name}' is held out"):
        b.training_questions(published, name)
    assert len(b.support_pool(published, name)) == 20


def test_training_questions_are_the_train_split(published: Path) -> None:
    for name in b.BENCHMARKS:
        if name not in b.HELD_OUT:
            found = b.training_questions(published, name)
            assert {q.id for q in found} == {f"{name}:train_{i}" for i in range(5)}


def test_scored_is_test_where_present_else_dev(published: Path) -> None:
    assert b.scored_questions(published, "nq")[0].id == "nq:test_0"
    assert b.scored_questions(published, "musique")[0].id == "musique:dev_0"
    write(published, "musique", "test", rows("test", 3))
    assert b.scored_questions(published, "musique")[0].id == "musique:test_0"


@pytest.mark.parametrize("name", list(b.BENCHMARKS))
def test_pool_and_scored_are_disjoint_and_ignore_the_order_of_the_file(
    published: Path, name: str
) -> None:
    pool, scored = b.support_pool(published, name), b.scored_questions(published, name)
    assert pool
    assert scored
    assert not {q.id for q in pool} & {q.id for q in scored}
    assert not {q.text for q in pool} & {q.text for q in scored}
    for path in sorted((published / name).iterdir()):
        before = path.read_text()
        lines = before.splitlines(keepends=True)
        random.Random(3).shuffle(lines)
        path.write_text("".join(lines))
        assert path.read_text() != before
    assert b.support_pool(published, name) == pool
    assert b.scored_questions(published, name) == scored


def test_the_pool_is_a_tenth_but_at_least_twelve(published: Path) -> None:
    assert len(b.support_pool(published, "popqa")) == 30
    assert len(b.scored_questions(published, "popqa")) == 270
    assert len(b.support_pool(published, "bamboogle")) == 12
    assert len(b.scored_questions(published, "bamboogle")) == 28


def test_with_a_train_file_a_held_out_set_scores_all_of_test(published: Path) -> None:
    write(published, "popqa", "train", rows("train", 20))
    assert len(b.scored_questions(published, "popqa")) == 300


def test_a_twin_of_a_pool_question_is_not_scored(tmp_path: Path) -> None:
    values = rows("test", 40)
    write(tmp_path, "bamboogle", "test", values)
    shown = b.support_pool(tmp_path, "bamboogle")[0]
    twin: Row = {"id": "twin", "question": shown.text.upper(), "golden_answers": ["A"]}
    write(tmp_path, "bamboogle", "test", [*values, twin])
    parts = b.support_pool(tmp_path, "bamboogle"), b.scored_questions(tmp_path, "bamboogle")
    assert shown in parts[0]
    assert "bamboogle:twin" not in {q.id for q in parts[1]}


def test_too_few_questions_to_divide(tmp_path: Path) -> None:
    write(tmp_path, "bamboogle", "test", rows("test", 12))
    with pytest.raises(RaggdError, match="more than 12"):
        b.scored_questions(tmp_path, "bamboogle")


@given(
    st.sets(st.text(max_size=5), max_size=30), st.integers(0, 40), st.integers(0, 5), st.randoms()
)
def test_choosing_by_hash(items: set[str], n: int, seed: int, rng: random.Random) -> None:
    order = [Question(item, "?") for item in sorted(items)]
    chosen = b.choose_by_hash(order, n, seed)
    rng.shuffle(order)
    assert b.choose_by_hash(order, n, seed) == chosen
    assert len(chosen) == min(n, len(items))
    assert b.choose_by_hash(order, n + 1, seed)[:n] == chosen


def test_another_seed_chooses_others() -> None:
    items = [Question(str(i), "?") for i in range(1000)]
    first, second = (set(b.choose_by_hash(items, 100, seed)) for seed in (0, 1))
    assert 0 < len(first & second) < 40


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"id": "x", "question": "Q?"}, 'line 2: no "golden_answers"'),
        ({"id": "x", "question": "  ", "golden_answers": ["A"]}, "line 2: question 'x' is empty"),
        (
            {"id": "x", "question": "Q?", "golden_answers": ["", " "]},
            "line 2: question 'x' has no answer",
        ),
        ({"id": "test_0", "question": "Q?", "golden_answers": ["A"]}, "line 2: the id 'nq:test_0'"),
    ],
)
def test_bad_questions_are_named(tmp_path: Path, value: Row, message: str) -> None:
    write(tmp_path, "nq", "test", [*rows("test", 1), value])
    with pytest.raises(RaggdError, match=message):
        b.load_questions(tmp_path, "nq", "test")


def test_missing_things_are_named(tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="did you mean 'nq'"):
        b.load_questions(tmp_path, "NQ", "test")
    with pytest.raises(RaggdError, match="did you mean 'popqa'"):
        b.scored_questions(tmp_path, "popqq")
    with pytest.raises(RaggdError, match="unknown split 'tets': did you mean 'test'"):
        b.load_questions(tmp_path, "nq", "tets")
    with pytest.raises(RaggdError, match="no split 'train'"):
        b.support_pool(tmp_path, "nq")
    with pytest.raises(RaggdError, match="no split 'test' or 'dev'"):
        b.scored_questions(tmp_path, "nq")
    with pytest.raises(RaggdError, match="no data folder"):
        b.scored_questions(tmp_path / "absent", "nq")
    write(tmp_path, "nq", "test", [])
    with pytest.raises(RaggdError, match="no question"):
        b.scored_questions(tmp_path, "nq")


def test_listing_and_hashing(published: Path) -> None:
    write(published / "qa", "ours", "test", rows("test", 40))
    found = b.files_in(published)
    assert list(found) == [*b.BENCHMARKS, "ours"]
    assert list(found["nq"]) == ["train", "dev", "test"]
    assert list(found["bamboogle"]) == list(found["ours"]) == ["test"]
    assert b.files_in(b.HUB) == {name: {} for name in b.BENCHMARKS}
    train, test = (b.load_questions(published, "nq", split) for split in ("train", "test"))
    assert b.questions_hash(train) != b.questions_hash(test)
    assert b.questions_hash(train) == b.questions_hash(iter(train))


def test_the_shared_data() -> None:
    folder = Path(os.environ.get("RAGGD_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no shared data: set RAGGD_DATA to the folder that holds corpus/ and qa/")
    sizes = {n: len(b.scored_questions(folder, n)) for n in b.BENCHMARKS}
    assert sizes == {
        "nq": 1475, "triviaqa": 350, "popqa": 444, "hotpotqa": 627, "2wikimultihopqa": 410,
        "musique": 265, "bamboogle": 113,
    }  # fmt: skip
    assert len(b.support_pool(folder, "popqa")) == 554
    assert find_corpus(folder) == folder / "corpus"


class _Hub(BaseHTTPRequestHandler):
    """Answers like the hub does: HEAD and GET of one commit, 404 with the hub's error code."""

    root: Path
    asked: list[str]

    def _find(self) -> bytes | None:
        start = f"/datasets/{HUB_REPOSITORY}/resolve/main/"
        path = self.root / self.path.removeprefix(start)
        self.asked.append(f"{self.command} {self.path}")
        return path.read_bytes() if self.path.startswith(start) and path.is_file() else None

    def _answer(self, with_body: bool) -> None:
        body = self._find()
        self.send_response(404 if body is None else 200)
        if body is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        else:
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(
    published: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[type[_Hub]]:
    """The published layout behind a local HTTP server that HF_ENDPOINT names."""
    handler = type("Handler", (_Hub,), {"root": published, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    use_endpoint(
        monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path_factory.mktemp("hub")
    )
    yield handler
    server.shutdown()
    server.server_close()


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("RAGGD_CACHE", str(cache / "raggd"))


def test_the_hub_gives_what_the_folder_gives(hub: type[_Hub], published: Path) -> None:
    for name in b.BENCHMARKS:
        assert b.scored_questions("hub", name) == b.scored_questions(published, name)
        assert b.support_pool("hub", name) == b.support_pool(published, name)
    assert hub.asked


def test_the_hub_sends_a_file_once(hub: type[_Hub]) -> None:
    first, second = (b.load_questions("hub", "nq", "test") for _ in range(2))
    assert first == second
    sent = [entry for entry in hub.asked if entry.startswith("GET") and "nq/test" in entry]
    assert len(sent) == 1


def test_a_missing_split_on_the_hub(hub: type[_Hub]) -> None:
    with pytest.raises(RaggdError, match="no split 'test' in hub"):
        b.load_questions("hub", "musique", "test")
    with pytest.raises(RaggdError, match="held out"):
        b.training_questions("hub", "popqa")
    assert hub.asked


def test_the_hubs_corpus_is_unpacked_once(hub: type[_Hub]) -> None:
    archive = hub.root / HUB_CORPUS
    with pytest.raises(RaggdError, match="has no retrieval-corpus"):
        find_corpus("hub")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as out:
        out.writestr("wiki18_100w.jsonl", '{"id": "0", "contents": "T\\nx"}\n')
    archive.parent.mkdir()
    archive.write_bytes(packed.getvalue())
    path = find_corpus("hub")
    assert path.read_text() == '{"id": "0", "contents": "T\\nx"}\n'
    asked = len(hub.asked)
    assert find_corpus("hub") == path
    assert len(hub.asked) == asked


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, "http://127.0.0.1:9", tmp_path)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the hub's client waits and retries
    with pytest.raises(RaggdError, match=r"cannot fetch nq/test\.jsonl.*network.*local folder"):
        b.load_questions("hub", "nq", "test")
