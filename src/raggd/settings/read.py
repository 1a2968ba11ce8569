"""Settings from a TOML file and single changes; what does not fit is explained."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from raggd.records import RaggdError, unknown_name
from raggd.settings.sections import Settings

_Settings = TypeVar("_Settings", bound=Settings)


def _section_of(model: type[BaseModel], part: str) -> type[BaseModel]:
    kind = model.model_fields[part].annotation
    inner = get_args(kind)  # a list of sections
    return inner[0] if inner else kind  # type: ignore[return-value]


def _unknown_key(root: type[BaseModel], location: list[str], source: str) -> str:
    model = root
    for part in location[:-1]:
        model = model if part.isdigit() else _section_of(model, part)
    section = f"setting in [{'.'.join(location[:-1])}]" if location[1:] else "section"
    return str(unknown_name(f"{section} of {source}", location[-1], list(model.model_fields)))


def _explained(root: type[BaseModel], error: ValidationError, source: str) -> str:
    # a mistyped key that is required is also missing: the wrong name tells the user more
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        return _unknown_key(root, location, source)
    return f"setting '{'.'.join(location)}' in {source}: {first['msg']}, got {first['input']!r}."


def _assign(raw: dict[str, Any], assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) != 2:
        raise RaggdError(
            f"--set '{assignment}': expected SECTION.NAME=VALUE, e.g. retrieval.top_k=5."
        )
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    section = raw.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise RaggdError(f"'{parts[0]}' must be a section ([{parts[0]}]) to set '{name}' in it.")
    section[parts[1]] = value


Source = Path | str | Mapping[str, Any] | None
"""A TOML file of settings, a dictionary like one, or None for the defaults."""


def read_settings(
    model: type[_Settings], path: Source, assignments: list[str] | None = None
) -> _Settings:
    """Read settings of one kind from a TOML file and apply single changes.

    Args:
        model: the kind.
        path: the file, or a dictionary of what would stand in it; None starts from the defaults.
        assignments: ``section.name=value`` strings (the ``--set`` option), applied last.

    Returns:
        The validated settings.

    Raises:
        RaggdError: the file is missing or not TOML, a key is unknown (the nearest is offered),
            or a value does not fit.
    """
    raw: dict[str, Any] = {}
    source = "--set" if path is None else str(path)
    if isinstance(path, Mapping):
        raw, source = copy.deepcopy(dict(path)), "the settings"
    elif not isinstance(path, str | Path | None):
        raise RaggdError(
            f"settings are a {type(path).__name__}: expected a TOML file or a dictionary of "
            'sections, e.g. {"retrieval": {"top_k": 5}}.'
        )
    elif path is not None:
        try:
            raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise RaggdError(f"cannot read settings file {path}: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RaggdError(f"settings file {path} is not valid TOML: {error}.") from error
    for assignment in assignments or []:
        _assign(raw, assignment)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise RaggdError(_explained(model, error, source)) from error


def load_settings(path: Source = None, assignments: list[str] | None = None) -> Settings:
    """Read the settings of a run from a TOML file and apply single changes.

    Args:
        path: the file, or a dictionary of what would stand in it; None starts from the defaults.
        assignments: ``section.name=value`` strings (the ``--set`` option), applied last.

    Returns:
        The validated settings.

    >>> load_settings(assignments=["retrieval.top_k=5"]).retrieval.top_k
    5
    """
    return read_settings(Settings, path, assignments)
