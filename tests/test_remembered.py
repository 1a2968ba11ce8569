"""Updates remembered by content: equal to computing them, and only for what they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from raggd.core.low_rank import BaseAdapter
from raggd.methods import remembered
from raggd.methods.base import Adapted
from raggd.methods.remembered import Remembered
from raggd.records import SupportSet, content_id
from tiny import random_base, random_update


class Counting:
    """A method that makes another update for every support set and counts its calls."""

    name, adapts = "counting", True

    def __init__(self, base: BaseAdapter, **changes: object) -> None:
        self.base, self.changes = base, changes
        self.hashes = {"base": base.fingerprint}
        self.batches: list[int] = []

    def adapt(self, supports: Sequence[SupportSet]) -> list[Adapted]:
        self.batches.append(len(supports))
        return [
            Adapted(self.base, random_update(self.base, int(s.id[:6], 16)), **self.changes)  # type: ignore[arg-type]
            for s in supports
        ]


@pytest.fixture
def method(base: BaseAdapter) -> Counting:
    return Counting(base)


def vectors(found: Sequence[Adapted]) -> torch.Tensor:
    return torch.stack([a.update.vector() for a in found if a.update is not None])


def test_only_what_is_new_is_computed(method: Counting, supports: list[SupportSet]) -> None:
    wanted = vectors(method.adapt(supports))
    assert not torch.equal(wanted[0], wanted[1])
    method.batches.clear()
    known = Remembered(method, "x")
    first, second = known.adapt(supports[:1])[0], known.adapt(supports[:1])[0]
    assert first is second
    assert torch.equal(vectors(known.adapt(supports)), wanted)
    assert torch.equal(vectors(known.adapt(supports[::-1])), wanted.flip(0))
    twice = known.adapt([supports[0], supports[0]])
    assert twice[0] is twice[1]
    assert method.batches == [1, 2]
    assert known.computed == 3


def test_another_process_finds_the_updates(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    wanted = vectors(Remembered(method, "x", tmp_path, method.base).adapt(supports))
    other = Counting(method.base)
    found = Remembered(other, "x", tmp_path, method.base).adapt(supports)
    assert torch.equal(vectors(found), wanted)
    assert other.batches == []
    assert all(a.base is method.base for a in found)


def test_other_settings_weights_or_demonstrations_are_not_mixed_up(
    method: Counting, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    Remembered(method, "x", tmp_path, base).adapt(supports[:1])
    for changed in (Remembered(method, "y", tmp_path, base), Remembered(method, "x", tmp_path)):
        changed.adapt(supports[:1])
        assert changed.computed == 1
    tampered = Counting(base)
    tampered.hashes = {"base": "other"}
    again = Remembered(tampered, "x", tmp_path, base)
    again.adapt(supports[:1])
    assert again.computed == 1


def test_a_damaged_or_foreign_file_is_made_again(
    method: Counting, supports: list[SupportSet], tmp_path: Path, tiny_backbone: object
) -> None:
    Remembered(method, "x", tmp_path, method.base).adapt(supports[:1])
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = Remembered(method, "x", tmp_path, method.base)
    again.adapt(supports[:1])
    assert again.computed == 1
    assert file.read_bytes() == whole
    foreign = random_base(tiny_backbone, seed=77)  # type: ignore[arg-type]
    strange = Remembered(method, "x", tmp_path, foreign)
    strange.adapt(supports[:1])
    assert strange.computed == 1


def test_a_shown_demonstration_is_not_stored_as_an_update(
    base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    method = Counting(base, shown=supports[0].demonstrations)
    Remembered(method, "x", tmp_path, base).adapt(supports[:1])
    assert not list(tmp_path.glob("*"))


def test_memory_and_folder_are_bounded(
    method: Counting, supports: list[SupportSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "IN_MEMORY", 2)
    monkeypatch.setattr(remembered, "ON_DISK", 1)
    known = Remembered(method, content_id("x"), tmp_path, method.base)
    for support in supports:
        known.adapt([support])
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    known.adapt(supports[1:])
    assert known.computed == 3
    known.adapt(supports[:1])
    assert known.computed == 4
