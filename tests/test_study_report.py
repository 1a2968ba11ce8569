"""From a study's folder to tables, figures and the page; finished or not."""

from __future__ import annotations

import csv
import json
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from raggd.methods.spec import FAMILIES, NAMED, by_family
from raggd.methods.spec import METHODS as REGISTRY
from raggd.report.contrasts import (
    EVIDENCE,
    all_pairs,
    average,
    contrasts,
    evidence_gains,
    only,
    sample,
)
from raggd.report.grid import ScoredAnswer, StudyBlock, load_grid, subsets
from raggd.report.study_tables import (
    above_base,
    average_table,
    benchmark_table,
    contrast_table,
    cost_table,
    paper_table,
)
from raggd.report.tables import Bold, Table
from raggd.study import alignment
from raggd.study.plan import load_study
from raggd.study.run import StudyRunner
from sampled import bootstrap_interval, paired_bootstrap
from study_fixtures import ALL, Quiet, World, read_records
from workflow_fixtures import run_cli


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished")
    StudyRunner(load_study(world.study()), out, Quiet()).run()
    return out


def made_up(
    scores: dict[str, np.ndarray], name: str = "one", benchmarks: tuple[str, ...] = ("nq", "popqa")
) -> StudyBlock:
    """A block from (benchmarks, questions) tables of 0 and 1; five draws per benchmark."""
    answers = {
        method: {
            benchmark: tuple(
                ScoredAnswer(f"{benchmark}:{i}", 0, i % 5, em, em, 1 - em, i % 3 > 0)
                for i, em in enumerate(row)
            )
            for benchmark, row in zip(benchmarks, table, strict=True)
        }
        for method, table in scores.items()
    }
    costs = {m: {"adapt_ms": 10.0, "answer_ms": 5.0} for m in scores}
    return StudyBlock(name, "bm25", tuple(scores), benchmarks, answers, costs, 400)


def bold_rows(table: Table, column: int = 0) -> set[str]:
    return {row[column] for row in table.rows if any(isinstance(cell, Bold) for cell in row)}


def test_the_grid_holds_what_the_records_hold(finished: Path) -> None:
    grid, records = load_grid(finished), read_records(finished)
    assert (grid.planned, grid.missing) == (24, ())
    assert [b.name for b in grid.blocks] == ["tiny, bm25", "tiny, again"]
    for block in grid.blocks:
        assert block.methods == ALL
        for method in ALL:
            for name in ("nq", "popqa"):
                record = records[f"tiny/{block.retriever}/seed-0/{name}-{method}.json"]
                kept = block.answers[method][name]
                assert [a.em for a in kept] == [p.em for p in record.predictions]
                assert [a.loss for a in kept] == [p.answer_loss for p in record.predictions]
                assert [a.draw for a in kept] == [0, 0, 0, 1, 1, 1]
    assert grid.blocks[0].costs["tt-sgd"]["adapt_ms"] > 0


