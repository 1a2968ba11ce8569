"""All stages in order: what is done is left out, a stopped one continues, others are refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raggd.adaptation.base_adapter import load_base
from raggd.assembly import Assembly
from raggd.backbone import load as load_module
from raggd.backbone.load import Backbone
from raggd.core.low_rank import load_update, stack_updates
from raggd.data.benchmarks import find_file, training_questions
from raggd.data.questions import Prepared, write_prepared
from raggd.files import load_tensors, read_json
from raggd.methods.spec import METHODS, SPECS, file_of
from raggd.progress import silent
from raggd.records import RaggdError
from raggd.retrieval.evidence import evidence_for
from raggd.settings import Settings, changed, load_settings
from raggd.training import fits, stages
from raggd.training.run import Run
from raggd.training.stages import (
    STAGES,
    USUAL,
    average,
    estimated,
    run_stage,
    seconds_per_example,
    train_all,
)
from tiny import make_backbone, random_base, random_update
from workflow_fixtures import files_under, parts_with, settings_text, write_data

OTHERS = """
        [hyper_tuning]
        steps = 3
        batch = 2
        learning_rate = 0.1
        [examples]
        steps = 2
        batch = 2
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("train-all")
    path = root / "settings.toml"
    path.write_text(settings_text(write_data(root / "data")) + OTHERS, encoding="utf-8")
    return load_settings(path)


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fits, "compile_layers", lambda _: nullcontext())


@pytest.fixture
def parts(settings: Settings, tiny_backbone: Backbone) -> Assembly:
    return parts_with(settings, tiny_backbone)


def same_weights(one: Path, other: Path) -> None:
    files = [name for name in files_under(one) if name.endswith(".safetensors")]
    assert files
    for name in files:
        if "checkpoint" in name:
            continue
        own, theirs = load_tensors(one / name)[0], load_tensors(other / name)[0]
        assert all(torch.equal(own[key], theirs[key]) for key in own), name


def test_from_nothing_to_weights(parts: Assembly, tmp_path: Path) -> None:
    told: list[str] = []
    labels: list[str] = []
    parts.progress = lambda label, *_: labels.append(label)
    result = train_all(parts, tmp_path, announce=told.append)
    assert tuple(result["stages"]) == USUAL == tuple(result["estimate"])
    assert len(told) == 1
    assert told[0].startswith("About ")
    assert "on this machine: base " in told[0]
    assert labels[0].startswith("1 of 7, base: ")
    assert labels[-1].startswith("7 of 7, refusals: ")
    assert {file_of(name) for name in USUAL if name != "targets"} <= set(files_under(tmp_path))
    record = read_json(tmp_path / "train.json", what="record")
    assert {key: record[key] for key in result} == result
    assert record["stages"]["predictor"]["hashes"].keys() == {
        "predictor.safetensors", "mean.safetensors",
    }  # fmt: skip
    tuned = read_json(tmp_path / "tuned.json", what="record")
    rate = tuned["settings"]["hyper_tuning"]["learning_rate"]
    assert (tuned["start"], rate) == ("predictor", pytest.approx(0.01))
    told.clear()
    again = train_all(parts, tmp_path, announce=told.append)
    assert again["stages"] == result["stages"], "nothing was made anew"
    assert (told, again["estimate"]) == ([], {})


def test_a_stage_stands_on_the_base_beside_it_where_none_ships(
    parts: Assembly, tmp_path: Path
) -> None:
    run = Run(parts.derived(changed(parts.settings, "adapter", weights="shipped")), tmp_path)
    refused = r"no weight file at .*base.safetensors: make it with `raggd train base`"
    with pytest.raises(RaggdError, match=refused):
        run_stage("examples", run)
    assert files_under(tmp_path) == []
    whole = replace(run, parts=parts.derived(changed(run.settings, "base_training", steps=0)))
    made = run_stage("base", whole)["fingerprint"]
    untrained = load_base(tmp_path / "base.safetensors")
    assert not any(factors.b.any() for factors in untrained.factors.values())
    taught = run_stage("examples", run)
    assert (taught["base"], untrained.fingerprint) == (made, made)
    assert load_update(tmp_path / "examples.safetensors").base == made
    own = parts.derived(changed(parts.settings, "adapter", weights=str(tmp_path)))
    # taught and answered under one instruction; a trained W0 needs to be told less
    assert taught["told"] is own.method("examples").told is True  # type: ignore[attr-defined]
    run_stage("base", Run(parts, tmp_path / "other"))
    assert run_stage("examples", Run(parts, tmp_path / "other"))["told"] is False


