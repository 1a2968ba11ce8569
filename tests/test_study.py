"""A study on a tiny backbone: complete, resumable anywhere, the same questions for every method."""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from raggd import assembly
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.evaluation import runner
from raggd.methods import spec as weights_files
from raggd.methods.spec import REFUSALS_FILE
from raggd.records import RaggdError, RunRecord
from raggd.study import evaluate, plan
from raggd.study.dry_run import status_of
from raggd.study.plan import Cell, Identities, StudySettings, all_cells, load_study
from raggd.study.run import LOCK_FILE, StudyRunner, in_order, locked
from study_fixtures import ALL, Quiet, World, lasting, make_world, read_records, write_weights
from workflow_fixtures import files_under, run_cli

CELLS = 2 * 2 * len(ALL)
"""Of the usual study: two retrievers, two benchmarks."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def world(
    cache: None, frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> World:
    return make_world(frozen_backbone, tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual study, run without interruption."""
    out = tmp_path_factory.mktemp("whole")
    found = StudyRunner(load_study(world.study()), out, Quiet()).run()
    assert found == {"cells": CELLS, "complete": CELLS, "now": CELLS}
    return out


def test_every_cell_has_its_record_and_the_same_questions(whole: Path) -> None:
    records = read_records(whole)
    assert len(records) == CELLS
    for benchmark in ("nq", "popqa"):
        for retriever in ("bm25", "again"):
            run = [r for name, r in records.items() if f"/{retriever}/" in name]
            run = [r for r in run if r.benchmark == benchmark]
            assert {r.method for r in run} == set(ALL)
            for part in ("question_id", "passage_ids", "support_id"):
                seen = {tuple(getattr(p, part) for p in r.predictions) for r in run}
                assert len(seen) == 1, part
    answers = {tuple(p.answer for p in r.predictions) for r in records.values()}
    assert len(answers) > 4, "methods and benchmarks are told apart"
    assert all(p.answer_loss is not None for r in records.values() for p in r.predictions)
    work = {r.method: r.cost["adapt_flops"] for r in records.values()}
    assert work["base"] == work["mean-update"] == 0 < work["rag-gd"] < work["tt-sgd"]
    assert all(r.cost["answer_flops"] > 0 for r in records.values())


