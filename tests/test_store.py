"""The store: support sets, and their adapted states, equal to computing them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raggd.backbone.batch import read_prefix
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, load_update
from raggd.files import CacheWarning, load_tensors, save_tensors
from raggd.methods.base import Adapted
from raggd.methods.store import Store, read_state, size_of, state_key
from raggd.records import RaggdError, SupportSet
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


def adapt(
    store: Store, method: Counting, supports: Sequence[SupportSet], identity: str = "x"
) -> list[Adapted]:
    return store.adapt(method, supports, identity, method.base)


# --- support sets


def test_a_set_comes_back_as_it_was(supports: list[SupportSet], tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.names() == []
    for support in supports:
        stored = store.add(support)
        assert stored.created > 0
        assert Store(tmp_path).stored(support.id) == stored == store.add(support)
        assert stored.support == support
    assert store.names() == sorted(s.id for s in supports)
    assert Store(tmp_path / "none").names() == []


@pytest.mark.parametrize("name", ["../x", "0" * 15, "0" * 17, "G" * 16, "", "..", "0" * 16 + "\n"])
def test_a_name_that_is_no_id_opens_no_file(name: str, tmp_path: Path) -> None:
    for opens in (Store(tmp_path).stored, Store(tmp_path).remove):
        with pytest.raises(RaggdError, match="is not the id of a support set"):
            opens(name)


def test_damaged_and_missing_sets(supports: list[SupportSet], tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RaggdError, match="no support set 'aaaaaaaaaaaaaaaa'"):
        store.stored("a" * 16)
    store.add(supports[0])
    path = store.file(supports[0].id)
    value = json.loads(path.read_text())
    value["demonstrations"][0]["answer"] = "something else"
    path.write_text(json.dumps(value))
    with pytest.raises(RaggdError, match="it was changed"):
        store.stored(supports[0].id)
    endless = json.dumps(value | {"created": 0}).replace('"created": 0', '"created": 1e999')
    for wrong in ("[]", '{"task": "x"}', '{"task": "x", "demonstrations": [1]}', "{", endless):
        path.write_text(wrong)
        with pytest.raises(RaggdError, match=r"is not a support set|is not valid JSON"):
            store.stored(supports[0].id)
        assert supports[0].id in store
        store.add(supports[0])  # anew
        assert store.stored(supports[0].id).support == supports[0]
    path.write_text("{")
    with pytest.raises(RaggdError, match="no support set 'aaaaaaaaaaaaaaaa'"):
        store.remove(supports[0].id, "a" * 16)
    assert path.is_file(), "none goes if one is missing"
    store.remove(supports[0].id)
    assert supports[0].id not in store
    assert "../x" not in store
    path.mkdir()
    for opens in (store.stored, store.remove):
        with pytest.raises(RaggdError, match="no support set"):
            opens(supports[0].id)


def test_a_state_that_another_process_removes_meanwhile(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    (tmp_path / "gone.state.safetensors").symlink_to(tmp_path / "nowhere")
    adapt(store, method, supports)
    assert len(list(tmp_path.glob("*.*.safetensors"))) == len(supports) + 1


def test_a_set_takes_its_states_along(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.add(supports[0])
    adapt(store, method, supports)
    assert len(list(tmp_path.glob("*.safetensors"))) == len(store) == len(supports)
    store.remove(supports[0].id)
    assert not list(tmp_path.glob(f"{supports[0].id}*"))
    assert len(list(tmp_path.glob("*.safetensors"))) == len(store) == len(supports) - 1
    with pytest.raises(RaggdError, match="no support set"):
        store.remove(supports[0].id)


# --- adapted states


def test_only_what_is_new_is_computed(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    wanted = vectors(method.adapt(supports))
    assert not torch.equal(wanted[0], wanted[1])
    method.batches.clear()
    store = Store(tmp_path)
    first, second = (adapt(store, method, supports[:1])[0] for _ in range(2))
    assert first is second
    assert torch.equal(vectors(adapt(store, method, supports)), wanted)
    assert torch.equal(vectors(adapt(store, method, supports[::-1])), wanted.flip(0))
    twice = adapt(store, method, [supports[0], supports[0]])
    assert twice[0] is twice[1]
    assert method.batches == [1, 2]
    assert store.computed == 3


def test_a_folder_that_cannot_be_written_is_told_and_done_without(
    method: Counting, supports: list[SupportSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Store(tmp_path)
    adapt(before, method, supports[:1])

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("raggd.files.tempfile.mkstemp", refused)
    monkeypatch.setattr(Path, "touch", refused)
    store = Store(tmp_path)
    with pytest.warns(CacheWarning, match="in memory alone: .*Read-only"):
        found = adapt(store, method, supports)
    assert torch.equal(vectors(found), vectors(method.adapt(supports)))
    assert store.computed == len(supports) - 1
    assert adapt(store, method, supports)[1] is found[1]
    with pytest.raises(RaggdError, match="Read-only"):
        store.add(supports[0])


def test_another_process_finds_the_states(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    wanted = vectors(adapt(Store(tmp_path), method, supports))
    other = Counting(method.base)
    found = adapt(Store(tmp_path), other, supports)
    assert torch.equal(vectors(found), wanted)
    assert other.batches == []
    assert all(a.base is method.base for a in found)
    memory = Counting(method.base)
    Store(tmp_path / "memory").adapt(memory, supports, "x")
    assert not (tmp_path / "memory").exists()


def test_a_step_that_sets_share_is_one_object_again(
    base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    for number, seed in enumerate((1, 1, 2)):
        store.put(f"state-{number}", Adapted(base, random_update(base, seed)))
    again = Store(tmp_path)
    one, same, other = (again.find(f"state-{number}", base) for number in range(3))
    assert one is not None
    assert same is not None
    assert other is not None
    assert one.update is same.update
    assert not torch.equal(vectors([one]), vectors([other]))


def test_other_settings_files_or_demonstrations_are_not_mixed_up(
    method: Counting, base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    adapt(store, method, supports[:1])
    adapt(store, method, supports[:1], "y")
    assert store.computed == 2
    for name, hashes in (("counting", {"base": "x", "predictor": "y"}), ("other", method.hashes)):
        changed = Counting(base)
        changed.name, changed.hashes = name, hashes
        adapt(store, changed, supports[:1])
        assert changed.batches == [1]


def test_the_same_text_in_another_file_is_another_state(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    (first, *rest), store = supports[0].demonstrations, Store(tmp_path)
    passages = tuple(replace(p, source="guide/oil.md") for p in first.passages)
    moved = replace(supports[0], demonstrations=(replace(first, passages=passages), *rest))
    assert moved.id != supports[0].id
    adapt(store, method, supports[:1])
    adapt(store, method, [moved])
    assert store.computed == 2


def test_a_damaged_or_foreign_file_is_made_again(
    method: Counting, supports: list[SupportSet], tmp_path: Path, tiny_backbone: object
) -> None:
    adapt(Store(tmp_path), method, supports[:1])
    (file,) = tmp_path.glob("*.safetensors")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    again = Store(tmp_path)
    adapt(again, method, supports[:1])
    assert again.computed == 1
    assert file.read_bytes() == whole
    foreign = random_base(tiny_backbone, seed=77)  # type: ignore[arg-type]
    strange = Store(tmp_path)
    strange.adapt(method, supports[:1], "x", foreign)
    assert strange.computed == 1


def test_a_file_that_another_process_drops_is_not_missed(
    method: Counting, supports: list[SupportSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Path.glob
    monkeypatch.setattr(Path, "glob", lambda *of: [tmp_path / "0.1.safetensors", *found(*of)])
    store = Store(tmp_path, 1)
    for support in supports[:2]:
        adapt(store, method, [support])
    assert len(list(found(tmp_path, "*.safetensors"))) == 1


@pytest.mark.parametrize("shown", [["x"], [{"passages": ["x"]}], 3, {"a": 1}])
def test_a_state_that_says_other_things_is_no_state(
    method: Counting, supports: list[SupportSet], tmp_path: Path, shown: object
) -> None:
    adapt(Store(tmp_path), method, supports[:1])
    (file,) = tmp_path.glob("*.safetensors")
    tensors, about = load_tensors(file)
    for changed in (about | {"state": json.dumps({"shown": shown})}, {"kind": about["kind"]}):
        save_tensors(file, tensors, changed)
        with pytest.raises(RaggdError, match=str(file)):
            read_state(file, method.base)


def test_a_state_of_another_version_is_made_again(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    adapt(Store(tmp_path), method, supports[:1])
    (file,) = tmp_path.glob("*.safetensors")
    tensors, about = load_tensors(file)
    save_tensors(file, tensors, {**about, "state": json.dumps({"forgotten": 1})})
    again = Store(tmp_path)
    adapt(again, method, supports[:1])
    assert again.computed == 1


def test_a_state_on_disk_is_an_update_that_answers_take(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    store, key = Store(tmp_path), state_key(supports[0], method, "x")
    adapted = method.adapt(supports[:1])[0]
    store.put(key, adapted, {"adapt_ms": 2.5, "norms": {"q": [1.0]}})
    assert store.facts(key) == {"adapt_ms": 2.5, "norms": {"q": [1.0]}}
    assert store.facts("none") == {}
    again = load_update(tmp_path / f"{key}.safetensors")
    assert torch.equal(again.vector(), vectors([adapted])[0])
    store.put("only-memory", adapted, on_disk=False)
    assert len(list(tmp_path.glob("*"))) == 1


def test_what_costs_nothing_to_make_is_not_written(
    base: BaseAdapter, supports: list[SupportSet], tmp_path: Path
) -> None:
    store = Store(tmp_path)
    shown = Adapted(base, shown=supports[0].demonstrations)
    store.put("0.x", shown)
    assert store.find("0.x", base) is shown
    assert not list(tmp_path.glob("*"))


def test_a_read_prefix_comes_back_with_what_it_was_read_from(
    base: BaseAdapter, supports: list[SupportSet], tmp_path: Path, tiny_backbone: Backbone
) -> None:
    tokens = tiny_backbone.tokenizer.encode("what eats the big fish ?")
    prefix = read_prefix(tiny_backbone, tokens)
    facts = {"shown": supports[0].demonstrations, "instruction": "As shown.", "lines": True}
    for update in (None, random_update(base)):
        adapted = Adapted(base, update, prefix=prefix, **facts)  # type: ignore[arg-type]
        store = Store(tmp_path)
        store.put("0.x", adapted)
        assert store.bytes == size_of(adapted) > prefix.nbytes - 1
        found = Store(tmp_path).find("0.x", base)
        assert found is not None
        assert found.prefix is not None
        assert found.prefix.tokens == tuple(tokens)
        for own, other in zip(prefix.layers, found.prefix.layers, strict=True):
            assert all(map(torch.equal, own, other))
        assert (found.update is None) == (update is None)
        assert replace(found, prefix=None, update=None) == replace(
            adapted, prefix=None, update=None
        )


def test_memory_and_folder_are_bounded(
    method: Counting, supports: list[SupportSet], tmp_path: Path
) -> None:
    one = size_of(method.adapt(supports[:1])[0])
    store = Store(tmp_path, 2 * one)
    for support in supports:
        adapt(store, method, [support])
    assert (store.bytes, store.dropped, len(store)) == (2 * one, 1, 2)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1  # a file is more than its tensors
    adapt(store, method, supports[1:])
    assert store.computed == 3
    adapt(store, method, supports[:1])
    assert store.computed == 4
    small = Store(tmp_path / "small", one - 1)
    adapt(small, method, supports[:1])
    assert (small.bytes, len(small)) == (0, 0)
