"""The commands that keep support sets and export what was adapted to them."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaModel

import raggd
from raggd.adaptation.export import WEIGHTS_FILE
from raggd.backbone.load import Backbone
from raggd.files import load_tensors
from workflow_fixtures import (
    Ran,
    run_cli,
    save_backbone,
    settings_text,
    write_data,
    write_lines,
    write_weights,
)


@pytest.fixture(scope="module")
def place(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("exports")
    folder = save_backbone(frozen_backbone, root / "backbone")
    weights = write_weights(root / "weights", frozen_backbone)
    text = settings_text(write_data(root / "data"), str(folder), str(weights))
    (root / "settings.toml").write_text(text, encoding="utf-8")
    (root / "guide.md").write_text("The red city lies near Lima.\n", encoding="utf-8")
    lines = [{"question": "what lies near the red city ?", "answer": "Lima"}]
    write_lines(root / "examples.jsonl", lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        yield root


def run(place: Path, *arguments: object) -> Ran:
    needs = {"add", "ask", "--demonstrations"} & set(map(str, arguments))  # others refuse a corpus
    corpus = ("--corpus", place / "guide.md") if needs else ()
    return run_cli(*arguments, *corpus, "--settings", place / "settings.toml")


def test_supports_are_added_listed_and_exported(place: Path, tmp_path: Path) -> None:
    added = run(place, "supports", "add", place / "examples.jsonl", "--json").json()
    assert added["demonstrations"] == 1
    listed = run_cli("supports", "list", "--json").json()["supports"]
    question = "what lies near the red city ?"
    assert listed == [{"id": added["id"], "demonstrations": 1, "question": question}]
    assert added["id"] in run_cli("supports", "list").out
    dumped = run_cli("supports", "dump", added["id"])
    assert json.loads(dumped.out) == {"question": question, "answer": "Lima"}
    by_id = run(place, "export", "peft", tmp_path / "id", "--support", added["id"], "--json").json()
    shown = ("--demonstrations", place / "examples.jsonl")
    run(place, "export", "peft", tmp_path / "file", *shown, "--json").json()
    run(place, "export", "peft", tmp_path / "base", "--json").json()
    assert by_id["adapted"]
    assert by_id["rank"] == 6
    assert by_id["backbone"] == str(place / "backbone")
    tensors = [load_tensors(tmp_path / name / WEIGHTS_FILE)[0] for name in ("id", "file", "base")]
    assert all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])
    assert tensors[2].keys() == tensors[0].keys()
    name = next(iter(tensors[0]))
    assert tensors[2][name].shape != tensors[0][name].shape


def test_a_saved_update_is_exported(place: Path, tmp_path: Path) -> None:
    rag = raggd.load(place / "guide.md", settings=place / "settings.toml")
    rag.save(rag.adapt(place / "examples.jsonl"), tmp_path / "u.safetensors")
    saved = ("--update", tmp_path / "u.safetensors")
    text = run(place, "export", "gguf", tmp_path / "u.gguf", *saved)
    assert text.out.startswith(f"base adapter and update in {tmp_path / 'u.gguf'}\n")
    assert f"its prompt: {tmp_path / 'u.chat_template.jinja'}" in text.out
    alone = run(place, "export", "gguf", tmp_path / "b.gguf", "--json").json()
    assert alone["adapted"] is False
    assert alone["bytes"] < (tmp_path / "u.gguf").stat().st_size
    text = run(place, "export", "peft", tmp_path / "p", *saved)
    assert text.out.startswith("base adapter and update of rank 6 in")


def test_exports_refuse_what_they_cannot_do(place: Path, tmp_path: Path) -> None:
    both = ("--demonstrations", place / "examples.jsonl", "--support", "0" * 16)
    refused = run(place, "export", "peft", tmp_path / "x", *both).refusal()
    assert "name one of --demonstrations, --support and --update" in refused
    refused = run(place, "export", "gguf", tmp_path / "x", "--support", "../../etc").refusal()
    assert "is not the id of a support set" in refused
    assert not list(tmp_path.iterdir())


def test_ask_takes_a_stored_set_and_a_saved_update(place: Path, tmp_path: Path) -> None:
    added = run(place, "supports", "add", place / "examples.jsonl", "--json").json()
    rag = raggd.load(place / "guide.md", settings=place / "settings.toml")
    rag.save(rag.adapt(place / "examples.jsonl"), tmp_path / "u.safetensors")
    asked = ("ask", "what lies near the red city ?")
    sources = [
        ("--support", added["id"]),
        ("--update", tmp_path / "u.safetensors"),
        ("--demonstrations", place / "examples.jsonl"),
    ]
    results = [run(place, *asked, *source, "--json").json() for source in sources]
    assert len({result["answer"] for result in results}) == 1
    assert all(result["adapted"] for result in results)
    assert results[0]["answer"] != run(place, *asked, "--json").json()["answer"]
    assert "(adapted to 1 demonstration)" in run(place, *asked, *sources[0]).out
    shown = run(place, *asked, *sources[0], "--method", "base-few-shot").out
    assert "base-few-shot (1 demonstration given)" in shown
    refused = run(place, *asked, *sources[1], "--method", "base").refusal()
    assert "leave --method out" in refused
    assert "not several" in run(place, *asked, *sources[0], *sources[1]).refusal()
    assert "no weight file at" in run(place, *asked, "--update", tmp_path / "none").refusal()


def test_sets_are_removed_with_what_was_adapted_to_them(place: Path) -> None:
    added = run(place, "supports", "add", place / "examples.jsonl", "--json").json()
    run(place, "ask", "what lies near the red city ?", "--support", added["id"])
    folder = Path(added["file"]).parent
    assert len(list(folder.glob(f"{added['id']}.*"))) == 2
    assert run_cli("supports", "remove", added["id"], "f" * 16).refusal().startswith("no support")
    assert len(list(folder.glob(f"{added['id']}.*"))) == 2
    assert run_cli("supports", "remove", added["id"]).out == f"removed {added['id']}\n"
    assert not list(folder.glob(f"{added['id']}.*"))


def test_a_question_passes_nine_functions_on_its_way_to_the_model(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = str(Path(raggd.__file__).parent)
    ways: list[list[str]] = []
    original = LlamaModel.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        stack = [f.function for f in inspect.stack(0) if f.filename.startswith(ours)]
        ways.append(stack[: stack.index("ask") + 1] if "ask" in stack else stack)
        return original(self, *arguments, **named)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    new = write_lines(tmp_path / "new.jsonl", [{"question": "is it red ?", "answer": "yes"}])
    shown = ("--demonstrations", new)
    run(place, "ask", "which tree lies near the red city ?", *shown, "--json").json()
    adapting = [way for way in ways if "adapt" in way]
    answering = [way for way in ways if "answer" in way]
    assert len(adapting) == 1
    assert answering
    assert all(way[-1] == "ask" for way in ways)
    assert max(map(len, adapting)) <= 9
    assert max(map(len, answering)) <= 9