def test_a_cell_passes_five_functions_on_its_way_to_the_model(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[list[str]] = []
    original = runner.answer_rows

    def answer_rows(*arguments: Any, **named: Any) -> Any:
        ours = str(Path(runner.__file__).parents[1])  # the package, wherever it lies
        stack = [f.function for f in inspect.stack(0) if f.filename.startswith(ours)]
        ways.append(["answer_rows", *stack[: stack.index("run") + 1]])
        return original(*arguments, **named)

    monkeypatch.setattr(runner, "answer_rows", answer_rows)
    file = world.study(("base",), name="way", benchmarks=("nq",), retrievers=("bm25",))
    StudyRunner(load_study(file), tmp_path, Quiet()).run()
    assert ways
    assert max(map(len, ways)) <= 5


def test_all_methods_of_a_run_are_judged_by_its_own_evidence(world: World, tmp_path: Path) -> None:
    file = world.study(("query-only", "base"), name="evidence", benchmarks=("nq",))
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"again"', '"again"\nnoise = 1.0'), encoding="utf-8")
    StudyRunner(load_study(file), tmp_path, Quiet()).run()
    records = read_records(tmp_path)
    held = {
        name: tuple(p.answerable for p in record.predictions) for name, record in records.items()
    }
    for retriever in ("bm25", "again"):
        run = f"tiny/{retriever}/seed-0/nq"
        assert held[f"{run}-query-only.json"] == held[f"{run}-base.json"]
    assert held["tiny/bm25/seed-0/nq-base.json"] != held["tiny/again/seed-0/nq-base.json"]


def test_a_second_run_does_nothing_and_loads_no_backbone(
    whole: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (whole / name).stat().st_mtime_ns for name in files_under(whole)}

    def refuse(*_: object) -> None:
        raise AssertionError("a backbone was loaded")

    monkeypatch.setattr(assembly.Assembly, "backbone", property(refuse))
    found = StudyRunner(load_study(world.study()), whole, Quiet()).run()
    assert found == {"cells": CELLS, "complete": CELLS, "now": 0}
    after = {name: (whole / name).stat().st_mtime_ns for name in files_under(whole)}
    del before[LOCK_FILE], after[LOCK_FILE]
    assert before == after


def test_status(whole: Path, world: World, tmp_path: Path) -> None:
    file = world.study()
    empty = run_cli("study", file, "--out", tmp_path / "none", "--status", "--json").json()
    assert (empty["cells"], empty["complete"], empty["questions"]) == (CELLS, 0, 0)
    assert not (tmp_path / "none").exists()
    full = run_cli("study", file, "--out", whole, "--status", "--json").json()
    assert (full["cells"], full["complete"]) == (CELLS, CELLS)
    assert full["questions"] == 6 * CELLS
    assert full["backbones"]["tiny"]["complete"] == CELLS
    assert full["parts"] == full["parts_planned"] == 2 * CELLS
    some = run_cli(
        "study", file, "--out", whole, "--status", "--json", "--methods", "base, rag-gd"
    ).json()
    assert some["cells"] == some["complete"] == 8
    copy = tmp_path / "copy"
    shutil.copytree(whole, copy)
    (copy / "tiny/bm25/seed-0/nq-base.json").unlink()
    (copy / "tiny/bm25/seed-0/nq-rag-gd.json").write_text("{", encoding="utf-8")
    assert (
        run_cli("study", file, "--out", copy, "--status", "--json").json()["complete"] == CELLS - 2
    )


def test_a_piece_now_and_the_rest_later_is_the_whole(
    whole: Path, world: World, tmp_path: Path
) -> None:
    study = load_study(world.study())
    piece = all_cells(study, retriever=["again"], method=["query-only", "rag-gd"])
    assert StudyRunner(study, tmp_path, Quiet()).run(piece)["now"] == 4
    assert len(read_records(tmp_path)) == 4
    StudyRunner(study, tmp_path, Quiet()).run()
    assert lasting(read_records(tmp_path)) == lasting(read_records(whole))


def test_new_methods_join_a_study_and_other_questions_are_refused(
    whole: Path, world: World, tmp_path: Path
) -> None:
    few = load_study(world.study(("base", "vanilla-rag"), name="few"))
    StudyRunner(few, tmp_path, Quiet()).run()
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("parts/*.json")}
    StudyRunner(load_study(world.study()), tmp_path, Quiet()).run()
    assert lasting(read_records(tmp_path)) == lasting(read_records(whole))
    assert (
        stamps.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("parts/*.json")}.items()
    )
    other = load_study(world.study(name="other", questions=4))
    with pytest.raises(RaggdError, match=r"another study: its evaluation\.questions is 6"):
        StudyRunner(other, tmp_path, Quiet()).run()


def test_changed_weights_are_noticed(
    world: World, tmp_path: Path, frozen_backbone: Backbone
) -> None:
    weights = write_weights(frozen_backbone, tmp_path / "weights")
    methods = ("vanilla-rag", "base", "rag-gd")
    study = load_study(world.study(methods, name="weights", weights=weights))
    out = tmp_path / "out"
    StudyRunner(study, out, Quiet()).run()
    before = lasting(read_records(out))
    write_weights(frozen_backbone, weights, seed=7)
    told = status_of(study, out, all_cells(study))
    assert (told["complete"], told["parts"]) == (4, 8), "draws under the old ones count no more"
    assert StudyRunner(study, out, Quiet()).run()["now"] == 8, "not vanilla RAG, which has none"
    after = lasting(read_records(out))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if "vanilla" not in name}


def test_a_support_set_for_every_question(world: World, tmp_path: Path) -> None:
    file = world.study(("base", "rag-gd"), name="query", retrievers=("bm25",), benchmarks=("nq",))
    changed = file.read_text(encoding="utf-8").replace("draws = 2", 'support = "query"')
    file.write_text(changed, encoding="utf-8")
    StudyRunner(load_study(file), tmp_path, Quiet()).run()
    for record in read_records(tmp_path).values():
        assert len({p.support_id for p in record.predictions}) == 6
    status = run_cli("study", file, "--out", tmp_path, "--status", "--json").json()
    assert (status["complete"], status["parts"], status["parts_planned"]) == (2, 2, 2)
    report = run_cli("report", tmp_path, "--resamples", "100", "--json").json()
    assert report["complete"] == 2