def test_what_stages_share_is_loaded_once(
    settings: Settings, tiny_backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[object] = []

    def load(*arguments: object) -> Backbone:
        loads.append(arguments)
        return tiny_backbone

    monkeypatch.setattr(load_module, "load_backbone", load)
    train_all(Assembly(settings), tmp_path, ("base", "targets"))
    assert len(loads) == 1


def test_an_interrupted_training_continues_to_the_same_weights(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("base", "targets", "predictor")
    train_all(parts, tmp_path / "whole", names)

    def stopping(label: str, done: int, total: int | None) -> None:
        if "targets" in label and done >= 3:
            raise KeyboardInterrupt

    parts.progress = stopping
    with pytest.raises(KeyboardInterrupt):
        train_all(parts, tmp_path / "cut", names)
    parts.progress = silent
    before = (tmp_path / "cut" / "base.safetensors").stat().st_mtime_ns
    left = train_all(parts, tmp_path / "cut", names)["estimate"]
    assert tuple(left) == ("targets", "predictor")
    assert (tmp_path / "cut" / "base.safetensors").stat().st_mtime_ns == before
    same_weights(tmp_path / "whole", tmp_path / "cut")


def test_weights_made_anew_are_told_from_those_that_others_were_made_with(
    parts: Assembly, tmp_path: Path
) -> None:
    names = ("base", "targets", "predictor")
    train_all(parts, tmp_path, names)
    path = tmp_path / "mean.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(RaggdError, match=r"predictor.json was made with another mean.safetensors"):
        train_all(parts, tmp_path, names)


def test_other_settings_are_refused_by_name(
    parts: Assembly, settings: Settings, tmp_path: Path
) -> None:
    train_all(parts, tmp_path, ["base", "targets"])
    before = files_under(tmp_path)
    other = parts_with(changed(settings, "base_training", steps=5), parts.backbone)
    with pytest.raises(RaggdError, match=r"base.json was made with base_training.steps = 4, now"):
        train_all(other, tmp_path, ["base"])
    with pytest.raises(RaggdError, match="unknown stage 'tuned2': did you mean 'tuned'"):
        train_all(parts, tmp_path, ["tuned2"])
    assert files_under(tmp_path) == before
    # what a stage does not depend on may change
    free = parts_with(changed(settings, "serving", rows=3), parts.backbone)
    assert train_all(free, tmp_path, ["base", "targets"])["estimate"] == {}
    (tmp_path / "base.json").unlink()
    (tmp_path / "base.checkpoint.safetensors").unlink()
    train_all(other, tmp_path, ["base"])
    with pytest.raises(RaggdError, match=r"targets.json was made for base adapter"):
        train_all(other, tmp_path, ["base", "targets"])


def test_a_stage_of_questions_that_changed_in_their_place_is_refused(
    tiny_backbone: Backbone, tmp_path: Path
) -> None:
    data, names = write_data(tmp_path / "data"), ("base", "targets")
    path = tmp_path / "settings.toml"
    path.write_text(settings_text(data) + OTHERS, encoding="utf-8")
    parts = parts_with(load_settings(path), tiny_backbone)
    train_all(parts, tmp_path / "out", names)
    assert train_all(parts, tmp_path / "out", names)["estimate"] == {}
    train = find_file(parts.source, parts.settings.base_training.benchmarks[0], "train")
    assert train is not None
    train.write_text("".join(train.read_text().splitlines(True)[:-1]))
    with pytest.raises(RaggdError, match=r"base.json was made of other questions than those that"):
        train_all(parts, tmp_path / "out", names)


def test_a_prepared_file_takes_the_place_of_the_index(
    parts: Assembly, settings: Settings, tmp_path: Path
) -> None:
    names = ("base", "targets", "predictor", "tuned")
    rows = []
    for task in ("nq", "triviaqa"):
        questions = training_questions(parts.source, task)
        for q, passages in zip(questions, evidence_for(questions, parts.retriever, 2), strict=True):
            rows.append(Prepared(q.id, task, q.text, q.answers, q.answers[0], passages, ()))
    write_prepared(tmp_path / "prepared.jsonl.gz", rows)
    named = changed(settings, "data", prepared=str(tmp_path / "prepared.jsonl.gz"), corpus="none")
    alone = parts_with(named, parts.backbone)
    train_all(alone, tmp_path / "prepared", names)
    assert not {"index", "retriever"} & set(vars(alone)), "no index was opened"
    train_all(parts, tmp_path / "index", names)
    same_weights(tmp_path / "index", tmp_path / "prepared")
    missing = changed(named, "base_training", benchmarks=["hotpotqa"])
    with pytest.raises(RaggdError, match=r"holds no question of 'hotpotqa' \(only of nq, trivia"):
        train_all(parts_with(missing, parts.backbone), tmp_path / "x", ["base"])


def test_the_estimate_is_examples_times_a_measured_step(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(parts, tmp_path)
    assert seconds_per_example(run) > 0
    monkeypatch.setattr(stages, "seconds_per_example", lambda _: 2.0)
    found = estimated(run, [STAGES[name] for name in USUAL])
    assert found == {
        "base": 2.0 * 4 * 2, "targets": 2.0 * 8 * 2 * 2, "predictor": 0.0,
        "tuned": 2.0 * 3 * 2, "mean-tuned": 2.0 * 3 * 2,
        "examples": 2.0 * 2 * 2, "refusals": 2.0 * (800 // 3),
    }  # fmt: skip
    assert STAGES["task-mean"].examples(parts.settings) == 0


def test_a_stage_makes_every_file_that_a_method_reads() -> None:
    read = {file for name in METHODS for file in SPECS[name].weights}
    assert read <= {*STAGES, "mean"}


def test_steps_that_were_trained_apart_are_averaged(tmp_path: Path) -> None:
    base = random_base(make_backbone())
    steps = [random_update(base, seed=seed, size=0.5) for seed in (1, 2, 3)]
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for step, file in zip(steps, files, strict=True):
        step.save(file)
    record = average(files, tmp_path / "mean")
    made = load_update(tmp_path / "mean" / file_of("examples"))
    wanted = torch.stack([step.vector() for step in steps]).mean(0)
    assert torch.allclose(made.vector().float(), wanted, atol=1e-2)
    assert not torch.allclose(steps[0].vector(), wanted, atol=1e-2)
    assert made.base == base.fingerprint
    assert list(record["mean_of"]) == [str(file) for file in files]
    third = average(files, tmp_path / "third", times=0.25)
    made = load_update(tmp_path / "third" / file_of("examples"))
    assert torch.allclose(made.vector().float(), 0.25 * wanted, atol=1e-2)
    assert third["times"] == 0.25
    average(files[:1], tmp_path / "alone", times=2.0)
    alone = load_update(tmp_path / "alone" / file_of("examples")).vector().float()
    assert torch.allclose(alone, 2 * steps[0].vector(), atol=2e-2)
    for times in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(RaggdError, match="expected a number above 0"):
            average(files, tmp_path / "none", times)
    assert not (tmp_path / "none").exists()


def test_steps_that_are_no_average_are_refused(tmp_path: Path) -> None:
    base, other = (random_base(make_backbone(), seed=seed) for seed in (1, 2))
    steps = [random_update(one, size=0.5) for one in (base, other)]
    narrow = random_update(random_base(make_backbone(), rank=3), size=0.5)
    steps += [narrow, stack_updates([steps[0], steps[0]])]
    files = [tmp_path / f"{number}.safetensors" for number in range(len(steps))]
    for step, file in zip(steps, files, strict=True):
        step.save(file)
    first, of_other, of_other_shape, of_rows = files
    for given, message in (
        ([first], "two files or more"),
        ([first, of_rows], "each with a single step"),
        ([first, of_other], "different bases"),
        ([first, of_other_shape], "different shapes"),
    ):
        with pytest.raises(RaggdError, match=message):
            average(given, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
