"""What stands before a document: between ``---`` (YAML) or ``+++`` (TOML), or in braces (JSON)."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from raggd.files import each_key_once

_FRONT = re.compile(r"(---|\+\+\+)[ \t]*\n(.*?\n)?(?:\1|\.\.\.)[ \t]*(?:\n|$)", re.DOTALL)
_LINE = re.compile(r"\s*[\w-]+\s*[:=]")
_TITLE = re.compile(r"[\"']?title[\"']?\s*[:=]\s*", re.IGNORECASE)
_TABLE = re.compile(r"\s*\[")
_LONGEST = 50_000  # characters; more is a text between two rules
_TITLE_LINES = 20
_OBJECT = json.JSONDecoder(object_pairs_hook=each_key_once)
_NOTHING = {"", "~", "null", "Null", "NULL"}


def front_matter(text: str) -> tuple[str, str, str]:
    """Return the title that front matter gives, its other lines, and the document after it."""
    if text.startswith("{"):
        return _json(text)
    found = _FRONT.match(text)
    inner = (found[2] or "").removesuffix("\n") if found else ""
    if found is None or not inner.strip() or len(inner) > _LONGEST:
        return "", "", text
    parts = _toml(inner) if found[1] == "+++" else _yaml(inner)
    if parts is None:
        return "", "", text
    title, others = parts
    return " ".join(title.split()), others.strip("\n"), text[found.end() :]


def _yaml(inner: str) -> tuple[str, str] | None:
    # None: it is no mapping, but text between two rules
    import yaml

    try:
        node = yaml.compose(inner, yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return _by_lines(inner)
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, value in node.value:
        if not all(isinstance(each, yaml.ScalarNode) for each in (key, value)):
            continue
        if key.value.lower() != "title" or (value.style is None and value.value in _NOTHING):
            continue
        if node.flow_style:  # other keys may stand in the same line
            return value.value, inner
        start, end = key.start_mark.index, value.end_mark.index
        if inner[end - 1 : end] != "\n":  # a remark behind it goes too
            end = (inner + "\n").index("\n", end) + 1
        return value.value, inner[:start] + inner[end:]
    return "", inner


def _toml(inner: str) -> tuple[str, str] | None:
    try:
        named = {key.lower(): value for key, value in tomllib.loads(inner).items()}
    except (ValueError, RecursionError):
        return _by_lines(inner)
    title, lines = named.get("title"), inner.split("\n")
    begin = next((at for at, line in enumerate(lines) if _TITLE.match(line.strip())), None)
    if not isinstance(title, str) or begin is None:
        return "", inner
    for end in range(begin + 1, min(begin + _TITLE_LINES, len(lines)) + 1):
        try:
            tomllib.loads("\n".join(lines[begin:end]))
        except ValueError:
            continue
        return title, "\n".join(lines[:begin] + lines[end:])
    return title, inner


def _json(text: str) -> tuple[str, str, str]:
    # Hugo's third form: an object, and nothing behind it in its last line.
    try:
        value, end = _OBJECT.raw_decode(text[:_LONGEST])
    except (ValueError, RecursionError):
        return "", "", text
    line, _, rest = text[end:].partition("\n")
    if line.strip() or not value:
        return "", "", text
    key = next((k for k, v in value.items() if k.lower() == "title" and isinstance(v, str)), None)
    title = value.pop(key) if key is not None else ""
    others = (f"{name}: {_shown(it)}" for name, it in value.items())
    return " ".join(title.split()), "\n".join(others), rest


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_lines(inner: str) -> tuple[str, str] | None:
    # What is nearly YAML or TOML: a title with a colon in it, say.
    lines = inner.split("\n")
    if not any(map(_LINE.match, lines)):
        return None
    at = next((n for n, line in enumerate(lines) if _TITLE.match(line)), None)
    if at is None:
        return "", inner
    title = _TITLE.sub("", lines.pop(at), count=1).strip().strip("\"'")
    return title, "\n".join(lines)