def test_early_parts_are_a_small_study(world: World) -> None:
    study = load_study(world.study(name="order", extra="seeds = [0, 1]"))
    order = [
        (cell.seed, draw, cell.retriever, cell.benchmark, cell.method)
        for draw, cell in in_order(study, all_cells(study))
    ]
    assert order == [
        (seed, draw, retriever, benchmark, method)
        for seed in (0, 1)
        for draw in (0, 1)
        for retriever in ("bm25", "again")
        for benchmark in ("nq", "popqa")
        for method in ALL
    ]


def test_progress_counts_all_questions(world: World, tmp_path: Path) -> None:
    progress = Quiet()
    study = load_study(world.study(("base", "rag-gd"), name="left", retrievers=("bm25",)))
    StudyRunner(study, tmp_path, progress).run()
    answers = [step for step in progress.steps if step[0].startswith("tiny, bm25, ")]
    done = [done for _, done, _ in answers]
    assert done == sorted(done)
    assert {total for *_, total in answers} == {done[-1]}


def test_a_cell_again_from_its_record(whole: Path, tmp_path: Path) -> None:
    record = whole / "tiny/bm25/seed-0/popqa-rag-gd.json"
    found = run_cli("replay", record, "--json").json()
    assert (found["questions"], found["same"], found["different"]) == (6, 6, [])
    assert found["changed"] == []
    assert (
        run_cli("replay", whole / "tiny/again/seed-0/nq-query-only.json", "--json").json()["same"]
        == 6
    )
    raw = json.loads(record.read_text(encoding="utf-8"))
    raw["predictions"][2]["answer"] = "something else"
    raw["hashes"]["predictor"] = "0" * 16
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(raw), encoding="utf-8")
    ran = run_cli("replay", forged)
    assert ran.code == 1
    assert "5 of 6 answers are the same" in ran.out
    assert "'something else' in the record" in ran.out
    assert f"changed predictor: {'0' * 16} in the record" in ran.out
    raw["settings"]["retrieval"]["ivf_from"] = 7  # once a setting, and of effect
    forged.write_text(json.dumps(raw), encoding="utf-8")
    assert "use the version that the record names" in run_cli("replay", forged).refusal()


def test_committed_records_can_be_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    # settings have gone since they were made: a replay has to know what each changed
    begun: list[StudySettings] = []

    def begin(study: StudySettings, *_: object) -> None:
        begun.append(study)
        raise InterruptedError  # its answers are compared in the test before

    monkeypatch.setattr(evaluate, "StudyRunner", begin)
    files = list((Path(__file__).parents[1] / "results").rglob("seed-*/*.json"))
    for file in files:
        record = RunRecord.from_json(file.read_text(encoding="utf-8"))
        with pytest.raises(InterruptedError):
            evaluate.replay(file, Quiet())
        assert begun[-1].backbones[0].methods == [record.method]
    assert len(begun) == len(files) > 500


def test_each_retriever_has_its_own_noise() -> None:
    study = load_study(Path(__file__).parents[1] / "studies" / "noise.toml")
    names = [retriever.name for retriever in study.retrievers]
    runs = [study.run_settings("smollm2", name, 1).retrieval for name in names]
    assert [run.noise for run in runs] == [0.0, 0.5, 1.0]
    assert {run.retriever for run in runs} == {"bm25"}


