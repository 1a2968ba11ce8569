"""The store of targets: resumed to the same bytes, refused when foreign, and its views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from raggd.adaptation import targets as target_store
from raggd.adaptation.targets import (
    SHARD,
    Targets,
    TargetStore,
    denoised,
    load_targets,
    split_held_out,
    targets_of,
)
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.files import file_hash, load_tensors, save_tensors, write_json
from raggd.progress import Progress, silent
from raggd.records import RaggdError, SupportSet
from raggd.settings import TargetSettings

ONE = TargetSettings(steps=1, learning_rate=0.01, demonstrations=2, max_tokens=200)
FIVE = ONE.model_copy(update={"steps": 5})


def many(supports: list[SupportSet]) -> list[SupportSet]:
    """Seven sets, each with another content: three shards."""
    shown = [d for s in supports for d in s.demonstrations]
    pairs = [(0, 1), (2, 3), (4, 5), (1, 2), (3, 4), (5, 0), (0, 2)]
    return [
        SupportSet("nq" if i % 2 else "trivia", (shown[a], shown[b]))
        for i, (a, b) in enumerate(pairs)
    ]


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: file_hash(path) for path in sorted(folder.iterdir())}


class _StopError(Exception):
    pass


def build_targets(*made_from: Any, progress: Progress = silent) -> str:
    store = TargetStore(*made_from)
    store.build_all(progress)
    return store.identity


def stop_after(done: int) -> Progress:
    def progress(label: str, at: int, total: int | None) -> None:
        assert total == 7
        if at >= done:
            raise _StopError

    return progress


@pytest.mark.parametrize("stop", [SHARD, 2 * SHARD])
def test_a_store_that_was_stopped_becomes_the_same_bytes(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    supports: list[SupportSet],
    tmp_path: Path,
    stop: int,
) -> None:
    sets = many(supports)
    identity = build_targets(tiny_backbone, base, sets, ONE, tmp_path / "whole")
    with pytest.raises(_StopError):
        build_targets(tiny_backbone, base, sets, ONE, tmp_path / "c", progress=stop_after(stop))
    assert hashes(tmp_path / "c") != hashes(tmp_path / "whole")
    assert len(load_targets(tmp_path / "c")) == stop
    assert build_targets(tiny_backbone, base, sets, ONE, tmp_path / "c") == identity
    assert hashes(tmp_path / "c") == hashes(tmp_path / "whole")
    assert len(hashes(tmp_path / "c")) == 1 + 3


def test_killed_in_the_middle_of_a_shard(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    supports: list[SupportSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = many(supports)
    build_targets(tiny_backbone, base, sets, ONE, tmp_path / "whole")

    def die(_: object, path: str, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", die)
        with pytest.raises(KeyboardInterrupt):
            build_targets(tiny_backbone, base, sets, ONE, tmp_path / "c")
    assert list(hashes(tmp_path / "c")) == ["store.json"]
    build_targets(tiny_backbone, base, sets, ONE, tmp_path / "c")
    assert hashes(tmp_path / "c") == hashes(tmp_path / "whole")


def test_finished_shards_are_not_computed_again(
    tiny_backbone: Backbone,
    base: BaseAdapter,
    supports: list[SupportSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build_targets(tiny_backbone, base, supports, ONE, tmp_path)

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(target_store, "targets_of", fail)
    build_targets(tiny_backbone, base, supports, ONE, tmp_path)


def test_the_store_holds_targets_states_and_ids(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    sets = many(supports)
    identity = build_targets(tiny_backbone, base, sets, ONE, tmp_path)
    stored = load_targets(tmp_path)
    assert (stored.identity, stored.base) == (identity, base.fingerprint)
    assert stored.tasks == tuple(s.task for s in sets)
    assert stored.support_ids == tuple(s.id for s in sets)
    assert stored.demonstration_ids == tuple(tuple(d.id for d in s.demonstrations) for s in sets)
    update, states = targets_of(tiny_backbone, base, sets[SHARD : 2 * SHARD], ONE)
    update = update[ONE.steps]
    assert torch.equal(stored.vectors[SHARD : 2 * SHARD], update.vector().bfloat16())
    assert torch.equal(stored.states[SHARD : 2 * SHARD], states)
    part = stored.take([4, 0])
    assert part.tasks == (stored.tasks[4], stored.tasks[0])
    assert torch.equal(part.vectors, stored.vectors[[4, 0]])
    assert torch.equal(part.states, stored.states[[4, 0]])
    assert part.demonstration_ids == (stored.demonstration_ids[4], stored.demonstration_ids[0])


def test_a_store_of_another_run_is_refused(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    build_targets(tiny_backbone, base, supports, ONE, tmp_path)
    other = tiny.random_base(tiny_backbone, seed=8)
    plain = tiny.make_backbone(template=None)
    changes = [
        (tiny_backbone, base, supports, FIVE),
        (tiny_backbone, base, supports[::-1], ONE),
        (tiny_backbone, other, supports, ONE),
        (plain, base, supports, ONE),  # the same weights, other prompts
    ]
    for backbone, adapter, sets, configured in changes:
        with pytest.raises(RaggdError, match="targets of another run"):
            build_targets(backbone, adapter, sets, configured, tmp_path)


def test_stores_that_are_missing_empty_or_damaged(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    with pytest.raises(RaggdError, match=r"no targets in .*raggd targets"):
        load_targets(tmp_path / "absent")
    build_targets(tiny_backbone, base, supports, ONE, tmp_path)
    (shard,) = tmp_path.glob("shard-*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-10])
    with pytest.raises(RaggdError, match="truncated or damaged"):
        load_targets(tmp_path)
    for damaged in (whole[:-10], b""):  # the same command makes it again
        shard.write_bytes(damaged)
        build_targets(tiny_backbone, base, supports, ONE, tmp_path)
        assert shard.read_bytes() == whole
    tensors, metadata = load_tensors(shard)
    save_tensors(shard, tensors, {**metadata, "identity": "other"})
    with pytest.raises(RaggdError, match="belongs to another run"):
        load_targets(tmp_path)
    shard.unlink()
    with pytest.raises(RaggdError, match="holds no targets yet"):
        load_targets(tmp_path)
    for content in ({}, [], "text"):
        write_json(tmp_path / "store.json", content)
        with pytest.raises(RaggdError, match="store"):
            load_targets(tmp_path)
        with pytest.raises(RaggdError, match=r"store|another run"):
            build_targets(tiny_backbone, base, supports, ONE, tmp_path)


# ---- views of the store


def made(tasks: list[str], questions: list[tuple[str, ...]], width: int = 3) -> Targets:
    """Targets with recognisable vectors: 1, 2, 4, 8, ... times a fixed direction."""
    n = len(tasks)
    vectors = torch.tensor([[float(2**i)] * width for i in range(n)]).bfloat16()
    ids = tuple(f"s{i}" for i in range(n))
    return Targets(vectors, torch.zeros(n, 2, 4), tuple(tasks), ids, tuple(questions), "b", "i")


def test_denoised_targets_are_means_over_the_other_sets() -> None:
    targets = made(
        ["nq", "nq", "nq", "nq", "trivia"],
        [("a", "b"), ("c", "d"), ("b", "e"), ("f", "g"), ("h", "i")],
    )
    view = denoised(targets)
    # sets 0 and 2 share question b, so neither enters the other's mean; trivia has no others
    wanted = [(2 + 8) / 2, (1 + 4 + 8) / 3, (2 + 8) / 2, (1 + 2 + 4) / 3, 16]
    got = view.vectors[:, 0].float()
    torch.testing.assert_close(got, torch.tensor(wanted), atol=0, rtol=2**-8)
    assert not torch.allclose(got, targets.vectors[:, 0].float())
    assert torch.equal(view.vectors[:, 0], view.vectors[:, 2])
    assert (view.support_ids, view.tasks) == (targets.support_ids, targets.tasks)
    assert targets.vectors[0, 0] == 1  # a view: the targets themselves stay


letters = st.lists(st.sampled_from("abcdefghijklmnop"), min_size=1, max_size=3).map(tuple)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("xyz"), letters), min_size=1, max_size=25),
       st.floats(0, 0.9))  # fmt: skip
def test_held_out_sets_share_no_question_with_training(
    sets: list[tuple[str, tuple[str, ...]]], share: float
) -> None:
    targets = made([t for t, _ in sets], [q for _, q in sets])
    kept, held = split_held_out(targets, share)
    assert not set(kept.support_ids) & set(held.support_ids)
    seen = {q for questions in kept.demonstration_ids for q in questions}
    assert not seen & {q for questions in held.demonstration_ids for q in questions}
    for task in set(targets.tasks):
        size = targets.tasks.count(task)
        assert held.tasks.count(task) == (max(1, round(share * size)) if share else 0)
    again = split_held_out(targets, share)
    assert [part.support_ids for part in again] == [kept.support_ids, held.support_ids]
    if share == 0:
        assert kept.support_ids == targets.support_ids


def test_what_is_held_out_depends_on_the_sets_not_on_their_order() -> None:
    n = 40
    targets = made(["nq"] * n, [(f"q{i}",) for i in range(n)])
    turned = targets.take(range(n)[::-1])
    _, held = split_held_out(targets, 0.2)
    _, other = split_held_out(turned, 0.2)
    assert len(held) == 8
    assert set(held.support_ids) == set(other.support_ids)
    assert held.support_ids != targets.support_ids[:8]  # chosen, not simply the first


def test_a_store_header_says_what_is_in_it(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    build_targets(tiny_backbone, base, supports, ONE, tmp_path)
    header = json.loads((tmp_path / "store.json").read_text())
    assert header["sets"] == 3
    described = json.loads(load_tensors(next(tmp_path.glob("shard-*")))[1]["sets"])
    assert [d["task"] for d in described] == [s.task for s in supports]
    assert described[0]["demonstrations"] == ["d1", "d2"]


def test_a_store_of_several_k_gives_each_and_names_what_is_missing(
    tiny_backbone: Backbone, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    both = ONE.model_copy(update={"keep": [3]})
    identity = build_targets(tiny_backbone, base, supports, both, tmp_path)
    one, three = load_targets(tmp_path), load_targets(tmp_path, 3)
    assert one.identity == load_targets(tmp_path, 1).identity == identity
    assert three.identity != identity
    assert not torch.equal(one.vectors, three.vectors)
    updates, _ = targets_of(tiny_backbone, base, supports, both)
    assert torch.equal(three.vectors, updates[3].vector().bfloat16())
    with pytest.raises(RaggdError, match=r"holds no vectors-k5 .*vectors-k1, vectors-k3"):
        load_targets(tmp_path, 5)
