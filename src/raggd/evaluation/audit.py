"""Does a hypernetwork read its input? The same questions under six states, told apart.

A network that maps a support set to an adapter may have learned a constant. Its questions are
answered with the adapter of the right set, of another set of the task, of another task, of random
text, with the mean of all, and with a constant that was tuned; what reading is worth is the first
minus the others.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from raggd.adaptation.export import mean_adapter, read_peft
from raggd.assembly import Assembly
from raggd.core.low_rank import stack_updates
from raggd.data.questions import NOBODY
from raggd.evaluation.runner import CellRun, Task, task_of
from raggd.evaluation.statistics import Difference, Sample
from raggd.files import write_json, write_json_lines
from raggd.methods.base import Adapted, refuse_control
from raggd.methods.plain import Unadapted
from raggd.provenance import origin
from raggd.records import Demonstration, RaggdError, SupportSet, content_id
from raggd.settings import changed

STATES = ("right", "shuffled", "other-task", "random-text", "mean", "constant")
"""What answers: the state of the right set, and its controls."""
StateOf = Callable[[SupportSet], Adapted]


@dataclass(frozen=True, slots=True)
class Audited:
    """One question under one of `STATES`; EM 0 or 1, the loss of the gold in nats per token."""

    task: str
    draw: int
    state: str
    em: float
    f1: float
    loss: float


def random_text(support: SupportSet) -> SupportSet:
    """Return a set of the same shape whose words are drawn from its own passages, without sense."""
    draw = random.Random(support.id)
    passages = [p for d in support.demonstrations for p in d.passages]
    words = " ".join(p.text for p in passages).split() or ["none"]

    def text(like: str) -> str:
        return " ".join(draw.choice(words) for _ in like.split()) or draw.choice(words)

    def scrambled(shown: Demonstration) -> Demonstration:
        parts = tuple(replace(p, text=text(p.text), title=text(p.title)) for p in shown.passages)
        own = content_id("random", shown.id)
        return Demonstration(own, text(shown.question), parts, text(shown.answer))

    return SupportSet(support.task, tuple(map(scrambled, support.demonstrations)))


def audited_sets(tasks: Sequence[Task]) -> dict[str, list[SupportSet]]:
    """Return what a hypernetwork is asked for, by task, and a random text for each, in order."""
    if len(tasks) < 2 or any(len(task.draws) < 2 for task in tasks):
        raise RaggdError(
            "an audit exchanges support sets within a task and between tasks: give at least two "
            "benchmarks (evaluation.benchmarks) and two draws (evaluation.draws)."
        )
    own = {task.benchmark: [draw[0].support for draw in task.draws] for task in tasks}
    flat = [support for sets in own.values() for support in sets]
    return {**own, "random-text": [random_text(support) for support in flat]}


def mean_state(states: Sequence[Adapted]) -> Adapted:
    """Average updates of one base, or adapters of a bare backbone; a prefix is refused."""
    first = states[0]
    updates = [state.update for state in states if state.update is not None]
    bases = [state.base for state in states if state.base is not None]
    if any(state.prefix or state.soft for state in states) or len(bases) < len(states):
        raise RaggdError("an audit averages adapters and updates; a prefix has no mean.")
    if len(updates) == len(states):
        mean = stack_updates(updates).map(lambda tensor: tensor.mean(0))
        return replace(first, update=mean)
    return replace(first, base=mean_adapter(bases))


def audit(
    parts: Assembly, tasks: Sequence[Task], state_of: StateOf, constant: Adapted | None = None
) -> list[Audited]:
    """Answer the questions of all draws under every state; `constant` is a tuned state for all."""
    sets = audited_sets(tasks)
    made = {name: [state_of(support) for support in own] for name, own in sets.items()}
    scrambled = iter(made.pop("random-text"))
    mean = mean_state([state for own in made.values() for state in own])
    total = sum(task.size for task in tasks) * (len(STATES) - (constant is None))
    settings = changed(parts.settings, "evaluation", answer_loss=True)
    found: list[Audited] = []
    for task, next_task in zip(tasks, [*tasks[1:], tasks[0]], strict=True):
        own, other = made[task.benchmark], made[next_task.benchmark]
        for draw, right in enumerate(own):
            shuffled, others = own[(draw + 1) % len(own)], other[draw % len(other)]
            states = (right, shuffled, others, next(scrambled), mean, constant)
            for state, adapted in zip(STATES, states, strict=True):
                if adapted is None:
                    continue
                run = CellRun(task, Unadapted(state, adapted), parts.backbone, settings, Path())
                for p in run.answered(draw)["predictions"]:
                    scores = (p["em"], p["f1"], p["answer_loss"])
                    found.append(Audited(task.benchmark, draw, state, *scores))
                parts.progress(f"audit, {task.benchmark}, {state}", len(found), total)
    return found


def reading_worth(audited: Sequence[Audited], part: str, task: str = "") -> dict[str, Difference]:
    """Compare the right state with the controls on the same questions; macro over all tasks."""
    by_state: dict[str, list[Audited]] = {}
    for a in audited:
        if task in ("", a.task):
            by_state.setdefault(a.state, []).append(a)
    scores = np.array([[getattr(a, part) for a in own] for own in by_state.values()]).T
    groups, draws = zip(*((a.task, a.draw) for a in by_state["right"]), strict=True)
    sample = Sample(list(by_state), scores, groups, draws, macro=True)
    pairs = [("right", state) for state in STATES[1:] if state in by_state]
    return {control: d for (_, control), d in sample.differences(pairs).items()}


def audit_result(audited: Sequence[Audited]) -> dict[str, Any]:
    """Return ``means`` by task and state, and by task and control what reading is ``worth``."""
    means: dict[str, dict[str, dict[str, float]]] = {}
    for task, state in dict.fromkeys((a.task, a.state) for a in audited):
        own = [a for a in audited if (a.task, a.state) == (task, state)]
        means.setdefault(task, {})[state] = {
            "em": round(100 * fmean(a.em for a in own), 1),
            "f1": round(100 * fmean(a.f1 for a in own), 1),
            "loss": round(fmean(a.loss for a in own), 3),
            "n": len(own),
        }
    worth: dict[str, dict[str, dict[str, list[float]]]] = {}
    for task in ["", *means]:
        for part, scale in (("em", 100), ("f1", 100), ("loss", 1)):
            for state, d in reading_worth(audited, part, task).items():
                by_part = worth.setdefault(task or "all", {}).setdefault(state, {})
                by_part[part] = d.scaled(scale).limits(3)
    return {"means": means, "worth": worth}


def write_sets(parts: Assembly, path: Path) -> int:
    """Write the support sets that adapters are needed of, JSON Lines; return how many."""
    tasks = [task_of(parts, name) for name in parts.settings.evaluation.benchmarks]
    sets = [(name, s) for name, own in audited_sets(tasks).items() for s in own]
    lines = [{"id": s.id, "role": name, **asdict(s)} for name, s in sets]
    write_json_lines(path, lines)
    return len(lines)


def run_audit(
    parts: Assembly, method: str, constant: str, adapters: Path | None, out: Path
) -> dict[str, Any]:
    """Audit a method, or a folder of PEFT `adapters`, one for each support set by its id.

    `constant` is a method that reads nothing, or another of the adapters; empty: none. A record
    lies in the folder `out` at the end.

    Raises:
        RaggdError: a method is not known or a control, or the constant reads demonstrations.
    """
    tasks = [task_of(parts, name) for name in parts.settings.evaluation.benchmarks]
    named = [] if adapters else [name for name in (method, constant) if name]
    methods = {name: parts.method(name) for name in named}
    if constant in methods and methods[constant].adapts:
        raise RaggdError(f"'{constant}' reads demonstrations: name a constant, e.g. mean-tuned")
    if methods:
        refuse_control(methods[method])

    def state(name: str, support: SupportSet) -> Adapted:
        if adapters:
            return Adapted(read_peft(adapters / name, parts.backbone))
        return methods[name].adapt([support])[0]

    def state_of(support: SupportSet) -> Adapted:
        return state(support.id if adapters else method, support)

    fixed = state(constant, NOBODY) if constant else None
    audited = audit(parts, tasks, state_of, fixed)
    result = audit_result(audited) | {"audited": str(adapters or method)}
    made = {
        "backbone": parts.backbone.fingerprint,
        "settings": parts.settings.model_dump(),
        "hashes": {name: used.hashes for name, used in methods.items()},
    }
    write_json(out / "audit.json", result | origin() | made)
    return result
