"""The one store: support sets, and the states that they were adapted to.

A folder holds ``<support id>.json`` for every support set that was added, and
``<support id>.<key>.safetensors`` for every state kept on disk; the key hashes the method, all
files that made it, and backbone, tokenizer and prompt. Command line, Python, server and vLLM share
it.
"""

from __future__ import annotations

import json
import re
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter

from raggd.backbone.batch import Prefix
from raggd.core.low_rank import (
    UPDATE_KIND,
    BaseAdapter,
    Update,
    check_base,
    check_shapes,
    factors_of,
    tensors_of,
)
from raggd.files import (
    CacheWarning,
    cache_folder,
    first_line,
    is_unwritable,
    load_tensors,
    read_json,
    save_tensors,
    tensor_header,
    write_json,
)
from raggd.methods.base import Adapted, Method
from raggd.records import RaggdError, SupportSet, content_id

BOUND = 256 << 20  # bytes of states in memory and again on disk; the longest unused go first
STATE_KIND = "raggd adapted state"
_FORMS = {
    name: TypeAdapter[Any](kind)
    for name, kind in get_type_hints(Adapted).items()
    if name not in {"base", "update", "soft", "prefix"}
}
"""The fields of an `Adapted` that files hold as JSON, and their types, which say how."""
_SETS = TypeAdapter(SupportSet)
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A support set that was added, and when (seconds since 1970)."""

    support: SupportSet
    created: int


def state_key(support: SupportSet, method: Method, identity: str) -> str:
    """Name an adapted state by all that it depends on: ``<support id>.<32 hexadecimal digits>``.

    The method's `hashes` name its files; `identity` hashes backbone, precision, prompt and
    settings. The set's id has the files that its passages stand in, which answers may name.
    """
    files = str(sorted(method.hashes.items()))
    return f"{support.id}.{content_id(method.name, files, identity, length=32)}"


class Store:
    """Support sets and their adapted states; safe from any thread."""

    def __init__(self, folder: Path | None = None, bound: int = BOUND) -> None:
        """Read nothing yet; `bound` is in bytes, of states in memory and again on disk."""
        self.folder = folder or cache_folder() / "supports"
        self._bound = bound
        self._told = False
        self._states: OrderedDict[str, Adapted] = OrderedDict()
        self._lock = threading.RLock()
        self.bytes = 0  # of the states in memory
        self.dropped = 0  # states dropped from memory to stay within the bound, so far
        self.computed = 0  # states that `adapt` had to make

    # Support sets

    def file(self, name: str) -> Path:
        """Return the file of a set, there or not; a name that is no id is refused."""
        if not _ID.fullmatch(str(name)):
            raise RaggdError(
                f"'{name}' is not the id of a support set: expected 16 hexadecimal digits, as "
                "`raggd supports add` prints them."
            )
        return self.folder / f"{name}.json"

    def add(self, support: SupportSet) -> StoredSet:
        """Keep a support set; one that is there already stays as it is."""
        if not isinstance(support, SupportSet):
            raise RaggdError(
                f"a {type(support).__name__} is no support set: make one by rag.support(...)."
            )
        with self._lock:
            with suppress(RaggdError):  # a damaged one is written anew
                return self.stored(support.id)
            stored = StoredSet(support, int(time.time()))
            write_json(self.file(support.id), {"created": stored.created, **asdict(support)})
            return stored

    def stored(self, name: str) -> StoredSet:
        """Read the support set of an id; one that is missing or changed is refused."""
        return _read_set(*self._existing(name))

    def _existing(self, name: str) -> tuple[Path, int, int]:
        # its file, and time and size of that; another process may delete it at any moment
        path = self.file(name)
        with suppress(OSError):
            there = path.stat()
            if S_ISREG(there.st_mode):
                return path, there.st_mtime_ns, there.st_size
        raise RaggdError(
            f"no support set '{name}' in {self.folder}: `raggd supports add FILE.jsonl` "
            "stores one, `raggd supports list` shows them."
        )

    def __contains__(self, name: str) -> bool:
        """Return whether there is a set of that id, damaged or not."""
        return bool(_ID.fullmatch(name)) and self.file(name).is_file()

    def names(self) -> list[str]:
        """Return the ids of all support sets, sorted."""
        return sorted(p.stem for p in self.folder.glob("*.json") if _ID.fullmatch(p.stem))

    def remove(self, *names: str) -> None:
        """Delete sets, damaged ones too, and what they were adapted to; none if one is missing."""
        with self._lock:
            for name, (path, *_) in [(name, self._existing(name)) for name in names]:
                for own in (path, *self.folder.glob(f"{name}.*.safetensors")):
                    own.unlink(missing_ok=True)
                for key in [key for key in self._states if key.startswith(f"{name}.")]:
                    self._forget(key)
            _read_set.cache_clear()  # nothing of what is deleted stays

    # Adapted states

    def __len__(self) -> int:
        return len(self._states)

    def find(self, key: str, base: BaseAdapter | None) -> Adapted | None:
        """Look an adapted state up, in memory and then on disk, and count it as used.

        None if it is missing, damaged or of another base; without a base, only memory is looked at.
        """
        with self._lock:
            if key in self._states:
                self._states.move_to_end(key)
                return self._states[key]
            if base is None:
                return None
            path = self._state_file(key)
            try:
                known = self._sharing(read_state(path, base))
            except RaggdError:  # it is not there, or is made again
                return None
            with suppress(OSError):  # when it was last used is not noted where nothing is written
                path.touch()
            self._remember(key, known)
            return known

    def facts(self, key: str) -> dict[str, Any]:
        """Return what `put` was told of a state on disk; nothing where there is none."""
        with suppress(RaggdError, ValueError):
            return dict(json.loads(tensor_header(self._state_file(key)).get("facts", "{}")))
        return {}

    def put(
        self,
        key: str,
        adapted: Adapted,
        facts: Mapping[str, Any] | None = None,
        *,
        on_disk: bool = True,
    ) -> None:
        """Keep an adapted state under a `state_key`, facts beside it, on disk if it can be."""
        with self._lock:
            if on_disk:
                self._write(self._state_file(key), adapted, facts or {})
            self._remember(key, adapted)

    def _write(self, path: Path, adapted: Adapted, facts: Mapping[str, Any]) -> None:
        try:
            if write_state(path, adapted, facts):
                self._prune()
        except RaggdError as error:
            if not is_unwritable(error.__cause__):
                raise
            if not self._told:
                told = f"what is adapted to is kept in memory alone: {error}"
                warnings.warn(told, CacheWarning, stacklevel=4)
            self._told = True

    def adapt(
        self,
        method: Method,
        supports: Sequence[SupportSet],
        identity: str,
        base: BaseAdapter | None = None,
    ) -> list[Adapted]:
        """Adapt to support sets of equal size; what was adapted to before is looked up.

        Not for evaluation, where costs are measured. Without a base, states stay in memory alone.
        """
        keys = [state_key(support, method, identity) for support in supports]
        states = {key: known for key in keys if (known := self.find(key, base))}
        missing = {key: s for key, s in zip(keys, supports, strict=True) if key not in states}
        if missing:
            states |= zip(missing, method.adapt(list(missing.values())), strict=True)
            for key in missing:
                self.put(key, states[key], on_disk=base is not None)
            self.computed += len(missing)
        return [states[key] for key in keys]

    def _state_file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _remember(self, key: str, adapted: Adapted) -> None:
        self._forget(key)
        if size_of(adapted) <= self._bound:
            self._states[key] = adapted
            self.bytes += size_of(adapted)
        while self.bytes > self._bound:
            self._forget(next(iter(self._states)))
            self.dropped += 1

    def _sharing(self, adapted: Adapted) -> Adapted:
        # a constant step is one object for all sets, by which a batch sees that all rows share it
        last = next(reversed(self._states.values()), adapted).update
        if last is None or adapted.update is None or last.base != adapted.update.base:
            return adapted
        pairs = zip(*(tensors_of(u.factors).values() for u in (last, adapted.update)), strict=True)
        return replace(adapted, update=last) if all(torch.equal(*p) for p in pairs) else adapted

    def _forget(self, key: str) -> None:
        old = self._states.pop(key, None)
        if old is not None:
            self.bytes -= size_of(old)

    def _prune(self) -> None:
        files = []
        for path in self.folder.glob("*.*.safetensors"):
            with suppress(FileNotFoundError):  # another process was faster
                files.append((path, path.stat()))
        files.sort(key=lambda entry: entry[1].st_mtime, reverse=True)
        total = 0
        for number, (path, stat) in enumerate(files):
            total += stat.st_size
            if number and total > self._bound:  # the newest stays, whatever its size
                path.unlink(missing_ok=True)


# The forms in files


@lru_cache(maxsize=1024)
def _read_set(path: Path, *_: int) -> StoredSet:
    # once for the time and size that a file has
    value = read_json(path, what="support set")
    try:
        support, created = _SETS.validate_python(value), int(value["created"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RaggdError(
            f"{path} is not a support set: add it anew. Expected "
            '{"created", "task", "demonstrations": [{"id", "question", "passages", "answer"}]}.'
        ) from error
    if support.id != path.stem:
        raise RaggdError(f"{path} holds the support set {support.id}: it was changed. Add it anew.")
    return StoredSet(support, created)


def size_of(adapted: Adapted) -> int:
    """Return the bytes of an adapted state's tensors."""
    tensors = tensors_of(adapted.update.factors).values() if adapted.update else ()
    return sum(t.nbytes for t in tensors) + (adapted.prefix.nbytes if adapted.prefix else 0)


