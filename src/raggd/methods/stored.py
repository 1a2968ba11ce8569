"""The forms in which support sets and adapted states are kept in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from raggd.backbone.prefix import Prefix
from raggd.core.low_rank import (
    UPDATE_KIND,
    BaseAdapter,
    Update,
    check_shapes,
    factors_of,
    tensors_of,
)
from raggd.files import load_tensors, save_tensors
from raggd.methods.base import Adapted
from raggd.records import Demonstration, Passage, RaggdError, SupportSet

STATE_KIND = "raggd adapted state"
_PLAIN = {"reads_evidence", "instruction", "lines", "most", "refusals", "sources"}


@dataclass(frozen=True, slots=True)
class StoredSet:
    """A support set that was added, and when (seconds since 1970)."""

    support: SupportSet
    created: int


def _shown(value: Mapping[str, Any]) -> Demonstration:
    passages = (Passage(**{k: str(v) for k, v in p.items()}) for p in value["passages"])
    texts = {name: str(value[name]) for name in ("id", "question", "answer")}
    return Demonstration(passages=tuple(passages), **texts)


def parse_set(value: Any, where: str) -> StoredSet:
    """Turn the JSON form of a stored support set into one.

    Args:
        value: the fields of `SupportSet` down to its passages, and ``created``.
        where: its file, for the error message.

    Returns:
        The support set.

    Raises:
        RaggdError: it has another form.
    """
    try:
        support = SupportSet(str(value["task"]), tuple(map(_shown, value["demonstrations"])))
        return StoredSet(support, int(value["created"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RaggdError(
            f"{where} is not a support set ({type(error).__name__}: {error}). Expected "
            '{"created", "task", "demonstrations": [{"id", "question", "passages", "answer"}]}.'
        ) from error


def size_of(adapted: Adapted) -> int:
    """Return the bytes of an adapted state's tensors."""
    tensors = tensors_of(adapted.update.factors).values() if adapted.update else ()
    return sum(t.nbytes for t in tensors) + (adapted.prefix.nbytes if adapted.prefix else 0)


def write_state(path: Path, adapted: Adapted, facts: Mapping[str, Any]) -> bool:
    """Write what cost something to make: an update, a read prefix, or both.

    Args:
        path: the file; with an update, `load_update` reads it, too.
        adapted: the state, of a single support set.
        facts: JSON values to keep beside it.

    Returns:
        Whether it was written: a state of neither, or with a soft prefix, is not.
    """
    update, prefix = adapted.update, adapted.prefix
    if adapted.base is None or adapted.soft is not None or not (update or prefix):
        return False
    tensors = tensors_of(update.factors) if update else {}
    for number, (keys, values) in enumerate(prefix.layers if prefix else ()):
        tensors |= {f"prefix.{number}.keys": keys, f"prefix.{number}.values": values}
    rest = {f.name: getattr(adapted, f.name) for f in fields(Adapted) if f.name in _PLAIN}
    rest |= {"shown": [asdict(d) for d in adapted.shown]}
    about = {
        "kind": UPDATE_KIND if update else STATE_KIND,
        "spec": adapted.base.spec.to_json(),
        "base": adapted.base.fingerprint,
        "tokens": json.dumps(prefix.tokens if prefix else []),
        "state": json.dumps(rest),
        "facts": json.dumps(dict(facts)),
    }
    save_tensors(path, tensors, about)
    return True


def save_state(path: Path, adapted: Adapted) -> None:
    """Write a state that a user keeps.

    Raises:
        RaggdError: it holds nothing that cost anything to make.
    """
    if not write_state(path, adapted, {}):
        raise RaggdError(
            "this adapted state holds neither an update nor a prefix that could be saved."
        )


def read_state(path: Path, base: BaseAdapter) -> Adapted:
    """Read what `write_state` or `Update.save` wrote.

    Args:
        path: the file.
        base: the base adapter in use; on its device the tensors go.

    Returns:
        The state.

    Raises:
        RaggdError: it is damaged, or of another base adapter.
    """
    tensors, about = load_tensors(path)
    if about.get("kind") not in {UPDATE_KIND, STATE_KIND}:
        raise RaggdError(f"{path} is not a raggd update or adapted state: `rag.save` writes one.")
    if about["base"] != base.fingerprint:
        raise RaggdError(
            f"{path} starts from base adapter {about['base']}, but the one in use is "
            f"{base.fingerprint}: adapt again."
        )
    try:
        rest, tokens = json.loads(about.get("state", "{}")), json.loads(about.get("tokens", "[]"))
        rest["shown"] = tuple(map(_shown, rest.get("shown", ())))
        rest["refusals"] = tuple(rest.get("refusals", ()))
        pairs = [[tensors[f"prefix.{i}.{kind}"].to(base.device) for kind in ("keys", "values")]
                 for i in range(base.spec.layers if tokens else 0)]  # fmt: skip
        update = None
        if about["kind"] == UPDATE_KIND:
            check_shapes(base.spec, tensors, "update")
            update = Update(base.spec, factors_of(tensors), about["base"]).to(base.device)
    except (KeyError, TypeError, ValueError) as error:
        raise RaggdError(f"{path} holds no adapted state ({error}).") from error
    prefix = Prefix(tuple(tokens), tuple((k, v) for k, v in pairs)) if tokens else None
    return Adapted(base, update, prefix=prefix, **rest)
