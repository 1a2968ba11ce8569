"""`make gpu-check` as a processor can run it: every part, a record, and failures that are told."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import GOALS, QUICK, check, install, table
from benchmarks.trainings import train_briefly
from raggd.evaluation.price import random_backbone
from raggd.settings import BackboneSettings

PLAN = replace(QUICK, deadline=time.monotonic() + 1e6)


def test_all_parts_end_in_one_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> dict[str, Any]:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu_check, "answers", broken)  # the real backbone is not a unit test's
    said: list[str] = []
    record = check(PLAN, tmp_path, said.append)
    assert said == ["tests", "prices, float32", "trainings", "answers"]
    assert json.loads((tmp_path / "gpu-check.json").read_text())["parts"] == record["parts"]
    parts = record["parts"]
    assert set(GOALS) <= set(parts["prices, float32"]["ratios"])
    assert parts["trainings"]["hours"]["base adapter"] > 0
    assert parts["answers"]["failed"] == "RuntimeError: no kernel image"
    shown = (tmp_path / "gpu-check.md").read_text()
    assert "| RAG-GD / one forward pass, float32 | 1.1 |" in shown
    assert "no kernel image" in shown
    assert {"machine", "versions", "command"} <= set(record)


def test_parts_are_chosen_by_their_first_words(tmp_path: Path) -> None:
    said: list[str] = []
    check(replace(PLAN, only=("tests",)), tmp_path, said.append)
    assert said == ["tests"]


def test_when_the_time_is_over_nothing_begins(tmp_path: Path) -> None:
    record = check(replace(PLAN, deadline=time.monotonic() - 1), tmp_path, lambda _: None)
    assert {part["left out"] for part in record["parts"].values()} == {"the time was over"}
    assert "time was over" in table(record)


def test_wheels_that_are_installed_are_left_alone(tmp_path: Path) -> None:
    version = importlib.metadata.version("pytest")
    (tmp_path / f"pytest-{version}-py3-none-any.whl").write_bytes(b"not a wheel")
    assert install(tmp_path) == []
    (tmp_path / "pytest-1.0-py3-none-any.whl").write_bytes(b"not a wheel")
    with pytest.raises(subprocess.CalledProcessError):
        install(tmp_path)
    assert install(tmp_path / "none") == []


def test_every_stage_trains_a_few_steps(tmp_path: Path) -> None:
    backbone = random_backbone("tiny", BackboneSettings(device="cpu", dtype="float32"))
    found = train_briefly(backbone, tmp_path, 3, 24)
    assert set(found["hours"]) == {"base adapter", "predictor", "tuning"}
    for first, last in found["loss"].values():
        assert first != last
    assert all(ms > 0 for ms in found["ms"].values())
