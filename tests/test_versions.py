"""Two folders of records, question by question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.versions import compare
from raggd.records import RaggdError


def _record(folder: Path, answers: list[str], version: str) -> Path:
    folder.mkdir()
    predictions = [{"question_id": f"q{i}", "answer": a} for i, a in enumerate(answers)]
    record = {
        "benchmark": "nq",
        "method": "base",
        "versions": {"transformers": version},
        "predictions": predictions,
    }
    (folder / "nq-base.json").write_text(json.dumps(record))
    (folder / "study.json").write_text("{}")
    return folder


def test_differences_are_counted_and_named(tmp_path: Path) -> None:
    left = _record(tmp_path / "left", ["Lima", "Rome"], "1")
    right = _record(tmp_path / "right", ["Lima", "Oslo"], "2")
    assert compare(left, left)["different"] == []
    found = compare(left, right)
    assert (found["answers"], found["same"], found["questions"]) == (2, 1, {"nq/base": 2})
    assert [(d["left"], d["right"]) for d in found["different"]] == [("Rome", "Oslo")]
    assert [found[s]["versions"]["transformers"] for s in ("left", "right")] == ["1", "2"]
    other = _record(tmp_path / "other", ["Lima"], "2")
    with pytest.raises(RaggdError, match="different questions"):
        compare(left, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RaggdError, match="holds no records"):
        compare(left, tmp_path / "empty")
