"""The stages from nothing to weights: a table, one way to run a row, and all of them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import torch

from raggd.adaptation.base_adapter import untrained_base
from raggd.adaptation.refusing import LESSONS
from raggd.assembly import Assembly
from raggd.backbone.interface import mean_answer_loss
from raggd.core.low_rank import load_update, stack_updates, tensors_of
from raggd.data.benchmarks import HUB, SPLITS, find_file
from raggd.evaluation.timing import in_turn
from raggd.files import file_hash, read_json, write_json
from raggd.methods import spec
from raggd.provenance import origin
from raggd.records import RaggdError, content_id, known_names
from raggd.settings import Settings, changed
from raggd.training import fits
from raggd.training.run import Run


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table."""

    name: str
    # does it, writes the file that it is named after (the record lies beside it), returns facts
    run: Callable[[Run, str], dict[str, Any]]
    sections: tuple[str, ...]  # of the settings that it depends on
    # answered prompts that it runs forward and backward through the backbone
    examples: Callable[[Settings], int] = lambda _: 0
    rate: float = 1.0  # factor of the learning rate of `[hyper_tuning]`, set for a start from zero
    usual: bool = True  # whether `raggd train all` runs it unasked

    def record(self, run: Run) -> Path:
        """Return the file of its record."""
        if self.name == "targets":
            return run.stores[0] / "targets.json"
        return run.out / f"{self.name}.json"

    def questions(self, run: Run) -> str:
        """Return the hash of the files that its questions are read from; empty: not to be told."""
        settings, sections = run.settings, {"base_training", "target"} & set(self.sections)
        if settings.data.prepared:
            path = Path(settings.data.prepared)
            return file_hash(path)[:16] if path.is_file() else ""
        if settings.data.folder == HUB:  # published once
            return ""
        chosen = sections or ("base_training", "target")  # lessons are drawn from all
        names = {name for section in chosen for name in getattr(settings, section).benchmarks}
        found = [find_file(run.parts.source, *pair) for pair in product(sorted(names), SPLITS)]
        return content_id(*(file_hash(path) for path in found if path))

    def own(self, run: Run) -> Run:
        """Return the run with the stage's own settings."""
        rate = self.rate * run.settings.hyper_tuning.learning_rate
        settings = changed(run.settings, "hyper_tuning", learning_rate=rate)
        return replace(run, parts=run.parts.derived(settings))


def _sgd(section: str, settings: Settings) -> int:
    own = getattr(settings, section)
    return int(own.steps * own.batch * settings.training.accumulate)


def _inner_loop(settings: Settings) -> int:
    wanted = settings.target
    sets = wanted.per_benchmark * len(wanted.benchmarks)
    return sets * wanted.demonstrations * max([wanted.steps, *wanted.keep])


def _trials(settings: Settings) -> int:
    passes = fits.PROBES * (1 + len(fits.SCALES)) + settings.target.demonstrations
    sets = fits.GATE_SETS * len(settings.target.benchmarks)
    return sets * passes // 3  # forward alone: about a third


