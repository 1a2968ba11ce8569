"""The order of the layers, and a few things that no file may do, read from the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "raggd"
LAYERS: Mapping[str, int] = {
    "records": 1,
    "files": 1,
    "progress": 1,
    "settings": 1,
    "provenance": 1,
    "core": 2,
    "linear": 3,
    "data": 4,
    "retrieval": 5,
    "backbone": 6,
    "adaptation": 7,
    "methods": 8,
    "assembly": 9,
    "api": 10,
    "evaluation": 10,
    "report": 11,
    "study": 12,
    "training": 12,
    "serving": 12,
    "cluster": 12,
    "cli": 13,
}
"""First part of a module's name below ``raggd``: it imports from its own layer or a lower one."""
FORBIDDEN = {
    ("linear", "files"): "the linear regime imports core and records only",
    ("linear", "settings"): "the linear regime imports core and records only",
    ("linear", "provenance"): "the linear regime imports core and records only",
    ("backbone", "retrieval"): "the backbone is given its evidence",
    ("adaptation", "retrieval"): "support sets come with their evidence",
    ("report", "retrieval"): "reports are made from run records",
    ("report", "backbone"): "reports are made from run records",
    ("report", "adaptation"): "reports are made from run records",
    ("report", "methods"): "reports are made from run records",
    ("report", "assembly"): "reports are made from run records",
}
"""Imports that go downwards and are refused all the same, with the reason."""
PURE = {"raggd.methods.spec": "the table of methods is data"}
"""Modules that everyone above may import all the same."""
LONGEST = 400

Tree = Mapping[str, ast.Module]
"""Syntax trees by module name (``raggd.core.low_rank``)."""


