"""The ranges in pyproject.toml begin where `make test-lowest` tests."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]


def _pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {package.lower(): Version(version) for package, version in pairs}


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lowest, usual = _pins("constraints-lowest.txt"), _pins("constraints.txt")
    for requirement in map(Requirement, project["dependencies"]):
        name = requirement.name.lower()
        bounds = [Version(s.version) for s in requirement.specifier if s.operator == ">="]
        assert requirement.specifier.contains(lowest[name])
        if name != "torch":  # see the head of constraints-lowest.txt
            assert bounds == [lowest[name]], name
        if name in usual:
            assert requirement.specifier.contains(usual[name])