_DATA = ("backbone", "data", "retrieval")
_TARGETS = (*_DATA, "adapter", "target")
_FITTED = (*_TARGETS, "training", "predictor")
_HYPER = (*_FITTED, "hyper_tuning")
_LESSONS = (*_DATA, "training", "examples")
_ANSWERS = (*_DATA, "training", "base_training")
_TUNED, _TAUGHT = partial(_sgd, "hyper_tuning"), partial(_sgd, "examples")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("base", fits.base, _ANSWERS, partial(_sgd, "base_training")),
        Stage("targets", fits.targets, _TARGETS, _inner_loop),
        Stage("predictor", fits.predictor, _FITTED),
        # a trained start bears a lower rate than zero, one vector a higher one
        Stage("tuned", partial(fits.hyper, begin="predictor"), _HYPER, _TUNED, rate=0.1),
        Stage("mean-tuned", partial(fits.hyper, begin="mean"), _HYPER, _TUNED, rate=10),
        Stage("examples", fits.examples, _LESSONS, _TAUGHT),
        Stage("refusals", fits.refusals, _LESSONS, lambda _: LESSONS // 3),
        Stage("predictor-k1", partial(fits.predictor, steps=1), _FITTED, usual=False),
        Stage("predictor-k10", partial(fits.predictor, steps=10), _FITTED, usual=False),
        *(Stage(f"examples-{way}", fits.examples, _LESSONS, _TAUGHT, usual=False)
          for way in ("constant", "update", "both", "whole")),
        Stage("hyper", fits.hyper, _HYPER, _TUNED, usual=False),
        Stage("ridge", fits.ridge, _TARGETS, usual=False),
        Stage("task-mean", fits.task_mean, _TARGETS, usual=False),
        Stage("prompt", fits.prompt, (*_ANSWERS, "prompt_tuning"), partial(_sgd, "prompt_tuning"),
              usual=False),
        Stage("gate", fits.gate, _TARGETS, _trials, usual=False),
    )
}  # fmt: skip
"""All stages by name, in the order in which they can run. A new one is a line here."""
USUAL = tuple(name for name, stage in STAGES.items() if stage.usual)


def _with_base(run: Run) -> Run:
    # where none ships for a backbone, W0 is the one beside what is trained; never an untrained one
    if not spec.is_untrained(run.parts.weights):
        return run
    spec.weight_file(run.out, spec.BASE_FILE)
    own = changed(run.settings, "adapter", weights=str(run.out))
    return replace(run, parts=run.parts.derived(own))


def run_stage(name: str, run: Run) -> dict[str, Any]:
    """Run one stage; return the record that it wrote: settings, seconds, versions, facts."""
    stage = STAGES[name]
    run = stage.own(run if name in {"base", "prompt"} else _with_base(run))
    started = time.monotonic()
    facts = stage.run(run, spec.file_of(name))
    seconds = facts.pop("seconds", time.monotonic() - started)
    record = {"settings": run.settings.model_dump(), "seconds": round(seconds, 1)}
    weights = run.out / spec.file_of(name)
    own = {weights.name: spec.weights_hash(weights)} if weights.is_file() else {}
    record |= {"questions": stage.questions(run), **origin(), **facts}
    record["hashes"] = own | facts.get("hashes", {})
    write_json(stage.record(run), record)
    return record


def finished(stage: Stage, run: Run) -> dict[str, Any] | None:
    """Return the record of a stage that was finished; with other settings, it is refused."""
    run = stage.own(run)
    path = stage.record(run)
    weights = path.with_suffix(".safetensors")
    if not path.is_file() or not (stage.name == "targets" or weights.is_file()):
        return None
    made: dict[str, Any] = read_json(path, what="training record")
    for change in _changes(stage, run, made):
        raise RaggdError(
            f"{path} was made {change}: choose another --out, or remove {path.name} to train this "
            "stage again."
        )
    return made


def _changes(stage: Stage, run: Run, made: Mapping[str, Any]) -> Iterator[str]:
    # in what a finished stage's record differs from what it would be made with now
    own = run.settings.model_dump(mode="json")
    for section in stage.sections:
        for name, value in own[section].items():
            found = made["settings"].get(section, {}).get(name, value)
            if found != value and (section, name) != ("adapter", "weights"):
                yield f"with {section}.{name} = {found!r}, now it is {value!r}"
    here = stage.questions(run)
    if here and made.get("questions", here) != here:
        yield "of other questions than those that lie there now"
    for file, known in made.get("hashes", {}).items():
        if (run.out / file).is_file() and spec.weights_hash(run.out / file) != known:
            yield f"with another {file} (hash {known}) than the one beside it"
    base = made.get("base")
    if base is not None and base != run.parts.base.fingerprint:
        yield f"for base adapter {base}, the one in {run.out} is {run.parts.base.fingerprint}"


