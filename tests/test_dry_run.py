"""The dry run: what is missing is listed, not raised; hours are of answered draws; no network."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from raggd.backbone.load import Backbone
from raggd.data import benchmarks
from raggd.methods.spec import MEAN_FILE
from raggd.study.dry_run import measured_speed, power
from raggd.study.plan import all_cells, load_study
from raggd.study.run import StudyRunner
from study_fixtures import ALL, Quiet, World, write_weights
from workflow_fixtures import files_under, run_cli


def problems(found: dict[str, Any]) -> list[str]:
    return [f"{c['item']}: {c['message']}" for c in found["checks"] if not c["ok"]]


def test_all_is_there(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_cli("study", world.study(), "--out", out, "--dry-run", "--json").json()
    assert problems(found) == []
    assert found["ready"]
    assert (found["cells"], found["questions"]) == (24, 24 * 6)
    assert found["backbones"]["tiny"] == dict.fromkeys(ALL)
    assert (found["hours"], found["unmeasured"]) == (0, len(ALL))
    assert not found["power"]["observed"]
    assert not out.exists(), "nothing is written"
    text = run_cli("study", world.study(), "--out", out, "--dry-run").out
    assert "24 cells, 144 answers" in text
    assert "Everything is there." in text


def test_every_retriever_is_looked_at(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    text = world.study(("base",), name="found", benchmarks=("nq",)).read_text(encoding="utf-8")
    file = tmp_path / "found.toml"
    missing = json.dumps(str(tmp_path / "no-encoder"))
    dense = f'"again"\nretriever = "dense"\nencoder = {missing}'
    file.write_text(text.replace('"again"', dense), encoding="utf-8")

    def told() -> dict[str, str]:
        found = run_cli("study", file, "--out", tmp_path / "out", "--dry-run", "--json").json()
        return {c["item"]: c["message"] for c in found["checks"]} | {"": "\n".join(problems(found))}

    before = told()
    assert before["retriever bm25"] == "its index is made at the start"
    assert before[""].startswith("retriever again: cannot load the encoder")
    study = load_study(file)
    StudyRunner(study, tmp_path / "out", Quiet()).run(all_cells(study, retriever=["bm25"]))
    assert told()["retriever bm25"] == "its index is there"


def test_what_is_missing_is_listed(world: World, tmp_path: Path, frozen_backbone: Backbone) -> None:
    weights = write_weights(frozen_backbone, tmp_path / "weights")
    (weights / MEAN_FILE).unlink()
    text = world.study(name="missing", weights=weights).read_text(encoding="utf-8")
    file, data = tmp_path / "missing.toml", tmp_path / "data"
    shutil.copytree(world.data, data)
    (data / "qa" / "nq" / "train.jsonl").unlink()
    file.write_text(
        text.replace(str(world.data), str(data)).replace(
            str(world.model), str(tmp_path / "no-such-model")
        ),
        encoding="utf-8",
    )
    found = run_cli("study", file, "--out", tmp_path / "out", "--dry-run", "--json").json()
    assert not found["ready"]
    wrong = "\n".join(problems(found))
    assert "benchmark nq: benchmark 'nq' has no split 'train'" in wrong
    assert "tiny: backbone: no configuration of backbone" in wrong
    assert "mean-update needs mean.safetensors" in wrong
    assert found["cells"] == 24
    part = ("--methods", "base,rag-gd", "--dry-run", "--json")
    some = run_cli("study", file, "--out", tmp_path / "out", *part).json()
    assert "mean-update" not in "\n".join(problems(some))


def test_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(benchmarks, "hub_file", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    file = Path(__file__).parents[1] / "studies" / "paper.toml"
    found = run_cli("study", file, "--out", tmp_path / "out", "--dry-run", "--json").json()
    said = {check["item"]: check["message"] for check in found["checks"]}
    assert said["benchmark nq"] == "on the hub; the study fetches it"
    assert "of published size" in said["qwen: backbone"]
    per_block = 3610 + 11313 + 14267 + 7405 + 12576 + 2417 + 125
    assert found["power"]["planned"] == per_block
    wrong = "\n".join(problems(found))
    assert "rag-gd needs base.safetensors (made by `raggd train base`), predictor" in wrong


def test_weights_of_another_backbone_are_noticed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "wider"
    shutil.copytree(world.model, model)
    config = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(
        config.replace('"num_key_value_heads": 2', '"num_key_value_heads": 4'), encoding="utf-8"
    )
    text = world.study(name="wide").read_text(encoding="utf-8")
    file = tmp_path / "wide.toml"
    file.write_text(text.replace(str(world.model), str(model)), encoding="utf-8")
    found = run_cli("study", file, "--out", tmp_path / "out", "--dry-run", "--json").json()
    assert any("it was trained for another one" in line for line in problems(found))


def test_hours_are_those_of_answered_draws(world: World, tmp_path: Path) -> None:
    file = world.study(name="measured")
    study = load_study(file)
    StudyRunner(study, tmp_path, Quiet()).run(all_cells(study, method=["base", "rag-gd"]))
    speed = measured_speed(tmp_path)
    assert set(speed.answered) == {("tiny", "base"), ("tiny", "rag-gd")}
    assert speed.answered["tiny", "base"] == 2 * 2 * 6
    before = files_under(tmp_path)
    found = run_cli("study", file, "--out", tmp_path, "--dry-run", "--json").json()
    assert {m for m, x in found["backbones"]["tiny"].items() if x is not None} == {"base", "rag-gd"}
    assert files_under(tmp_path) == before
    status = run_cli("study", file, "--out", tmp_path, "--status", "--json").json()
    assert (status["parts"], status["parts_planned"]) == (16, 48)
    # a method without a time is taken to last as long as the others do on average
    per_question = sum(speed.spent.values()) / sum(speed.answered.values())
    assert status["hours_left"] == pytest.approx(4 * 24 * per_question / 3600, abs=0.006)
    nothing = run_cli("study", file, "--out", tmp_path / "no", "--status", "--json").json()
    assert nothing["hours_left"] is None
    timed = run_cli("study", file, "--out", tmp_path, "--time-one-draw", "--json").json()
    assert timed["unmeasured"] == 0
    new = set(files_under(tmp_path)) - set(before)
    rest = set(ALL) - {"base", "rag-gd"}
    assert new == {f"tiny/bm25/seed-0/parts/nq-000-{method}.json" for method in rest}


def test_benchmarks_with_fewer_questions_than_draws_have_fewer_parts(
    world: World, tmp_path: Path
) -> None:
    file = world.study(("base",), name="few", benchmarks=("nq",), questions=1)
    StudyRunner(load_study(file), tmp_path, Quiet()).run()
    status = run_cli("study", file, "--out", tmp_path, "--status", "--json").json()
    assert (status["complete"], status["parts"], status["parts_planned"]) == (2, 2, 2)
    assert status["hours_left"] == 0


def test_power() -> None:
    assumed = power(700, None)
    assert not assumed["observed"]
    needed = assumed["needed"]
    assert isinstance(needed, dict)
    # ten per cent of the questions changed: (2.8 * sqrt(0.1) / 0.01) ^ 2
    assert needed["1"] == pytest.approx(7849, rel=0.01)
    assert needed["2.7"] < needed["1"] / 6
    observed = power(700, 0.05, 0.2)
    assert observed["observed"]
    assert observed["needed"]["1"] < needed["1"]  # type: ignore[index]
    more = power(2800, None)
    assert more["detectable"] == pytest.approx(assumed["detectable"] / 2, abs=0.01)  # type: ignore[operator]
