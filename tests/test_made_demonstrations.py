"""`raggd demonstrations`: review at the terminal, and made demonstrations against gold ones."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.data.benchmarks import scored_questions, support_pool
from raggd.data.drafts import Draft
from raggd.data.questions import read_demonstrations
from raggd.methods.spec import EXAMPLES_FILE
from raggd.records import Passage, RaggdError, RunRecord
from raggd.retrieval.evidence import evidence_for
from raggd.settings import changed, load_settings
from raggd.study import made as made_demonstrations
from raggd.study import made as make_demonstrations
from raggd.study.made import MADE, Yield, made_pool, pool_passages, run_compare
from tiny import random_update
from workflow_fixtures import (
    files_under,
    parts_with,
    run_cli,
    save_backbone,
    settings_text,
    write_data,
    write_weights,
)


@pytest.fixture(scope="module")
def place(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("made")
    folder = save_backbone(frozen_backbone, root / "backbone")
    weights = write_weights(root / "weights", frozen_backbone)
    text = settings_text(write_data(root / "data"), str(folder), str(weights))
    (root / "settings.toml").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAGGD_CACHE", str(root / "cache"))
        yield root


@pytest.fixture
def parts(place: Path, tiny_backbone: Backbone) -> Assembly:
    settings = load_settings(place / "settings.toml")
    return parts_with(changed(settings, "evaluation", answer_loss=True), tiny_backbone)


def proposals(maker: Any, passages: Any, seed: int, counted: Yield, *_: Any) -> Iterator[Draft]:
    """As many as there are passages, in words that the tiny tokenizer knows."""
    for passage in passages:
        counted.kept += 1
        words = passage.text.split()
        question = f"what is near the {' '.join(words[1:3])} ?"
        yield Draft(passage, question, words[5])


# --- review


def review(place: Path, monkeypatch: pytest.MonkeyPatch, keys: str) -> tuple[Any, Path]:
    monkeypatch.setattr(make_demonstrations, "propose", proposals)
    monkeypatch.setattr(sys, "stdin", io.StringIO(keys))
    out = place / "reviewed.jsonl"
    command = ("demonstrations", "make", "--review", "--count", 3, "--out", out, "--json")
    return run_cli(*command, "--settings", place / "settings.toml"), out


def test_yes_no_edit_stop(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, out = review(place, monkeypatch, "y\nn\nx\ne\nwho is it ?\nthe king\ns\n")
    assert ran.json()["made"] == 2
    kept = [json.loads(line) for line in out.read_text().splitlines()]
    assert (kept[1]["question"], kept[1]["answer"]) == ("who is it ?", "the king")
    assert kept[0]["question"].startswith("what is near the")
    assert ran.err.count("Keep it?") == 5  # the mistyped x is asked again
    assert kept[0]["passage"]["text"] in ran.err
    assert [q.text for q in read_demonstrations(out)] == [line["question"] for line in kept]


def test_without_review_everything_is_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make_demonstrations, "propose", proposals)
    out = place / "made.jsonl"
    command = ("demonstrations", "make", "--count", 4, "--out", out)
    ran = run_cli(*command, "--settings", place / "settings.toml")
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"4 demonstrations in {out}")
    assert len(read_demonstrations(out)) == 4


# --- against gold demonstrations


def test_no_passage_of_a_scored_question_is_used(parts: Assembly) -> None:
    kept = {p.id for p in pool_passages(parts, "popqa")}
    scored = scored_questions(parts.source, "popqa")
    used = {p.id for shown in evidence_for(scored, parts.retriever, 2) for p in shown}
    found = evidence_for(support_pool(parts.source, "popqa"), parts.retriever, 10)
    everything = {p.id for shown in found for p in shown}
    assert everything & used, "there was something to leave out"
    assert kept == everything - used
    assert kept


def test_made_supports_take_the_place_of_the_gold_ones(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_demonstrations, "propose", proposals)
    examples = parts.weights / EXAMPLES_FILE
    random_update(parts.base).save(examples)
    assert parts.adapting == "examples", "what adapts by default predicts no update"
    try:
        result, tables = run_compare(parts, ["popqa"], tmp_path)
    finally:
        examples.unlink()
    assert set(result["methods"]) == {"base", "mean-update", "rag-gd", MADE}
    assert result["yield"]["popqa"]["kept"] >= 4
    assert len(tables) == 3
    pairs = {(d["method"], d["other"]) for d in result["loss_differences"]}
    assert {(MADE, "base"), (MADE, "rag-gd"), (MADE, "mean-update"), ("rag-gd", "base")} <= pairs
    (run,) = tmp_path.glob("*/bm25/seed-0")
    read = {
        name: RunRecord.from_json((run / f"popqa-{name}.json").read_text())
        for name in ("rag-gd", MADE)
    }
    gold, made = read["rag-gd"].predictions, read[MADE].predictions
    assert [p.question_id for p in gold] == [p.question_id for p in made]
    assert [p.passage_ids for p in gold] == [p.passage_ids for p in made]
    assert [p.support_id for p in gold] == [p.support_id for p in made], "clusters of one draw"
    assert [p.answer_loss for p in gold] != [p.answer_loss for p in made]
    assert "summary.md" in files_under(tmp_path)


def test_an_interrupted_comparison_makes_nothing_twice(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_demonstrations, "propose", proposals)
    first = made_pool(parts, "popqa", 4, tmp_path)
    assert len(first[0]) == 4

    def again(*_: object) -> Iterator[Draft]:
        raise AssertionError("made again")

    monkeypatch.setattr(made_demonstrations, "propose", again)
    assert made_pool(parts, "popqa", 4, tmp_path) == first
    with pytest.raises(AssertionError, match="made again"):
        made_pool(parts, "popqa", 5, tmp_path)


def test_too_few_made_demonstrations(
    parts: Assembly, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [Draft(Passage("p", "x"), "what is it ?", "Lima")]
    monkeypatch.setattr(made_demonstrations, "propose", lambda *_: iter(one))
    with pytest.raises(RaggdError, match="only 1 demonstrations could be made from"):
        run_compare(parts, ["popqa"], tmp_path)
    with pytest.raises(RaggdError, match="unknown benchmark 'popqq'"):
        run_compare(parts, ["popqq"], tmp_path)
