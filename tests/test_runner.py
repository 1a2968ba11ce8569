"""The runner: one question set for all methods, part files, resuming, support per task or query."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import tiny
from raggd.assembly import Assembly
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import scored_questions, support_pool
from raggd.evaluation import runner
from raggd.evaluation.flops import counted_costs
from raggd.evaluation.runner import CellRun, Item, Task
from raggd.methods import answering
from raggd.methods.answering import answer_batch, render
from raggd.methods.base import Adapted, Method
from raggd.methods.plain import FewShot
from raggd.records import RunRecord, SupportSet
from raggd.settings import Settings, changed, load_settings
from tiny import losses_of, random_update
from workflow_fixtures import (
    HELD_OUT,
    TEST,
    StubRetriever,
    files_under,
    settings_text,
    write_data,
)


@dataclass
class Spy:
    """Adapts to each support set by an update of its own, and remembers what it was given."""

    base: BaseAdapter
    name: str = "spy"
    hashes: dict[str, str] = field(default_factory=lambda: {"predictor": "one"})
    calls: list[list[str]] = field(default_factory=list)

    adapts = True

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        self.calls.append([support.id for support in supports])
        return [
            Adapted(self.base, random_update(self.base, int(support.id[:6], 16), size=0.5))
            for support in supports
        ]


def run_task(
    task: Task,
    methods: Sequence[Method],
    backbone: Backbone,
    settings: Settings,
    folder: Path,
    done: Callable[[int], None] = lambda _: None,
) -> list[RunRecord]:
    """All draws of a task with every method, and the records, as `StudyRunner` makes them."""
    runs = [CellRun(task, method, backbone, settings, folder) for method in methods]
    parts = [[run.part(draw, done) for run in runs] for draw in range(len(task.draws))]
    records = [run.record(own) for run, own in zip(runs, zip(*parts, strict=True), strict=True)]
    for record in records:
        path = folder / f"{task.benchmark}-{record.method}.json"
        path.write_text(record.to_json() + "\n", encoding="utf-8")
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> Settings:
    path = tmp_path / "settings.toml"
    path.write_text(settings_text(data), encoding="utf-8")
    return load_settings(path)


def task_of(settings: Settings, name: str = "nq") -> Task:
    parts = Assembly(settings)
    parts.__dict__["retriever"] = StubRetriever()  # where a cached property keeps its value
    return runner.task_of(parts, name)


def lasting(record: RunRecord) -> dict[str, Any]:
    """A record without what differs from run to run."""
    return {k: v for k, v in asdict(record).items() if k not in {"cost", "created", "command"}}


def stop_after(calls: int) -> Callable[[str, int, int], None]:
    """A progress that presses Ctrl-C."""
    left = iter(range(calls - 1))

    def progress(*_: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return progress


def thing(item: Item) -> str:
    """What a question asks about."""
    return item.question.text.removeprefix("what lies near the ").removesuffix(" ?")


def never(*_: object, **__: object) -> Any:
    raise AssertionError("this was to come from a part file")


def saying(patch: pytest.MonkeyPatch, say: Callable[..., list[str]]) -> None:
    """Let the runner's answers be what `say` makes of the prompts; losses stay what they are."""
    original = runner.answer_rows

    def answer_rows(backbone: Backbone, rows: Any, prompts: Any, *limits: Any, **more: Any) -> Any:
        _, losses = original(backbone, rows, prompts, *limits, **more)
        return say(losses, backbone, prompts), losses

    patch.setattr(runner, "answer_rows", answer_rows)