def write_state(path: Path, adapted: Adapted, facts: Mapping[str, Any]) -> bool:
    """Write what cost something to make: an update, a read prefix, or both; say whether it did."""
    update, prefix = adapted.update, adapted.prefix
    if adapted.base is None or adapted.soft is not None or not (update or prefix):
        return False
    tensors = tensors_of(update.factors) if update else {}
    for number, (keys, values) in enumerate(prefix.layers if prefix else ()):
        tensors |= {f"prefix.{number}.keys": keys, f"prefix.{number}.values": values}
    plain = {name: form.dump_python(getattr(adapted, name)) for name, form in _FORMS.items()}
    about = {
        "kind": UPDATE_KIND if update else STATE_KIND,
        "spec": adapted.base.spec.to_json(),
        "base": adapted.base.fingerprint,
        "tokens": json.dumps(prefix.tokens if prefix else []),
        "state": json.dumps(plain),
        "facts": json.dumps(dict(facts)),
    }
    save_tensors(path, tensors, about)
    return True


def read_state(path: Path, base: BaseAdapter) -> Adapted:
    """Read what `write_state` or `Update.save` wrote, for the base adapter in use; else refuse."""
    tensors, about = load_tensors(path)
    if about.get("kind") not in {UPDATE_KIND, STATE_KIND}:
        raise RaggdError(f"{path} is not a raggd update or adapted state: `rag.save` writes one.")
    check_base(base, about.get("base", ""), str(path), "adapt again")
    try:
        saved, tokens = json.loads(about.get("state", "{}")), json.loads(about.get("tokens", "[]"))
        plain = {name: _FORMS[name].validate_python(value) for name, value in saved.items()}
        there = {name: tensor.to(base.device) for name, tensor in tensors.items()}
        update = prefix = None
        if about["kind"] == UPDATE_KIND:
            check_shapes(base.spec, there, "update")
            update = Update(base.spec, factors_of(there), about["base"])
        if tokens:
            numbers = range(base.spec.layers)
            pairs = ((there[f"prefix.{i}.keys"], there[f"prefix.{i}.values"]) for i in numbers)
            prefix = Prefix(tuple(tokens), tuple(pairs))
        return Adapted(base, update, prefix=prefix, **plain)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RaggdError(f"{path} holds no adapted state ({first_line(error)}).") from error
