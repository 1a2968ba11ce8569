"""Support sets on disk, and the commands that keep and export them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import raggd
from raggd.adaptation.export import WEIGHTS_FILE
from raggd.backbone.load import Backbone
from raggd.data.supports import list_supports, load_support, save_support
from raggd.files import load_tensors
from raggd.records import RaggdError, SupportSet
from workflow_fixtures import (
    Ran,
    run_cli,
    save_backbone,
    settings_text,
    write_data,
    write_lines,
    write_weights,
)


def test_a_set_comes_back_as_it_was(supports: list[SupportSet], tmp_path: Path) -> None:
    for support in supports:
        path = save_support(tmp_path, support)
        assert path.name == f"{support.id}.json"
        assert load_support(tmp_path, support.id) == support
    assert save_support(tmp_path, supports[0]) == tmp_path / f"{supports[0].id}.json"
    assert {s.id for s in list_supports(tmp_path)} == {s.id for s in supports}
    assert list_supports(tmp_path / "none") == []


@pytest.mark.parametrize("name", ["../x", "0" * 15, "0" * 17, "G" * 16, "", "..", "0" * 16 + "\n"])
def test_a_name_that_is_no_id_opens_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="is not the id of a support set"):
        load_support(tmp_path, name)


def test_damaged_and_missing_sets(supports: list[SupportSet], tmp_path: Path) -> None:
    with pytest.raises(RaggdError, match="no support set 'aaaaaaaaaaaaaaaa'"):
        load_support(tmp_path, "a" * 16)
    path = save_support(tmp_path, supports[0])
    value = json.loads(path.read_text())
    value["demonstrations"][0]["answer"] = "something else"
    path.write_text(json.dumps(value))
    with pytest.raises(RaggdError, match="it was changed"):
        load_support(tmp_path, supports[0].id)
    for wrong in ("[]", '{"task": "x"}', '{"task": "x", "demonstrations": [1]}', "{"):
        path.write_text(wrong)
        with pytest.raises(RaggdError, match=r"is not a support set|is not valid JSON"):
            load_support(tmp_path, supports[0].id)


# --- commands


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
    own = ("--corpus", place / "guide.md", "--settings", place / "settings.toml")
    return run_cli(*arguments, *own)


def test_supports_are_added_listed_and_exported(place: Path, tmp_path: Path) -> None:
    added = run(place, "supports", "add", place / "examples.jsonl", "--json").json()
    assert added["demonstrations"] == 1
    listed = run_cli("supports", "list", "--json").json()["supports"]
    question = "what lies near the red city ?"
    assert listed == [{"id": added["id"], "demonstrations": 1, "question": question}]
    assert added["id"] in run_cli("supports", "list").out
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
    rag.adapt(place / "examples.jsonl").save(tmp_path / "u.safetensors")
    saved = ("--update", tmp_path / "u.safetensors")
    text = run(place, "export", "gguf", tmp_path / "u.gguf", *saved)
    assert text.out == f"base adapter and update in {tmp_path / 'u.gguf'}\n"
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
