"""The newcomer's walk: README's commands are found, and what goes wrong on it is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import walk
from benchmarks.walk import Step, missing, steps

README = (walk.ROOT / "README.md").read_text(encoding="utf-8")
SMALL = """
```console
$ echo out of 12 && true
out of 345
$ echo one \\
    two
```

Then `make demo`, and `raggd ask` in text.

| Method | n |
| :--- | ---: |
| Base adapter | 7 |

| command | what |
|---|---|
| `raggd train base`, `mean-tuned` | weights |
| `raggd evaluate --contracts known` | scores |

```json
{"question": "Q?", "answer": "a"}
```

```console
$ git clone <this repository> raggd && cd raggd
$ make demo
```

```python
print(1)
```
"""


def test_commands_are_found_in_order_and_the_clone_comes_first() -> None:
    assert steps(SMALL) == [
        Step("git clone <this repository> raggd && cd raggd"),
        Step("make demo", ("Base adapter",)),
        Step("echo out of 12 && true", ("out of 345",)),
        Step("echo one      two"),
        Step("print(1)\n", python=True),
        Step(".venv/bin/raggd ask"),
        Step(".venv/bin/raggd train base --help"),
        Step(".venv/bin/raggd train mean-tuned --help"),
        Step(".venv/bin/raggd evaluate --help"),
    ]


def test_numbers_alone_may_differ() -> None:
    assert missing(("took 3.5 s",), "it\ntook 1,200 s today\n") == []
    assert missing(("took 3.5 s",), "it\ntook long\n") == ["took 3.5 s"]


def test_readme_can_be_walked() -> None:
    found = steps(README)
    assert found[0].command.startswith("git clone")
    commands = [step.command for step in found]
    for start in ("make demo", ".venv/bin/raggd ask", ".venv/bin/raggd serve", "import raggd"):
        assert any(command.startswith(start) for command in commands), start
    assert any("{" in line for step in found for line in step.shown)
    for start in walk.SKIPPED:
        assert any(command.startswith(start) for command in commands), f"skips nothing: {start}"


def test_a_command_that_fails_or_prints_something_else_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(walk, "ROOT", tmp_path / "root")
    (tmp_path / "root" / "README.md").write_text(
        "```console\n$ mkdir new  # git clone && cd new\n```\n"
        "```console\n$ cat my-documents/pumps.md\n# Pumps\n$ exit 3\n$ echo 1 a\n2 b\n$ ls x\n```\n"
        '```json\n{"question": "Q?", "answer": "a"}\n```\n'
    )
    (tmp_path / "at").mkdir()
    assert walk.walk(tmp_path / "at", None, {"ls": "nothing is there"}) == 2
    said = [line for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()]
    assert [line.split()[0] for line in said] == ["ok", "ok", "failed", "failed", "skipped"]
    assert "nothing is there" in said[-1]
    assert (tmp_path / "at" / "new" / "examples.jsonl").read_text().startswith('{"question"')
    assert len((tmp_path / "at" / "new" / "mine.jsonl").read_text().splitlines()) == walk.DOZEN