def _module(path: Path) -> str:
    parts = ["raggd", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def tree() -> Tree:
    paths = sorted(ROOT.rglob("*.py"))
    return {_module(path): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imports(name: str, parsed: ast.Module, packages: set[str]) -> Iterator[tuple[str, int]]:
    """Names of the raggd modules that a module imports, at any depth, with the line."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((a.name, node.lineno) for a in node.names if _is_ours(a.name))
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:  # relative: from the package that the module lies in
                here = name.split(".") if name in packages else name.split(".")[:-1]
                kept = here[: len(here) - node.level + 1]
                source = ".".join([*kept, *([source] if source else [])])
            if _is_ours(source):
                yield from ((f"{source}.{a.name}", node.lineno) for a in node.names)


def _is_ours(name: str) -> bool:
    return name == "raggd" or name.startswith("raggd.")


def _part(name: str) -> str:
    return [*name.split("."), ""][1]


def violations(tree: Tree, only: str = "") -> list[str]:
    """Say which imports break the order, of all modules or of one alone."""
    packages = {n for n in tree if any(other.startswith(f"{n}.") for other in tree)}
    found = []
    for name, parsed in tree.items() if not only else [(only, tree[only])]:
        own = _part(name)
        if own and own not in LAYERS:
            found.append(f"{name}: part '{own}' has no layer; give it one in LAYERS")
            continue
        for target, line in imports(name, parsed, packages | {"raggd"}):
            other = _part(target)
            if own == "":  # the package's own names may come from anywhere but the command line
                problem = "the command line" if other == "cli" else ""
            elif other not in LAYERS:  # only the command line may ask the root, for the version
                problem = "" if own == "cli" else "the package's root"
            elif own == other:
                problem = ""
            elif other == "cli" or LAYERS[other] > LAYERS[own]:
                problem = "a higher layer"
            else:
                pure = target in PURE or target.rpartition(".")[0] in PURE
                problem = "" if pure else FORBIDDEN.get((own, other), "")
            if problem:
                found.append(f"{name}, line {line}: imports {target} ({problem})")
    return found


def test_imports_run_downwards(tree: Tree) -> None:
    assert len(tree) > 30
    assert not violations(tree), "\n".join(violations(tree))


def circle(tree: Tree) -> list[str]:
    """Modules that import each other in a circle, also by type alone; empty where there is none."""
    packages = {n for n in tree if any(other.startswith(f"{n}.") for other in tree)}
    graph = {}
    for name, parsed in tree.items():
        targets = {target for target, _ in imports(name, parsed, packages | {"raggd"})}
        graph[name] = {t if t in tree else t.rpartition(".")[0] for t in targets} - {name}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_circles(tree: Tree) -> None:
    assert circle(tree) == []
    back = ast.parse("if TYPE_CHECKING:\n    from raggd.serving.request import Request")
    assert "raggd.serving.row" in circle({**tree, "raggd.serving.row": back})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("raggd.core.x", "from raggd.data.prompts import Prompt"),
        ("raggd.core.x", "from ..data import prompts"),
        ("raggd.core.x", "from .. import data"),
        ("raggd.core.x", "from raggd import data"),
        ("raggd.core.x", "import raggd.data.prompts as p"),
        ("raggd.core.x", "def f():\n    from raggd.backbone.load import Backbone"),
        ("raggd.core.x", "class A:\n    def f(self):\n        import raggd.cli"),
        ("raggd.core.x", "if TYPE_CHECKING:\n    from raggd.methods.base import Method"),
        ("raggd.core.x", "from raggd import __version__"),
        ("raggd.core.x", "import raggd"),
        ("raggd.records", "from raggd.core import low_rank"),
        ("raggd.retrieval.x", "from raggd.backbone.load import Backbone"),
        ("raggd.adaptation.x", "from raggd.retrieval.evidence import Evidence"),
        ("raggd.linear.x", "from raggd.data.prompts import Prompt"),
        ("raggd.linear.x", "from raggd.files import write_text"),
        ("raggd.report.x", "from raggd.training import stages"),
        ("raggd.report.x", "from raggd.adaptation.targets import sgd_updates"),
        ("raggd.report.x", "from raggd.methods.predicted import PredictedUpdate"),
        ("raggd.data.x", "from raggd.cli.shared import say"),
        ("raggd.serving.x", "from raggd.cli import main"),
        ("raggd", "from raggd.cli import main"),
        ("raggd.unheard_of", "import os"),
    ],
)
def test_the_checker_finds_a_made_up_violation(tree: Tree, module: str, source: str) -> None:
    found = violations(
        {**tree, "raggd.core": tree["raggd.core"], module: ast.parse(source)}, module
    )
    assert [line for line in found if line.startswith(module)], f"not found: {source}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("raggd.core.x", "from raggd.records import RaggdError"),
        ("raggd.core.x", "from . import low_rank\nfrom .low_rank import inner\nimport torch"),
        ("raggd.methods.x", "from raggd.adaptation.targets import sgd_updates"),
        ("raggd.study.x", "from raggd.report.page import render"),
        ("raggd.report.x", "from raggd.methods.spec import SPECS"),
        ("raggd.cli", "from raggd import __version__\nfrom raggd.training import stages"),
        ("raggd", "from raggd.methods.base import Method"),
    ],
)
def test_the_checker_lets_downward_imports_pass(tree: Tree, module: str, source: str) -> None:
    assert not violations({**tree, module: ast.parse(source)}, module)


def bad_habits(name: str, parsed: ast.Module) -> list[str]:
    """Prints, pickles and unsafe loads in a module."""
    found = []
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [n for n in names if n.split(".")[0] in {"pickle", "joblib", "dill"}]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in {"print", "torch.load", "torch.save"}:
            found.append(called)
        for keyword in node.keywords:
            if keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False":
                found.append("allow_pickle")
    return [f"{name}: {what}" for what in found]


def test_nothing_knows_of_the_benchmarks(tree: Tree) -> None:
    def names(parsed: ast.Module) -> set[str]:
        nodes = list(ast.walk(parsed))
        plain = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        return plain | {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}

    def knows(parsed: ast.Module) -> bool:
        return any(name.split(".")[0] == "benchmarks" for name in names(parsed))

    assert not [name for name, parsed in tree.items() if knows(parsed)]
    assert knows(ast.parse("def f():\n    from benchmarks.run import run_bench"))
    assert knows(ast.parse("import benchmarks.run"))


def test_no_print_no_pickle(tree: Tree) -> None:
    assert not [habit for name, parsed in tree.items() for habit in bad_habits(name, parsed)]


@pytest.mark.parametrize(
    "source",
    [
        "print('x')",
        "import pickle",
        "from pickle import loads",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "def f():\n    return torch.load(path)",
    ],
)
def test_bad_habits_are_found(source: str) -> None:
    assert bad_habits("x", ast.parse(source))
    assert not bad_habits("x", ast.parse("console.print('x')\nnp.load(p, allow_pickle=False)"))


def test_no_file_is_long() -> None:
    lengths = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.rglob("*.py")}
    assert max(lengths.values()) > 100
    assert not {str(p): n for p, n in lengths.items() if n > LONGEST}


def test_a_class_has_a_name_of_its_own(tree: Tree) -> None:
    places: dict[str, list[str]] = {}
    for module, parsed in tree.items():
        for node in ast.walk(parsed):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    shared = {name: where for name, where in places.items() if len(where) > 1}
    assert not shared