def test_two_studies_in_one_folder(world: World, tmp_path: Path) -> None:
    with locked(tmp_path):
        said = run_cli("study", world.study(), "--out", tmp_path).refusal()
    assert f"another study is running in {tmp_path} (process {os.getpid()})" in said
    tmp_path.mkdir(exist_ok=True)  # where nothing was made, nothing is left behind
    (tmp_path / LOCK_FILE).write_text("99999\n")  # of a process that is gone
    with locked(tmp_path):
        pass


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"methods": ("base", "rag-dg")},
            "unknown method of backbone 'tiny' 'rag-dg': did you mean 'rag-gd'?",
        ),
        ({"methods": ("base", "base")}, "method of backbone 'tiny' 'base' is listed twice"),
        ({"benchmarks": ("nq", "popqq")}, "unknown benchmark 'popqq': did you mean 'popqa'?"),
        ({"retrievers": ("bm25", "bm25")}, "retriever 'bm25' is listed twice"),
        ({"extra": "[evalution]\nseed = 1"}, "did you mean 'evaluation'"),
        (
            {"extra": "[adapter]\nweights = 'x'"},
            "'adapter.weights' does not belong in a study file",
        ),
        (
            {"extra": "[[backbones]]\nname = 'a/b'\nmethods = ['base']"},
            "setting 'backbones.0.name'",
        ),
        ({"extra": "[[backbones]]\nname = 'a'\nmehods = ['base']"}, "did you mean 'methods'"),
        ({"extra": "[[backbones]]\nname = 'a'"}, "has no 'backbones.0.methods'"),
    ],
)
def test_a_wrong_study_file_is_refused(world: World, change: dict[str, Any], said: str) -> None:
    file = world.study(**{"name": "wrong", **change})
    assert said in run_cli("study", file, "--status").refusal()


def test_weights_that_do_not_fit_are_refused_before_anything_runs(
    world: World, tmp_path: Path, frozen_backbone: Backbone
) -> None:
    weights = write_weights(frozen_backbone, tmp_path / "weights")
    other = write_weights(frozen_backbone, tmp_path / "other", seed=5)
    shutil.copy(other / weights_files.PREDICTOR_FILE, weights)
    (weights / weights_files.MEAN_FILE).unlink()
    out = tmp_path / "out"
    said = run_cli("study", world.study(name="unfit", weights=weights), "--out", out).refusal()
    assert "mean-update needs mean.safetensors" in said
    assert "was trained for base adapter" in said
    assert not list(out.rglob("*-base.json"))
    part = ("--methods", "vanilla-rag,base", "--benchmarks", "nq", "--retrievers", "bm25", "--json")
    assert (
        run_cli("study", world.study(name="unfit", weights=weights), "--out", out, *part).json()[
            "now"
        ]
        == 2
    )


def test_a_benchmark_without_a_support_pool_is_refused_at_once(
    world: World, tmp_path: Path
) -> None:
    file = world.study(("base", "rag-gd"), name="pool")
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("demonstrations = 2", "demonstrations = 999"), encoding="utf-8")
    said = run_cli("study", file, "--out", tmp_path / "out").refusal()
    assert "the support pool of nq holds" in said
    assert "the support pool of popqa holds" in said
    assert "fewer than target.demonstrations = 999" in said
    said = run_cli("study", file, "--set", "data.folder=none", "--out", tmp_path / "out").refusal()
    assert said.count("no data folder at none") == 1
    assert ".." not in said
    assert read_records(tmp_path / "out") == {}


def test_a_cell_that_cannot_be_computed_does_not_stop_the_others(
    world: World, tmp_path: Path
) -> None:
    # one question per draw leaves no other question whose passages could stand in
    file = world.study(("base", "irrelevant-passages"), name="few", questions=2)
    ran = run_cli("study", file, "--out", tmp_path)
    said = ran.refusal()
    assert "4 of 8 cells could not be computed, the others are there." in said
    assert "tiny/again/seed-0/popqa-irrelevant-passages: method 'irrelevant-passages' found" in said
    assert len(read_records(tmp_path)) == 4
    assert run_cli("study", file, "--out", tmp_path, "--status", "--json").json()["complete"] == 4


def test_evidence_that_holds_the_answer_is_noted(whole: Path) -> None:
    found = {p.answerable for r in read_records(whole).values() for p in r.predictions}
    assert True in found


def _writes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        _, mode, flags = arguments
        return bool(set(mode or "") & set("wa+")) or bool(flags & (os.O_WRONLY | os.O_RDWR))
    return event in {"os.rename", "os.remove"}


def _die_at(file: Path, out: Path, moment: int) -> None:
    """Run the study in a process that is killed at some change of the study's folder; 0: never."""
    left = iter(range(moment - 1))

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        ours = arguments and str(out) in str(arguments[0])
        if ours and _writes(event, arguments) and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    if moment:
        sys.addaudithook(watch)
    StudyRunner(load_study(file), out, Quiet()).run()


