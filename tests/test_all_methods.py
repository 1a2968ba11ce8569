"""Every method by name: its weights made by commands, one evaluation of all, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import tiny
from raggd.adaptation.base_adapter import save_base
from raggd.adaptation.soft_prefix import SoftPrefix, load_prefix, save_prefix
from raggd.adaptation.targets import load_targets
from raggd.adaptation.training import plan_lessons
from raggd.api import Rag
from raggd.backbone.load import Backbone
from raggd.cli.ask import ask_result
from raggd.data.benchmarks import support_pool
from raggd.data.questions import write_prepared
from raggd.evaluation import runner
from raggd.files import read_json
from raggd.methods.examples import ExamplesPrefix
from raggd.methods.spec import (
    BASE_FILE,
    FAMILIES,
    FILES_OF,
    METHODS,
    NAMED,
    PROMPT_FILE,
    SPECS,
    TUNED_FILE,
    made_by,
)
from raggd.records import RaggdError, RunRecord
from raggd.retrieval.evidence import evidence_for, holds_answer
from raggd.settings import Settings, changed, load_settings
from raggd.study.evaluate import run_evaluate
from raggd.training import fits
from raggd.training import run as training
from raggd.training.stages import STAGES, run_stage
from workflow_fixtures import (
    files_under,
    parts_with,
    prepared_row,
    run_cli,
    save_backbone,
    settings_text,
    stage,
    write_data,
    write_lines,
)

RUN = "tiny/bm25/seed-0"


@dataclass(frozen=True)
class Trained:
    """A folder with all weights, and the records of what made them."""

    settings: Settings
    weights: Path
    store: Path
    prepared: str
    records: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def trained(
    frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Trained]:
    root = tmp_path_factory.mktemp("trained")
    weights, store = root / "weights", root / "targets"
    path = root / "settings.toml"
    text = settings_text(write_data(root / "data"), weights=str(weights))
    text += """
        [prompt_tuning]
        steps = 4
        batch = 2
        learning_rate = 0.1
        [hyper_tuning]
        steps = 4
        batch = 2
        learning_rate = 0.1
        [examples]
        steps = 4
        batch = 2
        learning_rate = 0.1
        natural = 0.0
    """
    path.write_text(text.replace("steps = 2\n", "steps = 2\nkeep = [1, 10]\n"), encoding="utf-8")
    settings = changed(load_settings(path), "evaluation", answer_loss=True)
    assert settings.target.keep == [1, 10]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        patch.setattr(fits, "compile_layers", lambda _: nullcontext())
        for name, value in {"GATE_SETS": 3, "PROBES": 2, "SCALES": (0.5, 2.0)}.items():
            patch.setattr(fits, name, value)
        parts = parts_with(settings, frozen_backbone)
        records = {"base": stage("base", parts, weights)}
        stage("targets", parts, store)
        for name in ("predictor", "predictor-k1", "predictor-k10"):
            stage(name, parts, weights, store)
        for name in ("prompt", "hyper", "tuned", "mean-tuned", "ridge", "gate", "task-mean"):
            records[name] = stage(name, parts, weights, store)
        prepared = root / "train.jsonl.gz"
        write_prepared(prepared, [prepared_row(i) for i in range(60)])
        named = changed(settings, "data", prepared=str(prepared))
        for name in ("examples", "examples-constant", "examples-update", "examples-both"):
            records[name] = stage(name, parts_with(named, frozen_backbone), weights)
        longer = changed(named, "training", max_tokens=1500)
        records["examples-whole"] = stage(
            "examples-whole", parts_with(longer, frozen_backbone), weights
        )
        patch.setattr(fits, "LESSONS", 20)
        records["refusals"] = stage("refusals", parts_with(named, frozen_backbone), weights)
        yield Trained(settings, weights, store, str(prepared), records)


@pytest.fixture(scope="module")
def scores(
    trained: Trained, frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, RunRecord]:
    """Records of all methods on one benchmark."""
    out = tmp_path_factory.mktemp("scores")
    run_evaluate(parts_with(trained.settings, frozen_backbone), METHODS, out)
    return {
        name: RunRecord.from_json((out / RUN / f"nq-{name}.json").read_text(encoding="utf-8"))
        for name in METHODS
    }


def test_the_table_of_methods_is_whole() -> None:
    assert set(SPECS) - set(METHODS) == {"rag-gd-made"}  # of `demonstrations compare`
    assert len({spec.label for spec in SPECS.values()}) == len(SPECS)
    looks = [(spec.family, spec.mark) for spec in SPECS.values()]
    assert len(set(looks)) == len(looks)
    assert {spec.family for spec in SPECS.values()} == set(FAMILIES)
    assert {other for _, other in NAMED} <= set(METHODS)


def test_every_file_that_a_method_reads_is_made_by_a_command() -> None:
    for file in {name for files in FILES_OF.values() for name in files}:
        assert made_by(file).removeprefix("raggd train ") in STAGES


def test_trainings_leave_records(trained: Trained) -> None:
    for name, record in trained.records.items():
        assert read_json(trained.weights / f"{name}.json", what="record") == record
    prefix = load_prefix(trained.weights / PROMPT_FILE)
    assert trained.records["prompt"]["fingerprint"] == prefix.fingerprint
    assert len(prefix.vectors) == 20
    assert trained.records["task-mean"]["sets"] == {"nq": 4, "triviaqa": 4}
    assert len(trained.records["hyper"]["loss"]) == len(trained.records["tuned"]["loss"]) == 4
    gate = trained.records["gate"]
    assert gate["trials"] == sum(gate["chosen"].values()) == 6
    assert set(gate["gain_by_task"]) == {"nq", "triviaqa"}
    assert set(gate["gain_by_noise"]) == {"0.0", "0.5", "1.0"}
    assert len(list((trained.weights / "trials").iterdir())) == 6


def test_every_method_answers_the_same_questions(scores: dict[str, RunRecord]) -> None:
    assert len(METHODS) == 33
    asked = {tuple(p.question_id for p in r.predictions) for r in scores.values()}
    drawn = {tuple(p.support_id for p in r.predictions) for r in scores.values()}
    assert len(asked) == len(drawn) == 1
    evidence = {n: [p.passage_ids for p in r.predictions] for n, r in scores.items()}
    for name, found in evidence.items():
        assert (found == evidence["base"]) == (name != "irrelevant-passages"), name
    for own, other in zip(evidence["base"], evidence["irrelevant-passages"], strict=True):
        assert not set(own) & set(other)


def test_no_two_methods_are_the_same(scores: dict[str, RunRecord]) -> None:
    losses = {n: tuple(p.answer_loss for p in r.predictions) for n, r in scores.items()}
    del losses["rag-gd-gated"]  # may be the base, or rag-gd-tuned
    for name in ("base-template", "examples-left"):  # these answers share no template
        del losses[name]
    same = [(a, b) for a in losses for b in losses if a < b and losses[a] == losses[b]]
    assert not same


def test_what_each_method_costs_and_is_made_of(scores: dict[str, RunRecord]) -> None:
    free = {n for n, record in scores.items() if record.cost["adapt_ms"] == 0}
    plain = {"query-only", "vanilla-rag", "base", "prompt-tuning"}
    assert free == plain | {"mean-update", "mean-tuned", "task-mean"}
    own = {n: {k: v for k, v in r.hashes.items() if k in {"base", "predictor", "prefix", "scale"}}
           for n, r in scores.items()}  # fmt: skip
    assert own["vanilla-few-shot"] == own["vanilla-rag"] == {}
    assert own["base-few-shot"] == own["base"] == own["tt-sgd-k10"] == {"base": own["base"]["base"]}
    assert set(own["prompt-tuning"]) == {"prefix"}
    trained_apart = (
        "rag-gd", "rag-gd-k1", "rag-gd-k10", "rag-gd-tuned", "hyper-tuning", "mean-update",
        "mean-tuned", "task-mean", "rag-gd-ridge",
    )  # fmt: skip
    predictors = {own[n]["predictor"] for n in trained_apart}
    assert len(predictors) == 9
    assert own["shuffled-support"] == own["irrelevant-passages"] == own["rag-gd"]
    assert own["rag-gd-step"] == own["rag-gd"]
    assert own["rag-gd-gated"]["predictor"].startswith(own["rag-gd-tuned"]["predictor"] + "-")
    assert own["rag-gd-x0.5"] == own["rag-gd"] | {"scale": "0.5"}


def test_a_second_run_computes_nothing(
    trained: Trained,
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = parts_with(trained.settings, tiny_backbone)
    names = ["shuffled-support", "irrelevant-passages", "vanilla-few-shot", "rag-gd-x2"]
    first, _ = run_evaluate(parts, names, tmp_path)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("this was to come from a part file")

    monkeypatch.setattr(runner, "answer_rows", never)
    assert run_evaluate(parts, names, tmp_path)[0] == first
    other = changed(trained.settings, "evaluation", seed=1)
    with pytest.raises(AssertionError, match="part file"):
        run_evaluate(parts_with(other, tiny_backbone), names, tmp_path)


NEEDS = {
    "base-few-shot": BASE_FILE,
    "prompt-tuning": PROMPT_FILE,
    "hyper-tuning": "hyper.safetensors",
    "task-mean": "task-mean.safetensors",
    "rag-gd": "predictor.safetensors",
    "rag-gd-k1": "predictor-k1.safetensors",
    "rag-gd-k10": "predictor-k10.safetensors",
    "shuffled-support": "predictor.safetensors",
    "rag-gd-ridge": "ridge.safetensors",
    "rag-gd-tuned": TUNED_FILE,
    "rag-gd-gated": "gate.safetensors",
    "mean-update": "mean.safetensors",
    "examples": "examples.safetensors",
    "examples-update": "examples-update.safetensors",
}


@pytest.mark.parametrize("name", NEEDS)
def test_missing_weights_are_named_with_the_command_that_makes_them(
    name: str, trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    for path in trained.weights.glob("*.safetensors"):
        if path.name != NEEDS[name]:
            (tmp_path / path.name).symlink_to(path)
    settings = changed(trained.settings, "adapter", weights=str(tmp_path))
    with pytest.raises(RaggdError, match="no weight file at") as refused:
        parts_with(settings, tiny_backbone).method(name)
    assert str(tmp_path / NEEDS[name]) in str(refused.value)
    assert f"`{made_by(NEEDS[name])}`" in str(refused.value)
    steps = "raggd train predictor-k1`" in str(refused.value)
    assert steps == (name == "rag-gd-k1")


@pytest.mark.parametrize("name", ["hyper-tuning", "task-mean", "rag-gd-x2", "irrelevant-passages"])
def test_weights_of_another_base_are_refused(
    name: str, trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    other = tiny.random_base(tiny_backbone, seed=7)
    for path in trained.weights.glob("*.safetensors"):
        if path.name != BASE_FILE:
            (tmp_path / path.name).symlink_to(path)
    save_base(tmp_path / BASE_FILE, other)
    settings = changed(trained.settings, "adapter", weights=str(tmp_path))
    with pytest.raises(RaggdError) as refused:
        parts_with(settings, tiny_backbone).method(name)
    assert other.fingerprint in str(refused.value)
    assert trained.records["base"]["fingerprint"] in str(refused.value)


def test_a_prefix_of_another_backbone_is_refused(
    trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    vectors = load_prefix(trained.weights / PROMPT_FILE).vectors
    save_prefix(tmp_path / PROMPT_FILE, SoftPrefix(vectors, "another"))
    settings = changed(trained.settings, "adapter", weights=str(tmp_path))
    with pytest.raises(RaggdError, match="made for backbone another"):
        parts_with(settings, tiny_backbone).method("prompt-tuning")


def test_lessons_can_be_held_to_what_the_passages_answer(
    trained: Trained, frozen_backbone: Backbone
) -> None:
    noisy = changed(trained.settings, "retrieval", noise=0.5)
    targets = load_targets(trained.store)
    asked = {}
    for only in (False, True):
        parts = parts_with(changed(noisy, "training", answerable_only=only), frozen_backbone)
        run = training.Run(parts, Path())
        lessons = plan_lessons(
            targets,
            {name: run.answerable(name, holds_answer) for name in set(targets.tasks)},
            parts.settings.hyper_tuning.model_copy(update={"steps": 20}),
        )
        questions = {question.id: question for _, question in lessons}
        evidence = evidence_for(list(questions.values()), parts.retriever, 2)
        held = map(holds_answer, questions.values(), evidence)
        asked[only] = dict(zip(questions, held, strict=True))
    assert False in asked[False].values()
    assert set(asked[True].values()) == {True}


def test_a_task_without_targets_is_named(
    trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    settings = changed(trained.settings, "evaluation", benchmarks=["popqa"], questions=3)
    with pytest.raises(RaggdError, match=r"task 'popqa' has no mean update, only nq, triviaqa"):
        run_evaluate(parts_with(settings, tiny_backbone), ["task-mean"], tmp_path)


def test_targets_of_a_support_pool_are_for_controls_and_never_trained_on(
    trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    settings = changed(trained.settings, "target", benchmarks=["popqa"], per_benchmark=3)
    settings = changed(settings, "evaluation", benchmarks=["popqa", "nq"], questions=3)
    parts = parts_with(settings, tiny_backbone)
    pool = tmp_path / "pool"
    with pytest.raises(RaggdError, match="'popqa' is held out"):
        stage("targets", parts, pool)
    assert stage("targets", parts, pool, pool=True)["sets"] == 3
    names = {q.id for q in support_pool(settings.data.folder, "popqa")}
    assert {n for row in load_targets(pool).demonstration_ids for n in row} <= names
    for name in ("predictor", "hyper"):
        with pytest.raises(RaggdError, match="targets of popqa, which nothing may be trained on"):
            stage(name, parts, tmp_path / "out", pool)
    weights = tmp_path / "weights"
    save_base(weights / BASE_FILE, parts.base)
    run = training.Run(parts, weights, (trained.store, pool))
    record = run_stage("task-mean", run)
    assert record["sets"] == {"nq": 4, "popqa": 3, "triviaqa": 4}
    settings = changed(settings, "adapter", weights=str(weights))
    result, _ = run_evaluate(
        parts_with(settings, tiny_backbone), ["base", "task-mean"], tmp_path / "scores"
    )
    assert list(result["methods"]) == ["base", "task-mean"]
    assert result["answer_loss"]["base"] != result["answer_loss"]["task-mean"]


def test_unknown_names_get_the_nearest(trained: Trained, tiny_backbone: Backbone) -> None:
    parts = parts_with(trained.settings, tiny_backbone)
    for wrong, near in (("few-shot-base", "base-few-shot"), ("hypertuning", "hyper-tuning"),
                        ("tt-sgd-k2", "tt-sgd-k1"), ("rag-gd-x3", "rag-gd-x2")):  # fmt: skip
        with pytest.raises(RaggdError, match=f"did you mean '{near}'"):
            parts.method(wrong)


def test_controls_of_an_evaluation_are_not_asked(
    trained: Trained, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    lines = [{"question": "what eats honey ?", "answer": "bee"}] * 2
    shown = write_lines(tmp_path / "shown.jsonl", lines)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "a.md").write_text("The red city lies near Lima.\n", encoding="utf-8")
    settings = changed(trained.settings, "data", corpus=str(documents))
    rag, question = Rag(parts_with(settings, tiny_backbone)), "what lies near the red city ?"
    for name in ("shuffled-support", "irrelevant-passages"):
        with pytest.raises(RaggdError, match="control of `raggd evaluate`"):
            ask_result(rag, question, (shown, None, None), name)
    found = ask_result(rag, question, (shown, None, None), "base-few-shot")
    assert (found["demonstrations"], found["adapted"]) == (2, False)
    with pytest.raises(RaggdError, match="'vanilla-few-shot' adapts from demonstrations"):
        ask_result(rag, question, method="vanilla-few-shot")


def test_the_commands(
    trained: Trained,
    frozen_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fits, "compile_layers", lambda _: nullcontext())
    settings = tmp_path / "settings.toml"
    backbone = save_backbone(frozen_backbone, tmp_path / "backbone")
    data, out = Path(trained.settings.data.folder), tmp_path / "out"
    settings.write_text(settings_text(data, str(backbone), str(trained.weights)), encoding="utf-8")
    shared = ("--settings", settings, "--out", out, "--json")
    ran = run_cli("train", "prompt", *shared, "--set", "prompt_tuning.steps=2")
    assert ran.json()["parameters"] == 20 * 32
    ran = run_cli(
        "train", "hyper", *shared, "--store", trained.store, "--set", "hyper_tuning.steps=2"
    )
    assert ran.json()["sets"] == trained.records["hyper"]["sets"]
    assert "loss" not in ran.json()
    ran = run_cli("train", "task-mean", *shared, "--store", trained.store)
    assert ran.json()["sets"] == {"nq": 4, "triviaqa": 4}
    assert {PROMPT_FILE, "hyper.safetensors", "task-mean.safetensors"} <= set(files_under(out))
    twice = ("--store", trained.store, "--store", trained.store)
    assert run_cli("train", "task-mean", *shared, *twice).json()["sets"]["nq"] == 8


def test_the_rule_for_refusals_is_of_the_step_it_was_fitted_to(
    trained: Trained, frozen_backbone: Backbone, tmp_path: Path
) -> None:
    record = trained.records["refusals"]
    assert record["lessons"] == 20
    assert 0 <= record["wrongly"] <= 1
    parts = parts_with(trained.settings, frozen_backbone)
    method = parts.method("examples")
    assert isinstance(method, ExamplesPrefix)
    assert method.rule is not None
    assert parts.method("examples-left").rule is None  # type: ignore[attr-defined]
    for path in trained.weights.glob("*.safetensors"):
        name = "examples.safetensors" if path.stem == "examples-constant" else path.name
        if path.name != "examples.safetensors":
            (tmp_path / name).symlink_to(path)
    other = changed(trained.settings, "adapter", weights=str(tmp_path))
    with pytest.raises(RaggdError, match="make it again with `raggd train refusals`"):
        parts_with(other, frozen_backbone).method("examples")


def test_without_a_step_the_rule_for_refusals_is_of_the_base(
    trained: Trained, frozen_backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "base.safetensors").symlink_to(trained.weights / "base.safetensors")
    named = changed(trained.settings, "data", prepared=trained.prepared)
    own = parts_with(changed(named, "adapter", weights=str(tmp_path)), frozen_backbone)
    assert own.method("base-examples").rule is None  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fits, "LESSONS", 20)
        record = stage("refusals", own, tmp_path)
    assert (record["method"], set(record["hashes"])) == (
        "base-examples", {"base.safetensors", "refusals.safetensors"},
    )  # fmt: skip
    assert own.adapting == "base-examples"
    assert own.method("base-examples").rule is not None  # type: ignore[attr-defined]
    assert own.method("base-template").rule is None  # type: ignore[attr-defined]
    assert own.method("vanilla-examples").rule is None  # type: ignore[attr-defined]
    beside = parts_with(trained.settings, frozen_backbone).method("base-examples")
    assert beside.rule is None, "there it is of the step"  # type: ignore[attr-defined]
