"""Stored support sets: a folder with one JSON file each, and the update beside it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from raggd.core.low_rank import (
    AdapterSpec,
    BaseAdapter,
    Update,
    check_shapes,
    effective_change,
    factors_of,
    norm,
    tensors_of,
)
from raggd.files import load_tensors, read_json, save_tensors, write_json
from raggd.records import Demonstration, Passage, RaggdError, SupportSet
from raggd.serving.errors import ApiError

LOG = logging.getLogger("raggd.serving")
FORMAT = 1
_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True)
class StoredSupport:
    """A support set with what is known of its update.

    Attributes:
        support: the demonstrations, with their passages.
        created: seconds since 1970.
        base: fingerprint of the base adapter that the update starts from.
        predictor: hash of the predictor's file.
        norms: per projection, the Frobenius norm of the effective change, layer by layer.
        adapt_ms: time that the prediction took.
    """

    support: SupportSet
    created: int
    base: str
    predictor: str
    norms: Mapping[str, list[float]]
    adapt_ms: float

    def to_json(self) -> dict[str, Any]:
        """Return a value for `support_from_json`."""
        return {"format": FORMAT, "id": self.support.id, **asdict(self)}


def support_from_json(value: Any) -> StoredSupport:
    """Read a stored support set back.

    Args:
        value: what `StoredSupport.to_json` gave.

    Returns:
        The support set.

    Raises:
        RaggdError: it is something else, or its content does not have its id.
    """
    try:
        raw = {k: v for k, v in value.items() if k not in {"format", "id"}}
        shown = [
            Demonstration(**{**d, "passages": tuple(Passage(**p) for p in d["passages"])})
            for d in raw["support"]["demonstrations"]
        ]
        support = SupportSet(raw["support"]["task"], tuple(shown))
        stored = StoredSupport(**{**raw, "support": support})
        whole = value["format"] == FORMAT and value["id"] == support.id
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise RaggdError(f"this is no stored support set: {error}.") from error
    if not whole:
        raise RaggdError("its content is not what its id says: it was changed or is damaged.")
    return stored


def norms_of(base: BaseAdapter, update: Update) -> dict[str, list[float]]:
    """Measure where an update acts.

    Args:
        base: the adapter that it starts from.
        update: a single update.

    Returns:
        Per projection, the Frobenius norm of the change of the effective weight, layer by layer.
    """
    change = effective_change(base, update.map(lambda tensor: tensor.float().cpu()))
    return {p: [round(v, 8) for v in norm(f).tolist()] for p, f in change.items()}


class OtherBaseError(ApiError):
    """A support set of another base adapter: status 409."""

    def __init__(self, made_for: str, in_use: str, name: str = "") -> None:
        """Make the error.

        Args:
            made_for: fingerprint of the set's base adapter.
            in_use: fingerprint of the server's.
            name: id of the set, where it has one.
        """
        which = f"support set '{name}'" if name else "this support set"
        super().__init__(
            409,
            "support_of_another_base",
            f"{which} was made for base adapter '{made_for}', this server runs '{in_use}': POST "
            "its demonstrations to /v1/supports again, without 'base'.",
            param="support",
        )


class SupportStore:
    """The stored support sets of one folder; safe from any thread of one process."""

    def __init__(
        self, folder: Path, spec: AdapterSpec, base: str, predictor: str, *, most: int
    ) -> None:
        """Read what the folder holds; a file that is damaged is reported and left alone.

        Args:
            folder: made when the first set is stored.
            spec: shape of the updates.
            base: fingerprint of the base adapter in use.
            predictor: hash of the predictor in use.
            most: sets to hold; more are refused.
        """
        self._folder = folder
        self._spec = spec
        self._base = base
        self._predictor = predictor
        self._most = most
        self._lock = threading.Lock()
        self._stored: dict[str, StoredSupport] = {}
        for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            try:
                stored = support_from_json(read_json(path, what="a stored support set"))
            except RaggdError as error:
                LOG.warning("support set %s is left out: %s", path.name, error)
                continue
            self._stored[stored.support.id] = stored

    def __len__(self) -> int:
        return len(self._stored)

    def list(self) -> list[StoredSupport]:
        """Return the sets of the base adapter in use, newest first."""
        held = [s for s in self._stored.values() if s.base == self._base]
        return sorted(held, key=lambda s: (-s.created, s.support.id))

    def find(self, name: str) -> StoredSupport | None:
        """Return the set of that id for the base adapter in use, if there is one."""
        stored = self._stored.get(name)
        return stored if stored and stored.base == self._base else None

    def get(self, name: str) -> StoredSupport:
        """Look a set up.

        Args:
            name: its id.

        Returns:
            The set.

        Raises:
            ApiError: there is none.
            OtherBaseError: it was made for another base adapter.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise ApiError(
                404,
                "support_not_found",
                "there is no stored support set of that id: POST its demonstrations to "
                "/v1/supports, or see GET /v1/supports.",
                param="support",
            )
        if stored.base != self._base:
            raise OtherBaseError(stored.base, self._base, name)
        return stored

    def add(self, stored: StoredSupport, update: Update) -> None:
        """Store a set with its update.

        Args:
            stored: the set.
            update: a single update.

        Raises:
            ApiError: 429 when the store is full.
        """
        name = stored.support.id
        with self._lock:
            if name not in self._stored and len(self._stored) >= self._most:
                raise ApiError(
                    429,
                    "too_many_supports",
                    f"{self._most} support sets are stored, the most that this server holds "
                    "(serving.max_supports): DELETE some first.",
                )
            write_json(self._path(name, "json"), stored.to_json())
            self.save_update(name, update)
            self._stored[name] = stored

    def save_update(self, name: str, update: Update) -> None:
        """Write the update of a stored set.

        Args:
            name: id of the set.
            update: a single update.
        """
        about = {"base": self._base, "predictor": self._predictor}
        save_tensors(self._path(name, "safetensors"), tensors_of(update.factors), about)

    def load_update(self, name: str) -> Update | None:
        """Read the update of a stored set.

        Args:
            name: id of the set.

        Returns:
            The update; None if there is none that this base and predictor made.
        """
        path = self._path(name, "safetensors")
        if not path.is_file():
            return None
        try:
            tensors, about = load_tensors(path)
            if about != {"base": self._base, "predictor": self._predictor}:
                return None
            check_shapes(self._spec, tensors, "update")
        except RaggdError as error:
            LOG.warning("the update of support set %s is predicted again: %s", name, error)
            return None
        return Update(self._spec, factors_of(tensors), self._base)

    def remove(self, name: str) -> None:
        """Delete a set and its update.

        Args:
            name: its id; `get` must find it, or it belongs to another base.

        Raises:
            ApiError: 404 if there is none.
        """
        with self._lock:
            if name not in self._stored:
                self.get(name)
            for kind in ("json", "safetensors"):
                self._path(name, kind).unlink(missing_ok=True)
            del self._stored[name]

    def _path(self, name: str, kind: str) -> Path:
        if not _ID.fullmatch(name):
            raise ValueError("not the id of a support set")  # ids come from hashes, never from text
        return self._folder / f"{name}.{kind}"
