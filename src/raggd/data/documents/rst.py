"""reStructuredText: headings by their rules, tables of directives by rows, the rest as text."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from raggd.data.documents.passages import Block
from raggd.data.documents.plain import read_text

_RULE = re.compile(r"(?!(?:::|\.\.)\s*$)([=\-`:.'\"~^_*+#<>])\1*\s*$")
_TABLE = re.compile(r"([ \t]*)\.\. (list|csv)-table::[ \t]*(.*)")
_OPTION = re.compile(r"[ \t]*:([\w-]+):[ \t]*(.*)")
_ROW = re.compile(r"([ \t]*[*+-][ \t]+)[*+-](?=\s)")
_CELL = re.compile(r"[*+-]\s")
_DELIMITERS = {"tab": "\t", "space": " "}


def read(path: Path) -> Iterator[Block]:
    """Read reStructuredText: a line over a rule is a heading, ranked in the order of the rules."""
    lines = read_text(path).split("\n")
    ranks: dict[str, int] = {}
    held: list[str] = []
    at = 0
    while at < len(lines):
        if table := _TABLE.match(lines[at]):
            # those lines belong to a directive that are blank, or further in
            after = (n for n in range(at + 1, len(lines)) if lines[n].strip())
            end = next((n for n in after if _indent(lines[n]) <= len(table[1])), len(lines))
            if rows := _rows(table[2], lines[at + 1 : end]):
                yield from (Block("\n".join(held)), Block(table[3]), rows)
                held, at = [], end
                continue
        over = _RULE.match(lines[at])
        title = lines[at + 1] if over and at + 1 < len(lines) else lines[at]
        under = at + (2 if over else 1)
        rule = _RULE.match(lines[under]) if under < len(lines) and title.strip() else None
        length = len(rule[0].rstrip()) if rule else 0
        # a rule that is too short is one all the same to docutils, from four characters on
        if not rule or length < min(4, len(title.rstrip())) or (over and over[1] != rule[1]):
            held.append(lines[at])
            at += 1
            continue
        yield Block("\n".join(held))
        held = []
        yield Block(title, level=ranks.setdefault(rule[1] * (under - at), len(ranks) + 1))
        at = under + 1
    yield Block("\n".join(held))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" \t"))


def _rows(kind: str, lines: Sequence[str]) -> Block | None:
    # A table with its header, each row "cell | cell"; None where it stands elsewhere.
    begin = next((at for at, line in enumerate(lines) if not line.strip()), len(lines))
    title, options, odd = _named(lines[:begin])
    if odd or options.keys() & {"file", "url"}:  # it stands elsewhere
        return None
    content = [f"{line.rstrip()}\n" for line in lines[begin:] if line.strip()]
    header = [options["header"]] if "header" in options else []
    delimiter = options.get("delim", ",").strip()
    delimiter = _DELIMITERS.get(delimiter, delimiter)
    try:
        count = max(0, int(options.get("header-rows") or 0))
        head = _separated(header, delimiter)
        body = _separated(content, delimiter) if kind == "csv" else _listed(content)
    except (csv.Error, TypeError, ValueError):
        return None
    if not body:
        return None
    rows = [" | ".join(" ".join(cell.split()) for cell in row) for row in [*head, *body]]
    count += len(head)
    above = [*filter(None, [title]), *rows[:count]]
    return Block("\n".join(rows[count:]), lines=True, head="\n".join(above))


def _named(lines: Sequence[str]) -> tuple[str, dict[str, str], bool]:
    # What stands before the options goes on with the title, what stands behind the header with
    # that; whether there is anything else.
    title, options, name, odd = "", dict[str, str](), "", False
    for line in lines:
        if found := _OPTION.match(line):
            name = found[1]
            odd = odd or name in options
            options[name] = found[2]
        elif name:
            odd = odd or name != "header"
            options[name] += f" {line.strip()}"
        else:
            title = f"{title} {line.strip()}".strip()
    return title, options, odd


def _separated(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    return list(csv.reader(map(str.lstrip, lines), delimiter=delimiter, skipinitialspace=True))


def _listed(lines: Sequence[str]) -> list[list[str]]:
    # A list of lists; nothing where it begins as something else.
    first = _ROW.match(lines[0]) if lines else None
    if first is None:
        return []
    outer, inner = _indent(lines[0]), len(first[1])
    rows: list[list[list[str]]] = []
    for line in lines:
        if _indent(line) == outer and (begins := _ROW.match(line)):
            rows.append([[line[begins.end() :]]])
        elif _indent(line) == inner and _CELL.match(line, inner):
            rows[-1].append([line[inner + 1 :]])
        else:
            rows[-1][-1].append(line)
    return [[" ".join(cell) for cell in row] for row in rows]
