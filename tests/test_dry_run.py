"""The dry run: what is missing is listed, not raised; estimates agree with what is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from raggd.backbone.load import Backbone
from raggd.backbone.shapes import PUBLISHED
from raggd.data import benchmarks
from raggd.methods.spec import MEAN_FILE
from raggd.records import RaggdError
from raggd.study.estimate import Lengths, Rates, memory_bytes, method_work, power, weight_bytes
from raggd.study.plan import Part
from raggd.study.progress import measured_speed
from raggd.study.run import run_study
from raggd.study.settings import load_study
from raggd.study.shapes import Sizes, backbone_sizes
from study_fixtures import ALL, Quiet, World, read_records, write_weights
from workflow_fixtures import files_under, run_cli

LENGTHS = Lengths(400.0, 40.0, 406.0, 6.0, measured=True)
RATES = Rates(1e12, 1e10, "given")


@pytest.fixture(scope="module")
def qwen() -> Sizes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return backbone_sizes("Qwen/Qwen2.5-7B-Instruct")


def problems(found: dict[str, Any]) -> list[str]:
    return [f"{c['item']}: {c['message']}" for c in found["checks"] if not c["ok"]]


def test_all_is_there(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = run_cli("study", world.study(), "--out", out, "--dry-run", "--json").json()
    assert problems(found) == []
    assert found["ready"]
    assert found["estimated"]
    assert (found["cells"], found["questions"]) == (24, 24 * 6)
    assert found["hours"] >= 0
    assert set(found["backbones"]["tiny"]["hours"]) == set(ALL)
    assert found["backbones"]["tiny"]["lengths"]["measured"]
    assert not found["power"]["observed"]
    assert not out.exists(), "nothing is written"
    text = run_cli("study", world.study(), "--out", out, "--dry-run", "--tflops", "0.001").out
    assert "24 cells, 144 answers" in text
    assert "given: 0.001 TFLOP/s" in text
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
    assert before["retriever bm25"].startswith("indexing 80 passages will take about")
    assert before[""].startswith("retriever again: cannot load the encoder")
    run_study(load_study(file), tmp_path / "out", Part(retrievers=("bm25",)), Quiet())
    assert told()["retriever bm25"] == "its index is there"


def test_what_is_missing_is_listed(
    world: World, tmp_path: Path, frozen_backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = write_weights(frozen_backbone, tmp_path / "weights")
    (weights / MEAN_FILE).unlink()
    text = world.study(name="missing", weights=weights).read_text(encoding="utf-8")
    file = tmp_path / "missing.toml"
    asked: list[str] = []

    def no_hub(name: str) -> None:
        asked.append(name)
        raise RaggdError(f"cannot fetch {name}: no network.")

    monkeypatch.setattr(benchmarks, "hub_file", no_hub)
    file.write_text(
        text.replace(f'folder = "{world.data}"', 'folder = "hub"').replace(
            str(world.model), str(tmp_path / "no-such-model")
        ),
        encoding="utf-8",
    )
    found = run_cli("study", file, "--out", tmp_path / "out", "--dry-run", "--json").json()
    assert not found["ready"]
    wrong = "\n".join(problems(found))
    assert "benchmark nq: cannot fetch" in wrong
    assert "benchmark popqa: cannot fetch" in wrong
    assert len(asked) == 1, "one wait for a hub out of reach is enough"
    assert "tiny: shape: no configuration of backbone" in wrong
    assert "tiny: tokenizer:" in wrong
    assert "mean-update needs mean.safetensors" in wrong
    assert found["cells"] == 24
    assert not found["estimated"]
    part = ("--methods", "base,rag-gd", "--dry-run", "--json")
    some = run_cli("study", file, "--out", tmp_path / "out", *part).json()
    assert "mean-update" not in "\n".join(problems(some))


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


def test_measured_times_replace_estimates(world: World, tmp_path: Path) -> None:
    file = world.study(name="measured")
    part = Part(methods=("base", "rag-gd"))
    run_study(load_study(file), tmp_path, part, Quiet())
    speed = measured_speed(tmp_path)
    assert set(speed.answered) == {("tiny", "base"), ("tiny", "rag-gd")}
    assert speed.answered["tiny", "base"] == 2 * 2 * 6
    before = files_under(tmp_path)
    found = run_cli("study", file, "--out", tmp_path, "--dry-run", "--json").json()
    hours = found["backbones"]["tiny"]["hours"]
    assert {m for m, spent in hours.items() if spent["measured"]} == {"base", "rag-gd"}
    assert files_under(tmp_path) == before
    status = run_cli("study", file, "--out", tmp_path, "--status", "--json").json()
    assert (status["parts"], status["parts_planned"]) == (16, 48)
    spent = sum(speed.spent.values())
    assert speed.per_part("tiny", "base") == pytest.approx(speed.spent["tiny", "base"] / 8)
    # a method without a time is taken to last as long as the others do on average
    assert status["hours_left"] == pytest.approx(28 * spent / 16 / 3600, abs=0.006)
    nothing = run_cli("study", file, "--out", tmp_path / "no", "--status", "--json").json()
    assert nothing["hours_left"] is None


def test_estimates_agree_with_what_was_counted(world: World, tmp_path: Path) -> None:
    file = world.study(name="counted", retrievers=("bm25",), benchmarks=("nq",))
    run_study(load_study(file), tmp_path, Part(), Quiet())
    found = run_cli("study", file, "--out", tmp_path / "x", "--dry-run", "--json").json()
    lengths = Lengths(**found["backbones"]["tiny"]["lengths"])
    sizes = backbone_sizes(str(world.model))
    for method in ALL:
        work = method_work(
            method,
            sizes,
            lengths,
            RATES,
            demonstrations=2,
            steps=2,
            rank=2,
            batch=4,
            dtype="float32",
        )
        record = read_records(tmp_path)[f"tiny/bm25/seed-0/nq-{method}.json"]
        # answers are guessed at six tokens, passages stand in for the retrieved ones
        assert work.answer_flops == pytest.approx(record.cost["answer_flops"], rel=0.35), method
        assert work.adapt_flops == pytest.approx(record.cost["adapt_flops"], rel=0.35), method


def test_the_papers_backbones_are_known_without_a_hub(
    qwen: Sizes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(PUBLISHED) == {"Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"}
    assert qwen.source == "the list that raggd carries"
    assert qwen.parameters + qwen.embeddings == pytest.approx(7.6157e9, rel=0.002)
    assert (qwen.layers, qwen.hidden, qwen.kv_width) == (28, 3584, 512)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    llama = backbone_sizes("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.parameters + llama.embeddings == pytest.approx(8.0303e9, rel=0.002)
    with pytest.raises(RaggdError, match="no configuration of backbone 'nobody/nothing'"):
        backbone_sizes("nobody/nothing")


def test_memory_and_work_grow_as_they_should(qwen: Sizes) -> None:
    options: dict[str, Any] = {"batch": 8, "demonstrations": 3, "longest": 800}
    four = memory_bytes(qwen, LENGTHS, dtype="nf4", gradients=False, **options)
    sixteen = memory_bytes(qwen, LENGTHS, dtype="bfloat16", gradients=False, **options)
    steps = memory_bytes(qwen, LENGTHS, dtype="nf4", gradients=True, **options)
    assert 5 < four["weights"] / 2**30 < 6.5
    assert sixteen["weights"] == pytest.approx(2 * 7.6157e9, rel=0.002)
    assert weight_bytes(qwen, "bfloat16") == sixteen["weights"]
    assert steps["activations"] > 5 * four["activations"]
    assert four["total"] == four["weights"] + four["cache"] + four["activations"]
    common: dict[str, Any] = {
        **{"demonstrations": 3, "steps": 5, "rank": 16, "batch": 8, "dtype": "nf4"},
        **{"sizes": qwen, "lengths": LENGTHS, "rates": RATES},
    }
    work = {
        name: method_work(name, **common)
        for name in ("query-only", "base", "base-few-shot", "rag-gd", "tt-sgd", "tt-sgd-k1")
    }
    assert work["base"].adapt_flops == 0
    assert work["query-only"].answer_flops < 0.2 * work["base"].answer_flops
    assert work["base-few-shot"].answer_flops > work["base"].answer_flops
    assert work["tt-sgd"].adapt_flops == 5 * work["tt-sgd-k1"].adapt_flops
    # a step is a forward pass, a backward pass, and logits
    assert 1.9 < work["tt-sgd-k1"].adapt_flops / work["rag-gd"].adapt_flops < 2.3
    assert work["base"].answer_seconds > work["base"].answer_flops / RATES.flops


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
