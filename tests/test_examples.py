"""The example scripts, run as they stand on the real backbone."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raggd.backbone import load
from raggd.data.answers import token_f1

FOLDER = Path(__file__).resolve().parents[1] / "examples"
pytestmark = [pytest.mark.backbone, pytest.mark.xdist_group("backbone")]


@pytest.fixture(scope="module", autouse=True)
def one_backbone() -> Iterator[None]:
    """All scripts share the loaded model: loading it is not what they show."""
    kept: dict[str, Any] = {}

    def remembered(settings: Any, progress: Any = None) -> Any:
        if settings.name not in kept:
            kept[settings.name] = original(settings, progress)
        return kept[settings.name]

    original = load.load_backbone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load_backbone", remembered)
        yield


def run(name: str) -> Any:
    return runpy.run_path(str(FOLDER / f"{name}.py"))["main"]()


def test_there_is_no_script_without_a_test() -> None:
    tested = {"own_markdown", "customers", "before_and_after"}
    tested |= {"flashrag_index"}  # in test_bring_your_own.py
    assert {path.stem for path in FOLDER.glob("*.py")} == tested


def test_own_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    answers = run("own_markdown")
    wanted = ["24 months", "bronze", "Marta Keller"]
    right = [token_f1(a.text, [w]) > 0.5 for a, w in zip(answers, wanted, strict=True)]
    assert right.count(True) >= 2, [answer.text for answer in answers]
    assert "Service > Warranty" in capsys.readouterr().out


def test_customers() -> None:
    answers = run("customers")
    assert list(answers) == ["shop system", "Berlin office", "help desk"]
    assert set(json.loads(answers["shop system"].text)) == {"answer"}
    assert answers["Berlin office"].text.startswith("Die Antwort ist ")
    assert not answers["help desk"].text.startswith(("{", "Die"))
    assert sum("week" in answer.text for answer in answers.values()) >= 2


def test_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    columns = run("before_and_after")
    assert len(columns) == 4
    assert columns["bare model"] != columns["base adapter"], "the base adapter changes answers"
    assert all(len(texts) == 3 and all(texts) for texts in columns.values())
    assert capsys.readouterr().out.count("(wanted: ") == 3
