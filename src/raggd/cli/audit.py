"""`raggd audit`: does a hypernetwork read its input?"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raggd.cli.options import Assignments, Config, Json, Out, load_parts
from raggd.records import RaggdError

if TYPE_CHECKING:
    from raggd.assembly import Assembly
    from raggd.evaluation.runner import Task
    from raggd.methods.base import Adapted
    from raggd.records import SupportSet


def audit(
    method: Annotated[str, typer.Option(help="A predictor of ours to audit.")] = "rag-gd",
    constant: Annotated[
        str, typer.Option(help="The tuned constant beside it: a method, or a folder's adapter.")
    ] = "",
    adapters: Annotated[
        Path | None,
        typer.Option(help="Instead: a folder with one PEFT adapter per support set, by its id."),
    ] = None,
    dump: Annotated[
        Path | None, typer.Option(help="Only write the support sets that adapters are needed of.")
    ] = None,
    out: Out = Path("runs/audit"),
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Tell what reading the demonstrations is worth, for a predictor of ours or anyone's."""
    from raggd.cli.console import progress_bar, show
    from raggd.evaluation.audit import audit as run
    from raggd.evaluation.audit import audit_result
    from raggd.evaluation.tasks import task_of
    from raggd.files import write_json
    from raggd.provenance import origin
    from raggd.report.audit import audit_table

    with progress_bar() as bar:
        parts = load_parts(config, assignments, bar)
        tasks = [task_of(parts, name) for name in parts.settings.evaluation.benchmarks]
        if dump is not None:
            count = _write_sets(dump, tasks)
            show({"file": str(dump), "sets": count}, as_json, f"{count} support sets: {dump}")
            return
        state_of, fixed = _states(parts, method, constant, adapters)
        audited = run(parts.backbone, tasks, state_of, parts.settings, bar, fixed)
    result = audit_result(audited) | {"audited": str(adapters) if adapters else method}
    write_json(out / "audit.json", result | origin() | {"settings": parts.settings.model_dump()})
    show(result, as_json, audit_table(result))


def _write_sets(path: Path, tasks: list[Task]) -> int:
    from raggd.evaluation.audit import audited_sets
    from raggd.files import write_text

    sets = [(name, s) for name, own in audited_sets(tasks).items() for s in own]
    lines = [{"id": s.id, "role": name, **asdict(s)} for name, s in sets]
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return len(lines)


def _states(
    parts: Assembly, method: str, constant: str, adapters: Path | None
) -> tuple[Callable[[SupportSet], Adapted], Any]:
    from raggd.data.questions import NOBODY
    from raggd.methods.base import Adapted

    if adapters is None:
        parts.check_methods([method, *([constant] if constant else [])])
        fixed = parts.method(constant) if constant else None
        if fixed is not None and fixed.adapts:
            raise RaggdError(f"'{constant}' reads demonstrations: name a constant, e.g. mean-tuned")
        ready = parts.method(method)
        one = fixed.adapt([NOBODY])[0] if fixed else None
        return lambda support: ready.adapt([support])[0], one
    from raggd.adaptation.peft import read_peft

    def state(support: SupportSet) -> Adapted:
        return Adapted(read_peft(adapters / support.id, parts.backbone))

    own = Adapted(read_peft(adapters / constant, parts.backbone)) if constant else None
    return state, own


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(audit)
