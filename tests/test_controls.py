"""The controls: what they are given instead, and that the runner tells them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from raggd.adaptation.predictors.base import load_task_means, save_task_means
from raggd.adaptation.targets import Targets
from raggd.adaptation.training import task_means
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.data.benchmarks import files_in, support_pool
from raggd.files import load_tensors, save_tensors
from raggd.methods.base import Adapted, Control, Item
from raggd.methods.controls import other_passages, other_support, with_other_passages, with_supports
from raggd.methods.plain import FewShot, TaskMean
from raggd.records import Demonstration, Passage, Question, RaggdError, SupportSet
from raggd.retrieval.evidence import is_answerable
from raggd.settings import load_settings
from workflow_fixtures import StubRetriever, write_data


def item(number: int, passages: Sequence[Passage], answer: str = "Lima") -> Item:
    question = Question(f"q{number}", f"where is {number} ?", (answer,), "nq")
    gold = Demonstration(question.id, question.text, tuple(passages), answer)
    support = SupportSet("nq", (tiny.demonstration(1, "salt", "sea"),))
    return Item(question, tuple(passages), gold, support)


def about(number: int, text: str = "nothing of note") -> Passage:
    return Passage(f"p{number}", text)


@dataclass
class Echo:
    """A method that remembers the support sets it was given."""

    name: str = "rag-gd"
    hashes: dict[str, str] = field(default_factory=lambda: {"predictor": "hash"})
    seen: list[str] = field(default_factory=list)

    adapts = True

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        self.seen += [support.task for support in supports]
        return [Adapted() for _ in supports]


def test_irrelevant_passages_are_those_of_the_next_question_that_can_serve() -> None:
    items = [
        item(0, [about(0), about(1)]),
        item(1, [about(1), about(2)]),  # shares a passage with the question before
        item(2, [about(3, "all about Lima in Peru")]),  # holds the answer
        item(3, [about(4), about(5)]),
    ]
    control = Control("irrelevant-passages", Echo(), with_other_passages)
    arranged = control.arrange(items)
    assert [[p.id for p in i.passages] for i in arranged] == [
        ["p4", "p5"], ["p4", "p5"], ["p4", "p5"], ["p0", "p1"],
    ]  # fmt: skip
    for before, after in zip(items, arranged, strict=True):
        assert replace(after, passages=before.passages) == before
    with pytest.raises(RaggdError, match=r"no other question whose passages.*'q0'"):
        other_passages(items[:1], 0)
    with pytest.raises(RaggdError, match="among 2"):
        control.arrange(items[:2])


def test_an_answer_that_all_passages_hold_does_not_stop_the_control() -> None:
    own = item(0, [about(0)])
    common = replace(own, question=replace(own.question, answers=("note",)))
    others = [item(1, [about(0)]), item(2, [about(2)]), item(3, [about(3)])]
    assert all(is_answerable(common.question, other.passages) for other in others)
    assert [p.id for p in other_passages([common, *others], 0)] == ["p2"]


@given(st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=3), min_size=2, max_size=8))
def test_irrelevant_passages_never_hold_the_questions_own(rows: list[set[int]]) -> None:
    items = [item(i, [about(number) for number in sorted(row)]) for i, row in enumerate(rows)]
    for number, row in enumerate(rows):
        if all(row & other for other in rows):
            with pytest.raises(RaggdError):
                other_passages(items, number)
        elif any(not row & other for i, other in enumerate(rows) if i != number):
            found = {int(p.id[1:]) for p in other_passages(items, number)}
            assert not found & row
            assert found in rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def parts_of(data: Path, seed: int = 0) -> Any:
    """What a control needs of a run: where benchmarks are read from, and what finds passages."""
    told = [f"evaluation.seed={seed}", "retrieval.top_k=2"]
    settings = load_settings(assignments=told)
    return SimpleNamespace(source=str(data), settings=settings, retriever=StubRetriever())


def sets(count: int, task: str = "nq") -> list[SupportSet]:
    shown = [
        (tiny.demonstration(i, "salt", "sea"), tiny.demonstration(i + 99, "red bird", "tree"))
        for i in range(count)
    ]
    return [SupportSet(task, pair) for pair in shown]


def test_a_shuffled_support_is_of_another_task_and_always_the_same(data: Path) -> None:
    assert list(files_in(data)) == ["nq", "triviaqa", "popqa"]
    others = [other_support(s, parts_of(data)) for s in sets(40)]
    assert Counter(s.task for s in others).keys() == {"triviaqa", "popqa"}
    assert len({s.id for s in others}) > 8, "several draws of each task"
    pools = {n: {q.id for q in support_pool(data, n)} for n in files_in(data)}
    for support in others:
        assert len(support.demonstrations) == 2
        assert {d.id for d in support.demonstrations} <= pools[support.task]
        assert all(len(d.passages) == 2 for d in support.demonstrations)
    assert others == [other_support(s, parts_of(data)) for s in sets(40)]
    assert others != [other_support(s, parts_of(data, seed=1)) for s in sets(40)]
    for support in sets(5, "popqa"):
        assert other_support(support, parts_of(data)).task != "popqa"


def test_shuffling_needs_a_second_task(data: Path, tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "nq").symlink_to(data / "qa" / "nq")
    with pytest.raises(RaggdError, match="another task than 'nq'"):
        other_support(sets(1)[0], parts_of(tmp_path))


def test_shuffling_replaces_the_support_and_nothing_else() -> None:
    first, second = sets(2)
    items = [replace(item(i, [about(i)]), support=s) for i, s in enumerate([first, second, first])]
    other = partial(with_supports, choose=lambda s: SupportSet("popqa", s.demonstrations[::-1]))
    inner = Echo()
    control = Control("shuffled-support", inner, other)
    arranged = control.arrange(items)
    assert [i.support.task for i in arranged] == ["popqa"] * 3
    assert arranged[0].support is arranged[2].support
    for before, after in zip(items, arranged, strict=True):
        assert replace(after, support=before.support) == before
    control.adapt([i.support for i in arranged[:2]])
    assert inner.seen == ["popqa", "popqa"]
    assert control.hashes == inner.hashes


def test_few_shot_shows_each_support_set(base: BaseAdapter) -> None:
    supports = sets(2)
    bare, adapted = FewShot("vanilla-few-shot"), FewShot("base-few-shot", base)
    assert [a.shown for a in bare.adapt(supports)] == [s.demonstrations for s in supports]
    assert all(a.base is None and a.update is None for a in bare.adapt(supports))
    assert all(a.base is base and a.reads_evidence for a in adapted.adapt(supports))
    assert not isinstance(bare, Control)
    assert not isinstance(tiny.base_only(base), Control)


def store(base: BaseAdapter, tasks: Sequence[str], seed: int) -> Targets:
    rows = [tiny.random_update(base, seed + i).vector() for i in range(len(tasks))]
    names = tuple(f"{seed}-{i}" for i in range(len(tasks)))
    return Targets(
        torch.stack(rows).bfloat16(), torch.zeros(len(tasks), 2, 4), tuple(tasks), names,
        tuple((name,) for name in names), base.fingerprint, f"store {seed}",
    )  # fmt: skip


def test_task_means_are_averages_over_all_stores(
    tiny_backbone: Backbone, base: BaseAdapter, tmp_path: Path
) -> None:
    one, two = store(base, ["nq", "popqa", "nq"], 0), store(base, ["popqa", "nq"], 50)
    means = task_means(base, [one, two])
    assert list(means) == ["nq", "popqa"]
    rows = torch.stack([one.vectors[0], one.vectors[2], two.vectors[1]]).float()
    torch.testing.assert_close(means["nq"], rows.mean(0))
    path = tmp_path / "task-mean.safetensors"
    save_task_means(path, base, means)
    found = load_task_means(path, base)
    assert torch.equal(found["nq"].vector(), means["nq"].bfloat16().float())
    method = TaskMean({task: Adapted(base, mean) for task, mean in found.items()}, {})
    nq, popqa = sets(1)[0], sets(1, "popqa")[0]
    updates = [a.update for a in method.adapt([nq, popqa, nq])]
    assert updates[0] is updates[2]
    assert not torch.equal(updates[0].vector(), updates[1].vector())
    with pytest.raises(RaggdError, match="task 'musique' has no mean update, only nq, popqa"):
        method.adapt(sets(1, "musique"))
    other = tiny.random_base(tiny_backbone, seed=9)
    with pytest.raises(RaggdError, match=f"{base.fingerprint}.*{other.fingerprint}"):
        load_task_means(path, other)
    with pytest.raises(RaggdError, match=f"{base.fingerprint}.*{other.fingerprint}"):
        task_means(other, [one])
    tensors, header = load_tensors(path)
    save_tensors(path, {"nq": tensors["nq"][:-1]}, header)
    with pytest.raises(RaggdError, match="do not fit"):
        load_task_means(path, base)
    save_tensors(path, tensors, {"kind": "another"})
    with pytest.raises(RaggdError, match="is not a raggd task means"):
        load_task_means(path, base)
