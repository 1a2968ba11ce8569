"""What documentation and messages print: commands that parse, settings files that load."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from raggd.cli import app
from raggd.settings import Settings, load_settings
from raggd.study.plan import load_study

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
SETTINGS = sorted((ROOT / "settings").rglob("*.toml"))
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
SOURCES = sorted([*(ROOT / "src" / "raggd").rglob("*.py"), ROOT / "Makefile"])

_FENCED = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^(?: {4}|\t)[^\n]*\n)+", re.MULTILINE)
_COMMAND = re.compile(r"^(?:\$ )?(?:[\w./()$]*/)?raggd +(.+)$")
_INLINE = re.compile(r"`+(?:[\w./]*/)?raggd ((?:[a-z0-9][a-z0-9-]* ?)+)")


def blocks(text: str) -> Iterator[str]:
    """Code blocks, fenced and indented."""
    for match in _FENCED.finditer(text):
        yield match[1]
    for match in _INDENTED.finditer(_FENCED.sub("", text)):
        yield match[0]


def commands(text: str) -> Iterator[list[str]]:
    """Arguments of every ``raggd`` command line in the code blocks of a page."""
    for block in blocks(text):
        joined = re.sub(r"\\\n\s*", " ", block)
        for line in joined.splitlines():
            found = _COMMAND.match(line.strip())
            if found:
                yield shlex.split(found[1], comments=True)


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parse a command line as typer would, down to the command itself, without running it."""
    command: Any = typer.main.get_command(app)
    context, path = None, "raggd"
    while True:
        context = command.make_context(path, list(arguments), parent=context)
        rest = [*context._protected_args, *context.args]
        if not hasattr(command, "resolve_command"):
            assert not rest, f"left over: {rest}"
            return dict(context.params)
        path, command, arguments = command.resolve_command(context, rest)


PRINTED = [
    pytest.param(page, arguments, id=f"{page.name}: {' '.join(arguments)}")
    for page in PAGES
    for arguments in commands(page.read_text(encoding="utf-8"))
]


def test_every_page_is_found_and_every_link_leads_somewhere() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    for list_of_pages in ("docs/index.md", "mkdocs.yml", "README.md"):
        text = (ROOT / list_of_pages).read_text(encoding="utf-8")
        assert {name for name in pages if name not in text} == set(), list_of_pages
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
        code = re.findall(
            r"`((?:src|docs|settings|studies|examples|benchmarks|tests)/[\w./-]+)`", text
        )
        missing = [link for link in links if not (page.parent / link).exists()]
        assert missing + [path for path in code if not (ROOT / path).exists()] == [], page


def test_the_pages_show_commands() -> None:
    shown = {" ".join(case.values[1][:2]) for case in PRINTED}  # type: ignore[index]
    assert {"train all", "train predictor"} <= shown
    assert any(name.startswith("ask ") for name in shown)


@pytest.mark.parametrize(("page", "arguments"), PRINTED)
def test_a_printed_command_parses(page: Path, arguments: list[str]) -> None:
    params = parse(arguments)
    # a file under settings/ is one that the repository holds, and --set names real settings
    config = params.get("config")
    if config is not None and str(config).startswith("settings/"):
        assert (ROOT / config).is_file(), f"{page.name} names {config}"
    load_settings(None, params.get("assignments"))


def helps(command: Any, path: str = "raggd") -> Iterator[tuple[str, str]]:
    yield path, str(command.help or "")
    yield from ((f"{path} {p.name}", str(getattr(p, "help", None) or "")) for p in command.params)
    for name, inner in getattr(command, "commands", {}).items():
        yield from helps(inner, f"{path} {name}")


def test_no_help_is_taken_for_markup() -> None:
    found = dict(helps(typer.main.get_command(app)))
    assert len(found) > 100
    assert {name for name, text in found.items() if re.search(r"\[[a-z#/@]", text)} == set()


@pytest.mark.parametrize(
    "wrong",
    [["aks", "x"], ["ask", "x", "--corpos", "y"], ["train", "x"], ["ask", "x", "y"], ["index"]],
)
def test_a_wrong_command_would_be_found(wrong: list[str]) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|missing|unexpected"):
        parse(wrong)


def test_commands_are_found_in_all_forms_of_block() -> None:
    text = (
        '```console\n$ .venv/bin/raggd ask "a b" \\\n    --corpus x  # remark\nout\n```\n'
        "text `raggd demo` text\n\n    raggd targets --out y\n    other\n"
    )
    assert list(commands(text)) == [["ask", "a b", "--corpus", "x"], ["targets", "--out", "y"]]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_named_in_running_text_exist(path: Path) -> None:
    for found in _INLINE.finditer(path.read_text(encoding="utf-8")):
        command: Any = typer.main.get_command(app)
        for word in found[1].split():
            if not hasattr(command, "commands"):
                break  # arguments, or the sentence goes on
            assert word in command.commands, f"{path.name} names `raggd {found[1]}`"
            command = command.commands[word]


@pytest.mark.parametrize("path", SETTINGS, ids=lambda p: p.name)
def test_a_settings_file_loads(path: Path) -> None:
    assert load_settings(path) != Settings(), "a file that changes nothing"


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.name)
def test_a_study_file_loads(path: Path) -> None:
    study = load_study(path)
    assert study.backbones[0].methods
    assert study.evaluation.answer_loss


def test_there_are_settings_files() -> None:
    assert SETTINGS
    assert STUDIES
    named = set()
    for page in PAGES:
        named |= set(re.findall(r"\bsettings/[\w.-]+\.toml", page.read_text(encoding="utf-8")))
    missing = sorted(name for name in named if not (ROOT / name).is_file())
    assert not missing, "named in the documentation, but not there"
