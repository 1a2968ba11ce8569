"""`raggd cache`: what is kept is listed, what may go goes, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from workflow_fixtures import run_cli


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with an index, a model and a support set, all unused for ten days."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RAGGD_CACHE", str(folder))
    corpus = tmp_path / "guide.md"
    corpus.write_text("The red city lies near Lima .\n", encoding="utf-8")
    assert run_cli("index", corpus, "--json").json()["passages"] == 1
    for name in ("backbones/model/weights.bin", "supports/0123456789abcdef.json"):
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    past = time.time() - 10 * 86400
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (past, past))
    return folder


def test_what_is_kept_is_listed(cache: Path) -> None:
    listed = run_cli("cache", "list", "--json").json()
    kinds = {entry["kind"] for entry in listed["entries"]}
    assert {"index", "backbones", "supports"} <= kinds
    assert listed["folder"] == str(cache)
    assert listed["bytes"] == sum(entry["bytes"] for entry in listed["entries"])
    text = run_cli("cache", "list").out
    assert "10.0 days" in text
    assert "guide.md" in text


def test_pruning_leaves_downloads_and_support_sets(cache: Path) -> None:
    assert run_cli("cache", "prune", "--older-than", 11, "--json").json()["removed"] == []
    assert run_cli("cache", "prune", "--keep", "1GB", "--json").json()["removed"] == []
    gone = run_cli("cache", "prune", "--older-than", 9, "--json").json()
    assert {entry["kind"] for entry in gone["removed"]} >= {"index"}
    assert gone["bytes"] == sum(entry["bytes"] for entry in gone["removed"])
    left = {e["kind"] for e in run_cli("cache", "list", "--json").json()["entries"]}
    assert "index" not in left
    assert {"backbones", "supports"} <= left


def test_pruning_by_size(cache: Path) -> None:
    begun = cache / "indexes" / "begun"  # just now, by another process: it holds nothing yet
    begun.mkdir()
    gone = run_cli("cache", "prune", "--keep", "1", "--json").json()
    assert "index" in {entry["kind"] for entry in gone["removed"]}
    assert begun.is_dir()


def test_pruning_must_be_told_what_may_go(cache: Path) -> None:
    assert "--older-than" in run_cli("cache", "prune").refusal()
    assert "not a size" in run_cli("cache", "prune", "--keep", "much").refusal()