def test_every_method_sees_the_same(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    task = task_of(settings)
    first, second = Spy(base, "first"), Spy(base, "second")
    methods: list[Method] = [
        tiny.query_only(),
        tiny.vanilla_rag(),
        tiny.base_only(base),
        first,
        second,
    ]
    records = run_task(task, methods, tiny_backbone, settings, tmp_path)
    assert [record.method for record in records] == [m.name for m in methods]
    for part in ("question_id", "passage_ids", "support_id"):
        seen = {tuple(getattr(p, part) for p in record.predictions) for record in records}
        assert len(seen) == 1, part
    items = [item for draw in task.draws for item in draw]
    assert [p.question_id for p in records[0].predictions] == [i.question.id for i in items]
    assert all(len(p.passage_ids) == 2 for p in records[0].predictions)
    assert first.calls == second.calls == [[draw[0].support.id] for draw in task.draws]
    assert len({r.hashes["questions"] for r in records}) == 1
    answers = {tuple(p.answer for p in record.predictions) for record in records}
    assert len(answers) > 2, "the methods are told apart by their answers"


def test_answers_stay_with_their_questions(
    settings: Settings,
    tiny_backbone: Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Batches go by length; the record goes by question. An echo shows who was asked what.
    def echo(_: Any, backbone: Backbone, prompts: Sequence[Any]) -> list[str]:
        return [backbone.tokenizer.decode(prompt.tokens) for prompt in prompts]

    saying(monkeypatch, echo)
    task = task_of(settings)
    (record,) = run_task(task, [tiny.query_only()], tiny_backbone, settings, tmp_path)
    items = [item for draw in task.draws for item in draw]
    for item, prediction in zip(items, record.predictions, strict=True):
        assert thing(item) in prediction.answer


def test_scores_take_the_best_answer_and_losses_the_gold_one(
    settings: Settings,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = changed(settings, "evaluation", answer_loss=True, questions=3, draws=1)
    task = task_of(settings)
    (draw,) = task.draws
    said = [draw[0].question.answers[1], f"the {draw[1].question.answers[0]}!", "nothing"]

    def answer(_: Any, backbone: Backbone, prompts: Sequence[Any]) -> list[str]:
        asked = [backbone.tokenizer.decode(prompt.tokens) for prompt in prompts]
        numbers = [next(i for i, item in enumerate(draw) if thing(item) in text) for text in asked]
        return [said[number] for number in numbers]

    saying(monkeypatch, answer)
    (record,) = run_task(task, [tiny.base_only(base)], tiny_backbone, settings, tmp_path)
    assert [p.answer for p in record.predictions] == said
    assert [(p.em, p.f1) for p in record.predictions] == [(1.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    for item, prediction in zip(draw, record.predictions, strict=True):
        adapted = Adapted(base)
        prompt = render(
            tiny_backbone,
            adapted,
            item.question.text,
            item.passages,
            limit=256,
            answer=item.gold.answer,
        )
        alone = float(losses_of(tiny_backbone, [adapted], [prompt])[0])
        assert prediction.answer_loss == pytest.approx(alone, abs=1e-4)


def test_a_second_run_computes_nothing(
    settings: Settings,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, spy = task_of(settings), Spy(base)
    told: list[int] = []
    first = run_task(task, [spy], tiny_backbone, settings, tmp_path)
    assert len(spy.calls) == len(task.draws) == 2
    monkeypatch.setattr(runner, "answer_rows", never)
    again = run_task(task, [spy], tiny_backbone, settings, tmp_path, told.append)
    assert len(spy.calls) == 2
    assert [lasting(r) for r in again] == [lasting(r) for r in first]
    assert [r.cost for r in again] == [r.cost for r in first]
    assert sum(told) == task.size


@pytest.mark.parametrize("what", ["setting", "weights", "backbone setting", "answers", "evidence"])
def test_a_change_is_computed_anew(
    what: str, settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    task, spy = task_of(settings), Spy(base)
    run_task(task, [spy], tiny_backbone, settings, tmp_path)
    other_task, other, hashes = task, settings, spy.hashes
    if what == "setting":
        other = changed(settings, "evaluation", max_answer_tokens=3)
    if what == "backbone setting":
        other = changed(settings, "backbone", context_tokens=200)
    if what == "weights":
        hashes = {"predictor": "two"}
    if what == "evidence":
        other_task = replace(task, retriever="another")
    if what == "answers":
        item = task.draws[0][0]
        question = replace(item.question, answers=("Quito", "Oslo"))
        item = replace(item, question=question)
        other_task = replace(task, draws=((item, *task.draws[0][1:]), task.draws[1]))
    repeated = Spy(base, hashes=hashes)
    run_task(other_task, [repeated], tiny_backbone, other, tmp_path)
    assert len(repeated.calls) == (1 if what == "answers" else 2)


@pytest.mark.parametrize("at", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("support", ["task", "query"])
def test_interrupted_and_resumed_equals_uninterrupted(
    at: int,
    support: str,
    settings: Settings,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    tmp_path: Path,
) -> None:
    settings = changed(settings, "evaluation", support=support, batch=1 if support == "task" else 2)
    task = task_of(settings)

    def methods() -> list[Method]:
        return [tiny.vanilla_rag(), Spy(base)]

    whole = run_task(task, methods(), tiny_backbone, settings, tmp_path / "whole")
    cut = tmp_path / "cut"
    steps = 12 if support == "task" else 6
    if at <= steps:
        with pytest.raises(KeyboardInterrupt):
            run_task(task, methods(), tiny_backbone, settings, cut, stop_after(at))
    kept = files_under(cut)
    assert not [name for name in kept if not name.startswith("parts/") or "/." in name]
    for name in kept:
        json.loads((cut / name).read_text(encoding="utf-8"))
    resumed = run_task(task, methods(), tiny_backbone, settings, cut)
    assert [lasting(r) for r in resumed] == [lasting(r) for r in whole]
    assert files_under(cut) == files_under(tmp_path / "whole")


def test_one_support_per_draw_or_per_question(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    per_task = task_of(settings)
    assert [len({i.support.id for i in draw}) for draw in per_task.draws] == [1, 1]
    settings = changed(settings, "evaluation", support="query", batch=4)
    per_query = task_of(settings)
    (draw,) = per_query.draws
    assert len({item.support.id for item in draw}) == len(draw) == 6
    spy = Spy(base)
    (record,) = run_task(per_query, [spy], tiny_backbone, settings, tmp_path)
    assert [len(call) for call in spy.calls] == [4, 2]
    assert {name for call in spy.calls for name in call} == {i.support.id for i in draw}
    assert [p.support_id for p in record.predictions] == [i.support.id for i in draw]


def test_in_a_batch_each_question_has_its_own_update(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    settings = changed(settings, "evaluation", support="query", batch=6)
    task, spy = task_of(settings), Spy(base)
    (record,) = run_task(task, [spy], tiny_backbone, settings, tmp_path)
    items = task.draws[0]
    shared = spy.adapt([items[0].support])[0]
    own, wrong = [], []
    for item in items:
        adapted = spy.adapt([item.support])[0]
        prompt = render(
            tiny_backbone, adapted, item.question.text, item.passages, limit=256, reserve=4
        )
        own += answer_batch(tiny_backbone, [adapted], [prompt], 4)
        wrong += answer_batch(tiny_backbone, [shared], [prompt], 4)
    assert own != wrong, "the updates must change answers, or this test shows nothing"
    assert [p.answer for p in record.predictions] == own


def test_a_record_is_written_whole_and_reads_back(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    settings = changed(settings, "evaluation", answer_loss=True)
    task = task_of(settings)
    records = run_task(task, [tiny.vanilla_rag(), Spy(base)], tiny_backbone, settings, tmp_path)
    for record in records:
        path = tmp_path / f"nq-{record.method}.json"
        assert RunRecord.from_json(path.read_text(encoding="utf-8")) == record
    spied = records[1]
    assert spied.hashes["backbone"] == tiny_backbone.fingerprint
    assert spied.hashes["predictor"] == "one"
    assert spied.settings == settings.model_dump()
    assert {"python", "raggd", "torch", "transformers"} <= set(spied.versions)


def test_of_a_method_that_adapts_in_its_own_way_nothing_is_counted(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    task = task_of(settings)
    (record,) = run_task(task, [Spy(base)], tiny_backbone, settings, tmp_path)
    answers = {p.question_id: p.answer for p in record.predictions}
    assert counted_costs(answers, CellRun(task, Spy(base), tiny_backbone, settings, tmp_path)) == {}


def test_a_damaged_part_file_is_made_again(
    settings: Settings, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    task = task_of(settings)
    run_task(task, [tiny.vanilla_rag()], tiny_backbone, settings, tmp_path)
    part = tmp_path / "parts" / "nq-001-vanilla-rag.json"
    whole = json.loads(part.read_text(encoding="utf-8"))
    for damaged in (b"", part.read_bytes()[:50], b"\0" * 50):  # as a loss of power leaves them
        part.write_bytes(damaged)
        run_task(task, [tiny.vanilla_rag()], tiny_backbone, settings, tmp_path)
        again = json.loads(part.read_text(encoding="utf-8"))
        assert again["predictions"] == whole["predictions"]


def test_what_does_not_adapt_costs_nothing(
    settings: Settings, tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    methods: list[Method] = [tiny.query_only(), tiny.vanilla_rag(), tiny.base_only(base), Spy(base)]
    records = run_task(task_of(settings), methods, tiny_backbone, settings, tmp_path)
    *plain, spied = (record.cost["adapt_ms"] for record in records)
    assert plain == [0.0, 0.0, 0.0]
    assert spied > 0
    assert all(record.cost["answer_ms"] > 0 for record in records)


def test_demonstrations_in_the_prompt_are_read_once_for_a_draw(
    settings: Settings,
    tiny_backbone: Backbone,
    base: BaseAdapter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = changed(settings, "evaluation", answer_loss=True, batch=2)
    task = task_of(settings)
    read: list[int] = []
    original = answering.read_prefix

    def spy(backbone: Backbone, tokens: tuple[int, ...]) -> Any:
        read.append(len(tokens))
        return original(backbone, tokens)

    monkeypatch.setattr(answering, "read_prefix", spy)
    methods: list[Method] = [FewShot("base-few-shot", base), tiny.base_only(base)]
    plain, bare = run_task(task, methods, tiny_backbone, settings, tmp_path / "plain")
    assert read == [], "the openings of these short prompts are not worth it"
    monkeypatch.setattr(answering, "SHORTEST_OPENING", 60)
    opened, same = run_task(task, methods, tiny_backbone, settings, tmp_path / "opened")
    assert len(read) == len(task.draws), "one per draw, whatever the number of batches"
    assert [asdict(p) for p in same.predictions] == [asdict(p) for p in bare.predictions]
    for one, other, without in zip(
        opened.predictions, plain.predictions, bare.predictions, strict=True
    ):
        assert one.answer == other.answer
        assert one.answer_loss == pytest.approx(other.answer_loss, abs=1e-4)
        assert one.answer_loss != pytest.approx(without.answer_loss, abs=1e-3)
    assert opened.cost["adapt_ms"] > plain.cost["adapt_ms"], "what reading them takes is counted"
    answers = {p.question_id: p.answer for p in opened.predictions}

    def counted(task: Task) -> dict[str, float]:
        run = CellRun(task, methods[0], tiny_backbone, settings, tmp_path)
        return counted_costs(answers, run)

    shared = counted(task)
    own = counted(task_of(changed(settings, "evaluation", support="query")))
    assert own["adapt_flops"] == 0 < shared["adapt_flops"], "a single prompt is all answering"
    assert own["answer_flops"] > shared["answer_flops"]


def test_held_out_pool_is_never_scored(settings: Settings, data: Path) -> None:
    settings = changed(settings, "evaluation", questions=0, draws=5)
    task = task_of(settings, "popqa")
    pool = {question.id for question in support_pool(data, "popqa")}
    scored = {question.id for question in scored_questions(data, "popqa")}
    asked = {item.question.id for draw in task.draws for item in draw}
    shown = {d.id for draw in task.draws for item in draw for d in item.support.demonstrations}
    assert asked == scored
    assert shown <= pool
    assert not pool & asked
    assert len(pool) + len(asked) == HELD_OUT
    assert task.split == "test"


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    draws=st.integers(1, 15),
    questions=st.integers(0, TEST + 3),
    seed=st.integers(0, 5),
    support=st.sampled_from(["task", "query"]),
)
def test_draws_deal_every_question_once(
    settings: Settings, draws: int, questions: int, seed: int, support: str
) -> None:
    settings = changed(
        settings, "evaluation", draws=draws, questions=questions, seed=seed, support=support
    )
    task = task_of(settings)
    dealt = [item.question.id for draw in task.draws for item in draw]
    count = min(questions or TEST, TEST)
    assert len(dealt) == len(set(dealt)) == count == task.size
    sizes = [len(draw) for draw in task.draws]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == (min(draws, count) if support == "task" else 1)
    again = task_of(settings)
    assert again == task
