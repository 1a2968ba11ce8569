"""`raggd evaluate` and `raggd demo` are small studies: scores, names, cases, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.data.questions import read_demonstrations
from raggd.evaluation.audit import STATES
from raggd.evaluation.forms import infer_form
from raggd.evaluation.runner import Item, Task, task_of
from raggd.records import (
    Demonstration,
    Passage,
    Prediction,
    Question,
    RaggdError,
    RunRecord,
    SupportSet,
)
from raggd.report.own import own_report
from raggd.settings import Settings, changed, load_settings
from raggd.study.evaluate import (
    choose_cases,
    own_task,
    run_demo,
    run_evaluate,
    run_own,
    usual_methods,
)
from raggd.study.run import read_record
from study_fixtures import ALL, World, make_world
from workflow_fixtures import files_under, parts_with, run_cli, settings_text, write_lines

RUN = "tiny/bm25/seed-0"


@pytest.fixture(scope="module")
def world(frozen_backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(frozen_backbone, tmp_path_factory.mktemp("world"))


@pytest.fixture
def settings(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("RAGGD_CACHE", str(world.root / "cache"))
    path = tmp_path / "settings.toml"
    path.write_text(settings_text(world.data, weights=str(world.weights)), encoding="utf-8")
    return changed(load_settings(path), "evaluation", answer_loss=True)


@pytest.fixture
def parts(settings: Settings, tiny_backbone: Backbone) -> Assembly:
    return parts_with(settings, tiny_backbone)


def test_evaluate_scores_every_method_and_keeps_what_is_done(
    parts: Assembly, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int | None]] = []
    out = tmp_path / "out"
    parts.progress = lambda *step: told.append(step)
    result, report = run_evaluate(parts, ALL, out)
    assert result["n"] == 12
    assert result["benchmarks"] == ["nq", "triviaqa"]
    assert set(result["methods"]) == set(ALL)
    assert all(set(s) == {"em", "f1", "adapt_ms", "answer_ms"} for s in result["methods"].values())
    assert len(report.tables) == 3
    losses = result["answer_loss"]
    assert losses["base"] != losses["vanilla-rag"]
    assert losses["tt-sgd"] != losses["base"]
    assert losses["rag-gd"] != losses["mean-update"]
    assert told[-1][1:] == (12 * len(ALL), 12 * len(ALL))
    for name in ALL:
        assert read_record(out / RUN / f"nq-{name}.json").settings == parts.settings.model_dump()
    assert {"summary.md", "summary.csv", "study.json"} <= set(files_under(out))
    part = out / RUN / "parts" / "nq-000-tt-sgd.json"
    before = part.stat().st_mtime_ns
    again, _ = run_evaluate(parts, ALL, out)
    assert part.stat().st_mtime_ns == before
    assert again == result


def test_other_questions_in_the_same_folder_replace_the_first(
    parts: Assembly, tmp_path: Path
) -> None:
    run_evaluate(parts, ["base"], tmp_path / "out")
    fewer = changed(parts.settings, "evaluation", questions=3, benchmarks=["nq"])
    result, _ = run_evaluate(parts_with(fewer, parts.backbone), ["base"], tmp_path / "out")
    assert (result["n"], result["benchmarks"]) == (3, ["nq"])


@pytest.mark.parametrize(
    ("methods", "benchmarks", "message"),
    [
        (["base", "rag-gp"], ["nq"], "did you mean 'rag-gd'"),
        ([], ["nq"], "no method is named"),
        (["base"], ["nq", "hotpoqa"], "did you mean 'hotpotqa'"),
        (["base"], [], "no benchmark is named"),
    ],
)
def test_wrong_names_are_refused_before_any_work(
    methods: list[str], benchmarks: list[str], message: str, settings: Settings, tmp_path: Path
) -> None:
    parts = Assembly(changed(settings, "evaluation", benchmarks=benchmarks))
    with pytest.raises(RaggdError, match=message):
        run_evaluate(parts, methods, tmp_path / "out")
    assert not {"source", "retriever", "backbone"} & set(vars(parts)), "nothing was loaded"
    assert files_under(tmp_path / "out") == []


def test_names_given_twice_count_once(parts: Assembly, tmp_path: Path) -> None:
    twice = changed(parts.settings, "evaluation", benchmarks=["nq", "nq"], questions=2)
    again = parts_with(twice, parts.backbone)
    result, _ = run_evaluate(again, ["base", "base"], tmp_path / "out")
    assert result["n"] == 2
    assert list(result["methods"]) == ["base"]


def test_a_task_of_ones_own_beside_the_benchmarks(
    world: World, settings: Settings, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    lines = (world.data / "qa" / "popqa" / "test.jsonl").read_text(encoding="utf-8")
    own = world.data / "qa" / "mine"
    own.mkdir(exist_ok=True)
    (own / "test.jsonl").write_text(lines, encoding="utf-8")
    named = changed(settings, "evaluation", benchmarks=["mine"])
    result, _ = run_evaluate(parts_with(named, tiny_backbone), ["base", "rag-gd"], tmp_path / "out")
    assert (result["n"], result["benchmarks"]) == (6, ["mine"])
    wrong = changed(settings, "evaluation", benchmarks=["mines"])
    with pytest.raises(RaggdError, match="unknown benchmark 'mines': did you mean 'mine'"):
        run_evaluate(parts_with(wrong, tiny_backbone), ["base"], tmp_path / "other")


def test_what_is_compared_where_nothing_is_named(parts: Assembly) -> None:
    usual = usual_methods(parts)
    assert usual == ["vanilla-rag", "base", "mean-update", "tt-sgd", "rag-gd"]
    assert parts.adapting in usual, "the product's default is among them"


# --- one's own questions


def own_lines(world: World, path: Path, count: int, start: int = 0) -> Path:
    lines = (world.data / "qa" / "popqa" / "test.jsonl").read_text("utf-8").splitlines()
    given = [json.loads(line) for line in lines[start : start + count]]
    pairs = [{"question": x["question"], "answer": x["golden_answers"][0]} for x in given]
    return write_lines(path, pairs)


def test_own_questions_are_cross_validated(world: World, parts: Assembly, tmp_path: Path) -> None:
    questions = own_lines(world, tmp_path / "my questions.jsonl", 12)
    out = tmp_path / "out"
    result, report = run_own(parts, questions, None, [], out)
    assert (result["n"], result["support"]) == (12, "4 folds")
    assert list(result["methods"]) == ["base", "base-few-shot", "mean-update", "rag-gd"]
    record = read_record(out / RUN / "my-questions-rag-gd.json")
    task = own_task("x", read_demonstrations(questions), [], parts)
    asked = [[item.question.id for item in draw] for draw in task.draws]
    assert sorted(x for draw in asked for x in draw) == sorted(
        p.question_id for p in record.predictions
    )
    for draw, own in zip(task.draws, asked, strict=True):
        shown = {d.id for d in draw[0].support.demonstrations}
        assert len(shown) == 2
        assert not shown & set(own), "nothing is asked that was shown"
    assert f"{result['form']}\n{result['advice']}" == report.advice
    again, _ = run_own(parts, questions, None, [], out)
    assert again == result


def test_own_questions_with_demonstrations_apart(
    world: World, parts: Assembly, tmp_path: Path
) -> None:
    questions = own_lines(world, tmp_path / "asked.jsonl", 8)
    shown = own_lines(world, tmp_path / "shown.jsonl", 4, start=6)  # two of them are asked too
    result, _ = run_own(parts, questions, shown, ["base", "rag-gd"], tmp_path / "out")
    assert (result["n"], result["support"]) == (6, "2 support sets")
    assert set(result["minus_base"]) == {"rag-gd"}
    with pytest.raises(RaggdError, match=r"every question of .* is also a demonstration"):
        run_own(parts, shown, shown, ["base"], tmp_path / "out")
    with pytest.raises(RaggdError, match="4 answered questions are too few"):
        run_own(parts, None, shown, ["base"], tmp_path / "out")


def test_a_folder_of_sets_is_one_table(world: World, parts: Assembly, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    for number, name in enumerate(("one", "two")):
        own_lines(world, folder / f"{name}.questions.jsonl", 4, start=6 * number)
        own_lines(world, folder / f"{name}.examples.jsonl", 2, start=6 * number + 4)
    out = tmp_path / "out"
    result, report = run_own(parts, folder, None, ["base", "rag-gd"], out)
    assert result["n"] == 8
    assert list(result["sets"]) == ["one", "two"]
    assert [row[0] for row in report.tables[0].rows] == ["one", "two", "all"]
    single = result["sets"]["one"]["methods"]["base"]["content"]["mean"]
    assert report.tables[0].rows[0][2].endswith(f"/ {single * 4 / 100:g}")
    assert (out / "one" / "summary.md").is_file()
    with pytest.raises(RaggdError, match=r"it is to hold NAME\.questions\.jsonl"):
        run_own(parts, out, None, ["base"], tmp_path / "x")


def own_records(
    answers: dict[str, list[str]], gold: str = "OSLO"
) -> tuple[list[RunRecord], dict[str, Question]]:
    n = len(next(iter(answers.values())))
    records = [
        RunRecord(
            method, "own", "own", "tiny", "stub", 0,
            tuple(Prediction(f"q{i}", a, 0.0, 0.0, support_id=f"s{i % 3}")
                  for i, a in enumerate(given)),
        )
        for method, given in answers.items()
    ]  # fmt: skip
    return records, {f"q{i}": Question(f"q{i}", "where?", (gold,), "own") for i in range(n)}


def test_advice_follows_form_and_content() -> None:
    shown = [
        Demonstration(str(i), "where?", (), a) for i, a in enumerate(("ROME", "BERN", "PARIS"))
    ]
    forms = dict.fromkeys(("s0", "s1", "s2"), infer_form(shown))
    plain = {"base": ["Oslo"] * 24, "rag-gd": ["OSLO"] * 24, "mean-update": ["Oslo"] * 24}
    report = own_report(*own_records(plain), forms, "rag-gd")
    sentence, advice = report.advice.split("\n")
    assert sentence == "Form that the examples show: in capitals, a short answer."
    assert advice.startswith("Adapt, with rag-gd: +50.0 points")
    assert "(form 100 for 0, content 100 for 100)" in advice
    base = report.result["methods"]["base"]
    assert (base["form"]["mean"], base["content"]["mean"], base["exact"]["mean"]) == (0, 100, 0)
    same = {name: ["Oslo"] * 24 for name in plain}
    assert "Do not adapt: nothing" in own_report(*own_records(same), forms, "rag-gd").advice
    one = {"base": ["Oslo"] * 24, "rag-gd": ["OSLO", *["Oslo"] * 23]}
    advice = own_report(*own_records(one), forms, "rag-gd").advice
    assert "Do not count on adapting yet" in advice
    assert "would show a gain of that size" in advice
    blind = {"base": ["Oslo"] * 24, "mean-update": ["OSLO"] * 24}
    assert "reads no demonstrations" in own_report(*own_records(blind), forms, "rag-gd").advice


def test_refusals_are_told_apart_and_no_form_is_said() -> None:
    passage = (Passage("p", "Rome is a city."),)
    answers = ("Rome", "a city", "not in the documents")
    shown = [Demonstration(str(i), "where?", passage, a) for i, a in enumerate(answers)]
    form = infer_form(shown)
    assert form.refusals == ("not in the documents",)
    given = {"base": ["Oslo"] * 24, "rag-gd": ["Not in the documents."] * 24}
    records, questions = own_records(given, "Oslo")
    refused = Question("q0", "who?", ("not in the documents",), "own")
    forms = dict.fromkeys(("s0", "s1", "s2"), form)
    report = own_report(records, questions | {"q0": refused}, forms, "rag-gd")
    found = report.result["methods"]["rag-gd"]["refusal"]
    assert (found["recall"], found["wrongly"]) == (100, 100)
    assert report.result["methods"]["base"]["refusal"]["recall"] == 0
    assert "100 % / 100 %" in report.tables[0].to_text()
    nothing = infer_form([Demonstration(a, "where?", (), a) for a in ("a\nb", "c", "d")])
    report = own_report(records, questions, forms | {"s1": nothing}, "rag-gd")
    assert report.advice.startswith("The examples share no form that could be judged")
    assert "form" not in report.result["methods"]["base"]


def test_the_command_on_ones_own_questions(world: World, tmp_path: Path) -> None:
    questions = own_lines(world, tmp_path / "mine.jsonl", 12)
    settings = tmp_path / "settings.toml"
    text = settings_text(world.data, str(world.model), str(world.weights))
    settings.write_text(text, encoding="utf-8")
    shared = ("evaluate", "--questions", questions, "--settings", settings, "--out", tmp_path / "o")
    ran = run_cli(*shared, "--methods", "base,rag-gd")
    assert ran.code == 0, ran.err
    last = ran.out.strip().splitlines()[-2:]
    assert last[0].startswith(("Form", "The examples share no form"))
    assert last[1].startswith(("Adapt, with", "Do not"))
    again = run_cli(*shared, "--methods", "base,rag-gd", "--json").json()
    assert [again["form"], again["advice"]] == last
    for found in again["methods"].values():
        for part in ("form", "content", "exact"):
            assert 0 <= found[part]["low"] <= found[part]["high"] <= 100
    record = next((tmp_path / "o").rglob("mine-base.json"))
    assert "which no record holds" in run_cli("replay", record).refusal()


def test_ones_own_questions_to_a_backbone_without_weights(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGGD_CACHE", str(world.root / "cache"))
    settings = tmp_path / "settings.toml"
    settings.write_text(settings_text(world.data, str(world.model), "shipped"), encoding="utf-8")
    questions = own_lines(world, tmp_path / "mine.jsonl", 12)
    shared = ("evaluate", "--questions", questions, "--settings", settings, "--out", tmp_path / "o")
    result = run_cli(*shared, "--json").json()
    assert set(result["methods"]) == {"base", "base-few-shot", "base-examples"}
    refused = run_cli(*shared, "--methods", "rag-gd").refusal()
    needs = "rag-gd needs predictor.safetensors (made by `raggd train predictor`) for this backbone"
    assert needs in refused


# --- cases


def _case_data(changes: dict[str, float]) -> tuple[list[Task], list[RunRecord]]:
    """One task whose questions gain as told from the base adapter to RAG-GD."""
    shown = Demonstration("d", "a question", (), "an answer")
    support = SupportSet("nq", (shown,))
    passage = Passage("p", "text", "title")
    items = [
        Item(Question(name, f"text {name}", ("x",), "nq"), (passage,), shown, support)
        for name in changes
    ]
    task = Task("nq", "test", (tuple(items[::2]), tuple(items[1::2])), "stub")

    def record(method: str, benchmark: str, scores: dict[str, float]) -> RunRecord:
        found = [Prediction(name, f"{method} {name}", 0.0, f1) for name, f1 in scores.items()]
        return RunRecord(method, benchmark, "test", "tiny", "stub", 0, tuple(found))

    records = [
        record("base", "nq", dict.fromkeys(changes, 0.5)),
        record("rag-gd", "nq", {name: 0.5 + gain for name, gain in changes.items()}),
        record("rag-gd", "triviaqa", dict.fromkeys(changes, 0.5)),  # the same ids elsewhere
    ]
    return [task], records


@pytest.mark.parametrize(
    ("better", "worse", "same", "expected"),
    [
        (9, 9, 9, (4, 4, 4)),
        (9, 1, 20, (4, 1, 7)),
        (0, 0, 20, (0, 0, 12)),
        (20, 5, 0, (8, 4, 0)),
        (2, 20, 1, (2, 9, 1)),
        (1, 1, 1, (1, 1, 1)),
    ],
)
def test_cases_show_what_changed_first(
    better: int, worse: int, same: int, expected: tuple[int, int, int]
) -> None:
    changes = {f"b{i}": 0.4 for i in range(better)}
    changes |= {f"w{i}": -0.4 for i in range(worse)} | {f"s{i}": 0.0 for i in range(same)}
    cases = choose_cases(*_case_data(changes), 12, "rag-gd")
    kinds = [case["question"].text.removeprefix("text ")[0] for case in cases]
    assert tuple(kinds.count(kind) for kind in "bws") == expected
    assert kinds[0] == next(kind for kind, n in zip("bws", expected, strict=True) if n)
    assert len({case["question"].id for case in cases}) == len(cases)
    for case in cases:
        name = case["question"].text.removeprefix("text ")
        assert case["predictions"]["rag-gd"].answer == f"rag-gd {name}"
        assert case["predictions"]["base"].answer == f"base {name}"
        assert case["support"] is not None
        assert case["support"].demonstrations[0].answer == "an answer"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_more_cases_than_asked_for(count: int) -> None:
    changes = {f"q{i}": gain for i, gain in enumerate((0.1, -0.1, 0.0, 0.2, -0.2, 0.0))}
    assert len(choose_cases(*_case_data(changes), count, "rag-gd")) == count


def test_the_demo_writes_table_and_page(parts: Assembly, tmp_path: Path) -> None:
    few = changed(parts.settings, "evaluation", questions=3, draws=1)
    parts, out = parts_with(few, parts.backbone), tmp_path / "out"
    result, report = run_demo(parts, out)
    assert set(result) == {"n", "seconds", "methods"}
    assert result["n"] == 6
    assert list(result["methods"]) == usual_methods(parts)
    assert len(report.tables) >= 2
    page = (out / "demo.html").read_text(encoding="utf-8")
    for name in ("nq", "triviaqa"):
        for item in task_of(parts, name).draws[0]:
            assert item.question.text in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert {"summary.md", "summary.csv"} <= set(files_under(out))


# --- what reading is worth


def test_the_command_audits_a_method_and_refuses_a_constant_that_reads(
    world: World, tmp_path: Path
) -> None:
    settings, out = tmp_path / "settings.toml", tmp_path / "out"
    text = settings_text(world.data, str(world.model), str(world.weights))
    settings.write_text(text, encoding="utf-8")
    shared = ("audit", "--settings", settings, "--set", "evaluation.draws=2", "--out", out)
    found = run_cli(*shared, "--constant", "mean-update", "--json").json()
    assert found["audited"] == "rag-gd"
    assert set(found["means"]) == {"nq", "triviaqa"}
    assert set(found["worth"]["all"]) == {*STATES} - {"right"}
    record = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert set(record["hashes"]) == {"rag-gd", "mean-update"}
    assert record["worth"] == found["worth"]
    assert "name a constant" in run_cli(*shared, "--constant", "rag-gd").refusal()
    assert "did you mean 'rag-gd'" in run_cli(*shared, "--method", "rag-dg").refusal()
    sets = tmp_path / "sets.jsonl"
    assert run_cli(*shared, "--dump", sets, "--json").json()["sets"] == 8
    lines = [json.loads(line) for line in sets.read_text(encoding="utf-8").splitlines()]
    assert [line["role"] for line in lines] == [
        *["nq"] * 2,
        *["triviaqa"] * 2,
        *["random-text"] * 4,
    ]