def test_an_unfinished_study_shows_the_draws_that_most_methods_have(
    finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cut"
    shutil.copytree(finished, out)
    for path in out.glob("tiny/bm25/seed-0/*.json"):
        path.unlink()  # no record: parts alone
    parts = out / "tiny/bm25/seed-0/parts"
    for method in ("rag-gd", "tt-sgd"):  # these have one draw of two
        (parts / f"nq-001-{method}.json").unlink()
    (parts / "popqa-000-base.json").unlink()
    (parts / "popqa-001-base.json").unlink()
    grid = load_grid(out)
    assert len(grid.missing) == 12
    block = grid.blocks[0]
    # four methods with both draws show more than six methods with one
    assert set(block.answers["base"]) == {"nq"}
    assert {m for m in ALL if block.has(m, ["nq"])} == set(ALL) - {"rag-gd", "tt-sgd"}
    assert {m for m in ALL if block.has(m, ["popqa"])} == set(ALL) - {"base"}
    assert [len(block.answers["vanilla-rag"][n]) for n in ("nq", "popqa")] == [6, 6]
    for method in ("base", "mean-update", "query-only"):
        (parts / f"nq-001-{method}.json").unlink()
    block = load_grid(out).blocks[0]
    # now six methods with one draw do
    assert {m for m in ALL if block.has(m, ["nq"])} == set(ALL)
    assert len(block.answers["vanilla-rag"]["nq"]) == 3
    report = run_cli("report", out, "--resamples", "200", "--json").json()
    assert (report["cells"], report["complete"], len(report["missing"])) == (24, 12, 12)
    page = (out / "report" / "study.html").read_text(encoding="utf-8")
    assert "12 of 24 cells are not finished yet" in page
    assert "tiny/bm25/seed-0/nq-tt-sgd.json" in page


def test_averages_and_differences_are_those_of_the_statistics() -> None:
    rng = np.random.default_rng(0)
    base = (rng.random((2, 60)) < 0.4).astype(float)
    better = np.maximum(base, rng.random((2, 60)) < 0.3)
    block = made_up({"base": base, "rag-gd": better})
    shown = average(block, "base", "em")
    groups = ["nq"] * 60 + ["popqa"] * 60
    assert shown is not None
    assert shown.mean == pytest.approx(100 * base.mean())
    by_question = sample([block], ("base", "rag-gd"), block.benchmarks, "em")
    assert by_question is not None
    assert by_question.groups == groups
    assert set(by_question.clusters[:60]) == {(f"nq 0 {draw}",) for draw in range(5)}
    expected = bootstrap_interval(
        by_question.column("base"),
        groups=groups,
        clusters=by_question.clusters,
        macro=True,
        resamples=400,
    ).scaled(100)
    limits = (shown.mean, shown.low, shown.high)
    assert limits == pytest.approx((expected.mean, expected.low, expected.high))
    found = {(c.subset, c.metric): c for c in contrasts([block])}
    assert {name for name, _ in found} == {"all", "training tasks", "held-out tasks"}
    contrast = found["all", "em"]
    assert (contrast.method, contrast.other, contrast.n) == ("rag-gd", "base", 120)
    pair = paired_bootstrap(
        by_question.column("rag-gd"),
        by_question.column("base"),
        groups=groups,
        clusters=by_question.clusters,
        macro=True,
        resamples=400,
    )
    assert contrast.difference == pair.scaled(100)
    assert contrast.p_named == pair.p_value
    held = found["held-out tasks", "em"]
    assert held.difference.mean == pytest.approx(100 * (better[1] - base[1]).mean())
    assert held.n == 60


def test_pooled_differences_count_a_question_once() -> None:
    rng = np.random.default_rng(1)
    base = (rng.random((2, 40)) < 0.4).astype(float)
    better = np.maximum(base, rng.random((2, 40)) < 0.4)
    one = made_up({"base": base, "rag-gd": better})
    again = [one, replace(one, backbone="two"), replace(one, backbone="three")]
    pooled = {(c.scope, c.metric): c for c in contrasts(again) if c.subset == "all"}
    alone = pooled["one, bm25", "em"]
    together = pooled["pooled", "em"]
    assert (together.n, together.blocks) == (80, 3)
    # the same answers three times over are no more evidence than once
    assert together.difference == alone.difference
    # a block without one of the methods does not take part
    lacking = replace(one, backbone="four", answers={"base": one.answers["base"]})
    lacking = replace(lacking, methods=("base",))
    fewer = {c.scope: c for c in contrasts([one, again[1], lacking]) if c.metric == "em"}
    assert fewer["pooled"].blocks == 2


def test_every_pair_is_compared_once() -> None:
    pairs = all_pairs(ALL)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == 15
    assert {pair for pair in NAMED if set(pair) <= set(ALL)} <= set(pairs)
    assert list(subsets(["nq"])) == [("all", ("nq",)), ("training tasks", ("nq",))]


def test_bold_only_where_significant() -> None:
    rng = np.random.default_rng(2)
    base = (rng.random((2, 80)) < 0.3).astype(float)
    much = np.maximum(base, rng.random((2, 80)) < 0.5)
    worse = np.minimum(base, rng.random((2, 80)) < 0.5)
    same = base.copy()
    same[0, 0] = 1 - same[0, 0]
    scores = {"base": base, "tt-sgd": worse, "rag-gd": much, "mean-update": same}
    block = made_up(scores)
    found = contrasts([replace(block, resamples=2000)])
    assert {m for _, m, metric in above_base(found) if metric == "em"} == {"rag-gd"}
    table = benchmark_table([block], found)
    methods = [row[1] for row in table.rows]
    assert bold_rows(table, 1) == {"RAG-GD"}
    assert [column.heading for column in table.columns][2:4] == ["NQ", "PopQA*"]
    row = table.rows[methods.index("RAG-GD")]
    assert row[2] == f"{100 * much[0].mean():.1f} / {100 * much[0].mean():.1f}"
    assert "\\textbf{" in table.to_latex()
    overview = average_table([block], found)
    assert bold_rows(overview) == {"RAG-GD"}
    differences = contrast_table(found, "all", "caption")
    assert bold_rows(differences) == {
        "RAG-GD minus Base adapter",
        "RAG-GD minus TT-SGD",
        "RAG-GD minus Mean update",
        "TT-SGD minus Base adapter",
    }


def test_costs_per_query_and_per_task() -> None:
    block = made_up({"base": np.ones((2, 10)), "tt-sgd": np.ones((2, 10))})
    table = cost_table(block)
    row = dict(zip([c.heading for c in table.columns], table.rows[1], strict=True))
    # ten questions in five draws: two share an adaptation of 10 ms
    assert (row["Per query ms"], row["Per task ms"]) == ("15.0", "10.0")
    assert row["Adapt / TT-SGD"] == "1.0"
    assert row["Adapt GFLOP"] == "–"


def test_gains_stand_beside_the_papers() -> None:
    rng = np.random.default_rng(3)
    base = (rng.random((2, 100)) < 0.3).astype(float)
    sgd = np.maximum(base, rng.random((2, 100)) < 0.3)
    half = np.where(rng.random((2, 100)) < 0.5, sgd, base)
    block = made_up({"base": base, "tt-sgd": sgd, "rag-gd": half})
    table = paper_table(contrasts([block]))
    row = next(row for row in table.rows if row[0] == "RAG-GD")
    assert row[1:5] == ["+2.72 / +3.15", "+2.55 / +2.57", "+0.97 / +0.36", "+1.68 / +1.20"]
    gain = 100 * (half - base).mean()
    assert row[5] == f"{gain:+.2f} / {gain:+.2f}"
    assert next(row for row in table.rows if row[0] == "Prompt tuning")[3:] == ["–", "–", "–"]


def test_the_papers_column_of_all_blocks_leaves_out_what_only_some_have() -> None:
    rng = np.random.default_rng(5)
    base, better = (rng.random((2, 2, 60)) < 0.4).astype(float)
    both = made_up({"base": base, "rag-gd": better, "tt-sgd": better})
    alone = replace(made_up({"base": base, "rag-gd": better}), backbone="three")
    found = contrasts([both, replace(both, backbone="two"), alone])
    assert {c.blocks for c in found if c.scope == "pooled"} == {2, 3}
    rows = {row[0]: row[-1] for row in paper_table(found).rows}
    assert rows["TT-SGD"] == "–" != rows["RAG-GD"]


def test_a_question_under_several_seeds_counts_once() -> None:
    first = [ScoredAnswer(f"q{i}", 0, i % 2, float(i == 0), 0.0, None, None) for i in range(4)]
    second = [ScoredAnswer(f"q{i}", 1, i % 2, 1.0, 0.0, None, None) for i in range(2, 6)]
    answers = {"base": {"nq": first + second}}
    block = StudyBlock("one", "bm25", ("base",), ("nq",), answers, {"base": {}})
    given = sample([block], ["base"], ["nq"], "em")
    assert given is not None
    assert given.values[:, 0].tolist() == [1.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert given.clusters[2] == ("nq 0 0", "nq 1 0")
    assert sample([block], ["base"], ["nq"], "loss") is None


def test_gain_by_evidence_takes_questions_apart() -> None:
    base, better = np.zeros((2, 30)), np.zeros((2, 30))
    better[:, 1::3] = 1  # only where i % 3 == 1, which is answerable
    block = made_up({"base": base, "rag-gd": better})
    assert len(only(block, answerable=False).answers["base"]["nq"]) == 10
    gains = {c.subset: c.difference.mean for c in evidence_gains([block]) if c.metric == "em"}
    assert gains == {EVIDENCE[True]: pytest.approx(50), EVIDENCE[False]: pytest.approx(0)}


def test_the_report_of_a_finished_study(finished: Path, tmp_path: Path) -> None:
    ran = run_cli("report", finished, "--out", tmp_path, "--resamples", "300", "--json").json()
    assert (ran["cells"], ran["complete"], ran["missing"]) == (24, 24, [])
    assert {d["scope"] for d in ran["differences"]} == {"tiny, bm25", "tiny, again", "pooled"}
    for name in ("table1", "table2", "differences", "cost-tiny-bm25", "evidence"):
        for ending in ("md", "tex", "csv"):
            assert (tmp_path / f"{name}.{ending}").stat().st_size > 100, (name, ending)
    with (tmp_path / "numbers.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    records = read_records(finished)
    for row in rows:
        if row["benchmark"] == "popqa" and row["metric"] == "em":
            path = f"tiny/{row['retriever']}/seed-0/popqa-{row['method']}.json"
            scores = [p.em for p in records[path].predictions]
            assert float(row["mean"]) == pytest.approx(100 * np.mean(scores))
            assert int(row["n"]) == len(scores) == 6
    assert {row["method"] for row in rows} == set(ALL)
    page = (tmp_path / "study.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!#)", page), "nothing from outside"
    assert page.count("<svg") == len(list(tmp_path.glob("*.svg"))) >= 4
    for svg in tmp_path.glob("*.svg"):
        ElementTree.fromstring(svg.read_text(encoding="utf-8"))
    assert 'data-items="#pairs-1 tbody tr"' in page
    assert "not finished yet" not in page


def test_alignment_of_a_study(
    world: World, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "compile_layers", lambda _: nullcontext())
    out = tmp_path / "study"
    shutil.copytree(finished, out)
    file = world.study()
    found = run_cli("study", file, "--out", out, "--alignment", "--json").json()["tiny"]
    assert set(found) == {"training tasks", "held-out tasks"}
    assert set(found["held-out tasks"]) == {"rag-gd", "mean-update"}
    record = json.loads((out / "tiny" / "alignment.json").read_text(encoding="utf-8"))
    trained = record["found"]["training tasks"]["rag-gd"]
    assert len(trained["by_set"]) == 5
    assert {entry["task"] for entry in trained["by_set"]} == {"nq"}
    assert np.shape(trained["by_place"]) == (3, 3)
    assert trained["cosine"] == pytest.approx(np.mean(trained["by_place"]), abs=1e-3)
    run_cli("report", out, "--resamples", "100", "--json").json()
    page = (out / "report" / "study.html").read_text(encoding="utf-8")
    assert "Predicted and true update by place, tiny" in page
    assert (out / "report" / "alignment-tiny.svg").is_file()
    table = (out / "report" / "alignment.md").read_text(encoding="utf-8")
    assert "held-out tasks" in table


def test_what_is_no_study_is_refused(tmp_path: Path, finished: Path) -> None:
    assert "holds no study" in run_cli("report", tmp_path).refusal()
    shutil.copy(finished / "study.json", tmp_path)
    assert "nothing was answered yet" in run_cli("report", tmp_path).refusal()
    folder = tmp_path / "tiny/bm25/seed-0"
    folder.mkdir(parents=True)
    (folder / "nq-base.json").write_text('{"predictions": [{"em": 1}]}', encoding="utf-8")
    said = run_cli("report", tmp_path).refusal()
    assert "nq-base.json (or a part of it) is not what a study writes" in said


def test_every_method_has_its_place_in_the_figures() -> None:
    shown = [method for family in FAMILIES for method in by_family(family)]
    assert len(shown) == len(set(shown))
    assert set(shown) == set(REGISTRY)