def test_killed_at_ten_random_moments_it_equals_the_uninterrupted_one(
    whole: Path, world: World, tmp_path: Path
) -> None:
    context = multiprocessing.get_context("forkserver")  # children start with the libraries loaded
    context.set_forkserver_preload(["raggd.study.run", "raggd.methods.predicted", "transformers"])
    draw = random.Random(4)
    moments = [draw.randint(4, 30) for _ in range(10)]
    file, seen = world.study(), []
    for moment in [*moments, 0]:
        process = context.Process(target=_die_at, args=(file, tmp_path, moment))
        process.start()
        process.join(timeout=300)
        assert process.exitcode == (-signal.SIGKILL if moment else 0)
        seen.append(len(list(tmp_path.rglob("parts/*.json"))))
    assert seen == sorted(seen)
    assert 3 < seen[9] < seen[10], "the kills fell into the work"
    assert lasting(read_records(tmp_path)) == lasting(read_records(whole))


def test_a_cell_says_where_it_lies() -> None:
    cell = Cell(3, "tiny", "dense", "nq", "query-only")
    assert cell.path == "tiny/dense/seed-3/nq-query-only.json"


def _identity(file: Path, *changes: str) -> str:
    study = load_study(file, list(changes))
    return Identities(study).of(all_cells(study)[0])


def test_a_cells_identity_follows_content_and_what_decides_answers(
    world: World, tmp_path: Path
) -> None:
    file = world.study(("base",), name="identity", retrievers=("bm25",), benchmarks=("nq",))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "a", "contents": "T\\nThe river is red."}\n', encoding="utf-8")
    named = f'data.corpus="{corpus}"'
    plain, own = _identity(file), _identity(file, named)
    assert own != plain
    assert _identity(file, named, "retrieval.memory=1GB") == own
    assert _identity(file, named, "evaluation.questions=5") != own
    assert _identity(file, named, "backbone.context_tokens=300") != own
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace("red", "sea"), encoding="utf-8")  # as long as before
    assert _identity(file, named) != own
    data = world.data / "qa" / "nq" / "test.jsonl"
    lines = data.read_text(encoding="utf-8")
    try:
        data.write_text(lines.replace("the", "The", 1), encoding="utf-8")
        assert _identity(file) != plain
    finally:
        data.write_text(lines, encoding="utf-8")
    assert _identity(file) == plain
    model = tmp_path / "model"
    shutil.copytree(world.model, model)
    trained = f'backbones=[{{name="a", model="{model}", methods=["vanilla-rag"]}}]'
    text = file.read_text(encoding="utf-8").replace("[backbone]", f"{trained}\n[backbone]", 1)
    file.write_text(text.partition("[[backbones]]")[0], encoding="utf-8")
    before = _identity(file)
    content = bytearray((model / "model.safetensors").read_bytes())
    content[-1] ^= 1  # trained on, in its place
    (model / "model.safetensors").write_bytes(content)
    assert _identity(file) != before
    embedded = [_identity(file, "data.folder=pocket", named) for _ in range(2)]
    assert embedded[0] == embedded[1]
    assert embedded[0] != _identity(file, "data.folder=pocket")


def test_an_identity_follows_all_that_examples_are_answered_with(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, list[str]] = {}
    for method in ("base", "base-examples"):
        file = world.study((method,), name=f"of-{method}", retrievers=("bm25",), benchmarks=("nq",))
        study = load_study(file)
        rule = Assembly(study.first()).weights / REFUSALS_FILE
        cell = all_cells(study)[0]
        assert not rule.exists()
        found[method] = [Identities(study).of(cell)]
        try:
            rule.write_bytes(b"a rule")
            found[method].append(Identities(study).of(cell))
        finally:
            rule.unlink()
        with monkeypatch.context() as patch:
            patch.setattr(plan, "READING", "another")
            found[method].append(Identities(study).of(cell))
    assert [len(set(ids)) for ids in found.values()] == [1, 3]


def test_the_committed_records_are_those_of_their_study() -> None:
    root = Path(__file__).parents[1]
    known = read_records(root / "results" / "small")
    study = load_study(root / "studies" / "small.toml")
    cells = {cell.path: cell for cell in all_cells(study)}
    assert set(known) == set(cells)
    assert len({record.hashes["cell"] for record in known.values()}) == len(cells)