def train_all(
    parts: Assembly,
    out: Path,
    names: Sequence[str] = USUAL,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run stages in order; those that are done are left out, an interrupted one continues.

    Targets go to ``targets`` below `out`. `announce` is told in a line what is left and how long it
    will take, before it starts. Returned is what ``train.json`` holds.
    """
    known_names("stage", names, tuple(STAGES))
    started = time.monotonic()
    # what stages share is loaded into these; each has parts of its own, to read what others wrote
    shared = parts.derived(changed(parts.settings, "adapter", weights=str(out)))
    settings, stores = shared.settings, (out / "targets",)
    order = [stage for name, stage in STAGES.items() if name in names]
    records: dict[str, Any] = {}
    estimate: dict[str, float] = {}
    for number, stage in enumerate(order):
        label = f"{number + 1} of {len(order)}, {stage.name}: "

        def told(what: str, done: int, total: int | None, label: str = label) -> None:
            parts.progress(label + what, done, total)

        shared.progress = told
        run = Run(shared.derived(settings), out, stores)
        record = finished(stage, run)
        if record is None and not estimate:
            estimate = estimated(replace(run, parts=shared), order[number:])
            times = {name: timedelta(seconds=round(spent)) for name, spent in estimate.items()}
            each = ", ".join(f"{name} {spent}" for name, spent in times.items())
            announce(f"About {sum(times.values(), timedelta())} on this machine: {each}.")
            run = replace(run, parts=shared.derived(settings))
        records[stage.name] = record or run_stage(stage.name, run)
    result = {
        "out": str(out),
        "seconds": round(time.monotonic() - started, 1),
        "estimate": estimate,
        "stages": {
            n: {"seconds": r["seconds"], "hashes": r.get("hashes", {})} for n, r in records.items()
        },
    }
    write_json(out / "train.json", result | {"settings": settings.model_dump(), **origin()})
    return result


def average(files: Sequence[Path], out: Path, times: float = 1.0) -> dict[str, Any]:
    """Write the mean of like steps that were trained apart, times a factor; return its record.

    Raises:
        RaggdError: a single step, unless the factor is another than 1; steps of several rows or of
            different bases or shapes; a factor that is not above 0.
    """
    # better than each on questions that none saw: what one knows by heart the others do not
    if not 0 < times < inf:
        raise RaggdError(f"the factor of a mean is {times}: expected a number above 0.")
    steps = [load_update(file) for file in files]
    if len(steps) < (2 if times == 1 else 1) or any(step.rows is not None for step in steps):
        raise RaggdError("an average is made of two files or more, each with a single step.")
    if len({step.spec for step in steps}) > 1:
        raise RaggdError("cannot average steps of different shapes: train them alike.")
    mean = stack_updates(steps).map(lambda t: (times * t.float().mean(0)).to(torch.bfloat16))
    path = out / spec.EXAMPLES_FILE
    mean.save(path)
    record = {
        "mean_of": {str(file): spec.weights_hash(file) for file in files},
        "times": times,
        "base": mean.base,
        **origin(),
        "hashes": {path.name: spec.weights_hash(path)},
    }
    write_json(out / "average.json", record)
    return record


def seconds_per_example(run: Run) -> float:
    """Return the time of a training example, forward and backward, in a batch of the base's."""
    wanted, backbone = run.settings.base_training, run.parts.backbone
    questions = run.questions(wanted.benchmarks[0])[: wanted.batch]
    prompts = run.prompts(questions, run.settings.training.max_tokens)
    base = untrained_base(backbone, run.settings.adapter)
    for tensor in tensors_of(base.factors).values():
        tensor.requires_grad_(True)

    def step() -> None:
        mean_answer_loss(backbone, prompts, base).backward()  # type: ignore[no-untyped-call]

    return in_turn({"step": step}, 1)["step"][0] / 1000 / len(prompts)


def estimated(run: Run, stages: Sequence[Stage]) -> dict[str, float]:
    """Say how many seconds of the backbone stages will take, by a step that is timed now."""
    counts = {stage.name: stage.examples(run.settings) for stage in stages}
    example = seconds_per_example(run) if any(counts.values()) else 0.0
    return {name: round(count * example, 1) for name, count in counts.items()}
