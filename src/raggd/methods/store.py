"""The one store: support sets, and the states that they were adapted to.

A folder holds ``<support id>.json`` for every support set that was added, and
``<support id>.<key>.safetensors`` for every state kept on disk; `key` hashes the method, all files
that made it, and backbone, tokenizer and prompt. Command line, Python, server and vLLM share it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.core.low_rank import BaseAdapter
from raggd.files import cache_folder, read_json, tensor_header, write_json
from raggd.methods.base import Adapted, Method
from raggd.methods.stored import StoredSet, parse_set, read_state, size_of, write_state
from raggd.records import RaggdError, SupportSet, content_id

BOUND = 256 << 20
"""Bytes of adapted states, in memory and again on disk; the longest unused go first."""
_ID = re.compile(r"[0-9a-f]{16}")


def state_key(support: SupportSet, method: Method, identity: str) -> str:
    """Name an adapted state by all that it depends on.

    Args:
        support: what was adapted to.
        method: by what; its `hashes` name every file that it was made from.
        identity: hash of backbone, precision, tokenizer, prompt and target settings.

    Returns:
        ``<support id>.<32 hexadecimal digits>``.
    """
    files = str(sorted(method.hashes.items()))
    return f"{support.id}.{content_id(method.name, files, identity, length=32)}"


class Store:
    """Support sets and their adapted states; safe from any thread.

    Attributes:
        folder: where they are kept.
        bytes: of the states in memory.
        dropped: states dropped from memory to stay within the bound, so far.
        computed: states that `adapt` had to make.
    """

    def __init__(
        self,
        folder: Path | None = None,
        bound: int = BOUND,
        prepare: Callable[[Adapted], Adapted] = lambda adapted: adapted,
    ) -> None:
        """Read nothing yet.

        Args:
            folder: made when something is kept; None: ``supports`` in the cache folder.
            bound: most bytes of adapted states, in memory and again on disk.
            prepare: makes of a state what memory keeps (in the model's precision, say).
        """
        self.folder = folder or cache_folder() / "supports"
        self._bound = bound
        self._prepare = prepare
        self._states: OrderedDict[str, Adapted] = OrderedDict()
        self._sets: dict[str, tuple[int, StoredSet]] = {}
        self._lock = threading.RLock()
        self.bytes = self.dropped = self.computed = 0

    # Support sets

    def file(self, name: str) -> Path:
        """Return the file of a support set.

        Args:
            name: the set's id.

        Returns:
            ``<folder>/<id>.json``, whether it is there or not.

        Raises:
            RaggdError: the name is not an id (16 hexadecimal digits), so no file is looked for.
        """
        if not _ID.fullmatch(name):
            raise RaggdError(
                f"'{name}' is not the id of a support set: expected 16 hexadecimal digits, as "
                "`raggd supports add` prints them."
            )
        return self.folder / f"{name}.json"

    def add(self, support: SupportSet) -> StoredSet:
        """Keep a support set; one that is there already stays as it is.

        Args:
            support: the set.

        Returns:
            What is kept.
        """
        path = self.file(support.id)
        with self._lock:
            if path.is_file():
                return self.stored(support.id)
            stored = StoredSet(support, int(time.time()))
            write_json(path, {"created": stored.created, **asdict(support)})
            return stored

    def stored(self, name: str) -> StoredSet:
        """Read a support set.

        Args:
            name: its id.

        Returns:
            The set, and when it was added.

        Raises:
            RaggdError: there is none of that id, or the file holds another one.
        """
        path = self.file(name)
        if not path.is_file():
            raise RaggdError(
                f"no support set '{name}' in {self.folder}: `raggd supports add FILE.jsonl` "
                "stores one, `raggd supports list` shows them."
            )
        changed = path.stat().st_mtime_ns
        known = self._sets.get(name)
        if known is None or known[0] != changed:
            stored = parse_set(read_json(path, what="support set"), str(path))
            if stored.support.id != name:
                raise RaggdError(
                    f"{path} holds the support set {stored.support.id}: it was changed. Add it "
                    "anew."
                )
            known = self._sets[name] = (changed, stored)
        return known[1]

    def support(self, name: str) -> SupportSet:
        """Return the support set of an id, as `stored` does."""
        return self.stored(name).support

    def names(self) -> list[str]:
        """Return the ids of all support sets, sorted."""
        return sorted(p.stem for p in self.folder.glob("*.json") if _ID.fullmatch(p.stem))

    def remove(self, name: str) -> None:
        """Delete a support set and every state that it was adapted to.

        Args:
            name: its id.

        Raises:
            RaggdError: there is none of that id.
        """
        with self._lock:
            path = self.file(name)
            if not path.is_file():
                self.stored(name)
            for own in (path, *self.folder.glob(f"{name}.*.safetensors")):
                own.unlink(missing_ok=True)
            for key in [key for key in self._states if key.startswith(f"{name}.")]:
                self._forget(key)

    # Adapted states

    def __len__(self) -> int:
        return len(self._states)

    def find(self, key: str, base: BaseAdapter | None) -> Adapted | None:
        """Look an adapted state up, in memory and then on disk, and count it as used.

        Args:
            key: from `state_key`.
            base: the base adapter in use.

        Returns:
            The state; None if there is none, or it is damaged or of another base.
        """
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return self._states[key]
            path = self._state_file(key)
            if base is None or not path.is_file():
                return None
            try:
                known = read_state(path, base)
            except RaggdError:  # it is made again
                return None
            path.touch()
            return self._remember(key, known)

    def facts(self, key: str) -> dict[str, Any]:
        """Return what `put` was told of a state on disk; nothing where there is none."""
        path = self._state_file(key)
        if not path.is_file():
            return {}
        try:
            found = json.loads(tensor_header(path).get("facts", "{}"))
        except (RaggdError, ValueError):
            return {}
        return dict(found)

    def put(
        self,
        key: str,
        adapted: Adapted,
        facts: Mapping[str, Any] | None = None,
        *,
        on_disk: bool = True,
    ) -> Adapted:
        """Keep an adapted state.

        Args:
            key: from `state_key`.
            adapted: the state, of a single support set.
            facts: JSON values to keep beside it.
            on_disk: whether it outlives the process; only an update from a base does.

        Returns:
            What memory keeps of it.
        """
        with self._lock:
            if on_disk and write_state(self._state_file(key), adapted, facts or {}):
                self._prune()
            return self._remember(key, adapted)

    def adapt(
        self,
        method: Method,
        supports: Sequence[SupportSet],
        identity: str,
        base: BaseAdapter | None = None,
    ) -> list[Adapted]:
        """Adapt to support sets; what was adapted to before is looked up.

        Not for evaluation: there each adaptation is run, so that its cost is known.

        Args:
            method: adapts.
            supports: sets of equal size.
            identity: as for `state_key`.
            base: the base adapter of the states on disk; None looks in memory alone.

        Returns:
            One state each, as the method itself gives.
        """
        keys = [state_key(support, method, identity) for support in supports]
        states = {key: known for key in keys if (known := self.find(key, base))}
        missing = {key: s for key, s in zip(keys, supports, strict=True) if key not in states}
        if missing:
            fresh = method.adapt(list(missing.values()))
            for key, adapted in zip(missing, fresh, strict=True):
                states[key] = self.put(key, adapted, on_disk=base is not None)
            self.computed += len(missing)
        return [states[key] for key in keys]

    def _state_file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _remember(self, key: str, adapted: Adapted) -> Adapted:
        kept = self._prepare(adapted)
        self._forget(key)
        if size_of(kept) <= self._bound:
            self._states[key] = kept
            self.bytes += size_of(kept)
        while self.bytes > self._bound:
            self._forget(next(iter(self._states)))
            self.dropped += 1
        return kept

    def _forget(self, key: str) -> None:
        old = self._states.pop(key, None)
        if old is not None:
            self.bytes -= size_of(old)

    def _prune(self) -> None:
        files = [(p, p.stat()) for p in self.folder.glob("*.*.safetensors")]
        files.sort(key=lambda entry: entry[1].st_mtime, reverse=True)
        total = 0
        for number, (path, stat) in enumerate(files):
            total += stat.st_size
            if number and total > self._bound:  # the newest stays, whatever its size
                path.unlink(missing_ok=True)
