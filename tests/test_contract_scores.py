"""Whether answers follow the examples: what `raggd evaluate --contracts` counts and writes."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest

from raggd.backbone.load import Backbone
from raggd.data.contracts.base import Asked, Contract, Score
from raggd.data.contracts.families import REFUSING, SETS
from raggd.data.questions import write_prepared
from raggd.evaluation.contracts import (
    USUAL,
    Judged,
    _lessons,
    contract_result,
    run_contracts,
    usual_methods,
)
from raggd.evaluation.forms import PARTS, refusal_scores
from raggd.files import read_json
from raggd.methods.base import Adapted, Control
from raggd.methods.plain import Unadapted
from raggd.records import RaggdError
from raggd.report.own import contract_tables
from raggd.settings import Settings, changed
from workflow_fixtures import parts_with, prepared_row, write_weights


def test_refusing_is_scored_as_a_decision() -> None:
    refused = [True, True, True, False, False, False, False, False]
    wanted = [True, True, False, True, True, False, False, False]
    scores = refusal_scores(refused, wanted)
    assert scores == {"precision": 66.7, "recall": 50.0, "f1": 57.1, "wrongly": 25.0}
    assert set(refusal_scores([False], [True]).values()) == {0.0}


def _judged(name: str, exact: float) -> Judged:
    score = Score(1.0, exact, exact, refused=False, wanted=False)
    asked = Asked("q", "asked", (), "w", ("w",), ("w",))
    return Judged("nq", Contract(name, "f"), asked, "a", score)


def test_every_contract_counts_alike() -> None:
    many, few = [("json", 1.0)] * 6, [("bold", 0.0)] * 2
    good = [_judged(name, exact) for name, exact in (*many, *few)]
    bad = [_judged(name, 0.0) for name, _ in (*many, *few)]
    result = contract_result({"a": good, "b": bad})
    assert result["macro"]["a"] == {"form": 100.0, "content": 50.0, "exact": 50.0}
    assert result["contracts"]["json"]["a"] == {**dict.fromkeys(PARTS, 100.0), "n": 6}
    assert result["intervals"]["a"]["exact"][0] == 50.0
    assert result["differences"] == {
        "a - b": {"form": [0.0] * 3, "content": [50.0] * 3, "exact": [50.0] * 3}
    }


def test_a_control_that_exchanges_what_a_benchmark_holds_is_refused(tmp_path: Path) -> None:
    control = Control("shuffled-support", Unadapted("base", Adapted()), list)
    parts: Any = SimpleNamespace(method=lambda _: control)
    with pytest.raises(RaggdError, match="'shuffled-support' is a control of"):
        run_contracts(parts, ["unseen"], [control.name], 1, tmp_path)
    with pytest.raises(RaggdError, match="unknown set of contracts 'knwn': did you mean 'known'"):
        run_contracts(parts, ["knwn"], [control.name], 1, tmp_path)


def test_the_usual_methods_are_those_that_can_run(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    parts = parts_with(Settings(), frozen_backbone)
    assert usual_methods(parts) == list(USUAL)
    folder = str(write_weights(tmp_path / "weights", frozen_backbone))
    own = parts.derived(changed(parts.settings, "adapter", weights=folder))
    assert usual_methods(own) == ["rag-gd", "base-template", "base-examples", "base", USUAL[-1]]
    bare = parts.derived(changed(parts.settings, "backbone", name="own/model"))
    assert usual_methods(bare) == ["base-examples", "vanilla-rag"]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_half_of_the_questions_under_a_refusal_are_to_be_refused(count: int) -> None:
    # also where each source has one: who refuses everything would be right throughout
    tasks = ("nq", "popqa", "triviaqa", "musique")
    rows = [prepared_row(number, task) for task in tasks for number in range(30)]
    assert len(REFUSING) > 2
    lessons = _lessons(rows, REFUSING, count, 0, 3)
    assert len(lessons) == 4 * count * len(REFUSING)
    assert sum(lesson.asked.refused for _, lesson in lessons) == len(lessons) / 2


def test_a_run_is_written_whole_and_means_are_of_its_answers(
    frozen_backbone: Backbone, tmp_path: Path
) -> None:
    prepared = tmp_path / "rows.jsonl.gz"
    write_prepared(prepared, [prepared_row(i) for i in range(80)])
    parts, methods = parts_with(Settings(), frozen_backbone), ["vanilla-examples", "vanilla-rag"]
    told: list[int] = []
    parts.progress = lambda _, done, __: told.append(done)
    result = run_contracts(parts, ["unseen"], methods, 2, tmp_path, prepared)
    names = [contract.name for contract in SETS["unseen"]]
    assert list(result["contracts"]) == names
    assert set(result["macro"]) == set(result["refusal"]) == set(methods)
    assert result["questions"] == told[-1] == 2 * len(names)
    for method in methods:
        for part in PARTS:
            own = mean(result["contracts"][name][method][part] for name in names)
            assert result["macro"][method][part] == pytest.approx(own, abs=0.1)
        assert set(result["refusal"][method]) == {"precision", "recall", "f1", "wrongly"}
    record = read_json(tmp_path / "contracts-unseen.json", what="record")
    assert {key: record[key] for key in result} == result
    assert record["backbone"] == frozen_backbone.fingerprint
    asked = [[answer[:4] for answer in record["answers"][method]] for method in methods]
    assert asked[0] == asked[1], "the same questions for all"
    table, single = contract_tables(result)
    assert len(table.rows) == 2 * len(methods)
    assert len(single.rows) == len(names)
    refusing = run_contracts(parts, ["unseen", "refusals"], methods[:1], 2, tmp_path, prepared)
    assert set(refusing["contracts"]) == {*names, *(contract.name for contract in REFUSING)}
    write_prepared(prepared, [prepared_row(i) for i in range(2)])
    with pytest.raises(RaggdError, match="too few questions for contract"):
        run_contracts(parts, ["unseen"], methods, 1, tmp_path, prepared)
