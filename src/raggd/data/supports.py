"""Support sets on disk: one JSON file each, named by the hash of its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raggd.files import cache_folder, read_json, write_json
from raggd.records import Demonstration, Passage, RaggdError, SupportSet

_ID = re.compile(r"[0-9a-f]{16}")


def supports_folder() -> Path:
    """Return where support sets are kept unless a folder is named: ``supports`` in the cache."""
    return cache_folder() / "supports"


def support_file(folder: Path, name: str) -> Path:
    """Return the file of a support set.

    Args:
        folder: of support sets.
        name: the set's id.

    Returns:
        ``<folder>/<id>.json``.

    Raises:
        RaggdError: the name is not an id (16 hexadecimal digits), so no file is looked for.
    """
    if not _ID.fullmatch(name):
        raise RaggdError(
            f"'{name}' is not the id of a support set: expected 16 hexadecimal digits, as "
            "`raggd supports add` prints them."
        )
    return folder / f"{name}.json"


def parse_support(value: Any, where: str) -> SupportSet:
    """Turn the JSON form of a support set into one.

    Args:
        value: ``{"task", "demonstrations": [{"id", "question", "passages", "answer"}]}``, or a
            record with such a value under ``support``, as `raggd serve` keeps it.
        where: its file, for the error message.

    Returns:
        The support set.

    Raises:
        RaggdError: it has another form.
    """
    try:
        value = value.get("support", value)
        return SupportSet(str(value["task"]), tuple(map(_shown, value["demonstrations"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise RaggdError(
            f"{where} is not a support set ({type(error).__name__}: {error}). Expected "
            '{"task", "demonstrations": [{"id", "question", "passages", "answer"}]}.'
        ) from error


def _shown(value: Mapping[str, Any]) -> Demonstration:
    passages = tuple(
        Passage(str(p["id"]), str(p["text"]), str(p.get("title", ""))) for p in value["passages"]
    )
    return Demonstration(str(value["id"]), str(value["question"]), passages, str(value["answer"]))


def save_support(folder: Path, support: SupportSet) -> Path:
    """Write a support set.

    Args:
        folder: of support sets.
        support: the set.

    Returns:
        Its file; the same content has the same one.
    """
    path = support_file(folder, support.id)
    write_json(path, asdict(support))
    return path


def load_support(folder: Path, name: str) -> SupportSet:
    """Read a support set.

    Args:
        folder: of support sets.
        name: its id.

    Returns:
        The set.

    Raises:
        RaggdError: there is none of that id, or the file holds another one.
    """
    path = support_file(folder, name)
    if not path.is_file():
        raise RaggdError(
            f"no support set '{name}' in {folder}: `raggd supports add FILE.jsonl` stores one."
        )
    support = parse_support(read_json(path, what="support set"), str(path))
    if support.id != name:
        raise RaggdError(f"{path} holds the support set {support.id}: it was changed. Add it anew.")
    return support


def list_supports(folder: Path) -> list[SupportSet]:
    """Read all support sets of a folder.

    Args:
        folder: of support sets; need not exist.

    Returns:
        The sets, by id.
    """
    names = sorted(path.stem for path in folder.glob("*.json") if _ID.fullmatch(path.stem))
    return [load_support(folder, name) for name in names]
