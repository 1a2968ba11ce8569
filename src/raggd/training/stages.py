"""The stages from nothing to weights: a table, one way to run a row, and all of them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raggd.adaptation.base_adapter import fresh_base
from raggd.adaptation.predictors.mlp import MLPPredictor
from raggd.adaptation.refusing import LESSONS
from raggd.adaptation.training import matching_loss
from raggd.assembly import Assembly
from raggd.backbone.interface import mean_answer_loss
from raggd.core.low_rank import tensors_of, update_from_vector
from raggd.evaluation.timing import in_turn
from raggd.files import read_json, write_json
from raggd.methods import spec
from raggd.progress import Progress, silent
from raggd.provenance import origin
from raggd.records import RaggdError, require_known
from raggd.settings import Settings, changed
from raggd.study.runner import duration_text
from raggd.training import fits
from raggd.training.refusals import refusals
from raggd.training.run import Run


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage computes."""

    examples: int = 0  # answered prompts run forward and backward through the backbone
    steps: int = 0  # of a predictor on stored targets


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table."""

    name: str
    file: str  # what it ends in, in the folder of the weights; the record lies beside it
    run: Callable[[Run], dict[str, Any]]  # does it and returns facts for the record
    sections: tuple[str, ...]  # of the settings that it depends on
    work: Callable[[Settings], Work] = lambda _: Work()
    # makes its settings of those of the run
    own: Callable[[Settings], Settings] = lambda settings: settings
    usual: bool = True  # whether `raggd train all` runs it unasked

    def record(self, run: Run) -> Path:
        """Return the file of its record."""
        if self.name == "targets":
            return run.stores[0] / "targets.json"
        file, steps = self.file, run.settings.predictor.target_steps
        if self.name == "predictor" and steps:
            file = f"predictor-k{steps}.safetensors"
        elif self.name == "hyper":
            file = fits.HYPER_FILES[run.settings.hyper_tuning.start]
        return run.out / f"{Path(file).stem}.json"


def _tuning(start: str, factor: float) -> Callable[[Settings], Settings]:
    # the rate of the settings is for a start from zero; a trained start bears less, one vector more
    def own(settings: Settings) -> Settings:
        rate = factor * settings.hyper_tuning.learning_rate
        return changed(settings, "hyper_tuning", start=start, learning_rate=rate)

    return own


def _following(**options: bool) -> Callable[[Settings], Settings]:
    return lambda settings: changed(settings, "examples", **options)


def _sgd(section: str) -> Callable[[Settings], Work]:
    def work(settings: Settings) -> Work:
        own = getattr(settings, section)
        return Work(own.steps * own.batch * own.accumulate)

    return work


def _inner_loop(settings: Settings) -> Work:
    wanted = settings.target
    sets = wanted.per_benchmark * len(wanted.benchmarks)
    return Work(sets * wanted.demonstrations * max([wanted.steps, *wanted.keep]))


def _trials(settings: Settings) -> Work:
    passes = fits.PROBES * (1 + len(fits.SCALES)) + settings.target.demonstrations
    sets = fits.GATE_SETS * len(settings.target.benchmarks)
    return Work(sets * passes // 3)  # forward alone: about a third


_DATA = ("backbone", "data", "retrieval")
_TARGETS = (*_DATA, "adapter", "target")
_HYPER = (*_TARGETS, "predictor", "hyper_tuning")
_LESSONS = (*_DATA, "examples")
STAGES = {
    stage.name: stage
    for stage in (
        Stage("base", spec.BASE_FILE, fits.base, (*_DATA, "base_training"), _sgd("base_training")),
        Stage("targets", "targets", fits.targets, _TARGETS, _inner_loop),
        Stage("predictor", spec.PREDICTOR_FILE, fits.predictor, (*_TARGETS, "predictor"),
              lambda settings: Work(steps=settings.predictor.steps)),
        Stage("tuned", spec.TUNED_FILE, fits.hyper, _HYPER, _sgd("hyper_tuning"),
              _tuning("predictor", 0.1)),
        Stage("mean-tuned", spec.MEAN_TUNED_FILE, fits.hyper, _HYPER, _sgd("hyper_tuning"),
              _tuning("mean", 10)),
        Stage("examples", spec.EXAMPLES_FILE, fits.examples, _LESSONS, _sgd("examples")),
        Stage("refusals", spec.REFUSALS_FILE, refusals, _LESSONS, lambda _: Work(LESSONS // 3)),
        Stage("examples-constant", spec.EXAMPLES_CONSTANT_FILE, fits.examples, _LESSONS,
              _sgd("examples"), _following(show=False, predict=False), usual=False),
        Stage("examples-update", spec.EXAMPLES_UPDATE_FILE, fits.examples, _LESSONS,
              _sgd("examples"), _following(show=False, predict=True), usual=False),
        Stage("examples-both", spec.EXAMPLES_BOTH_FILE, fits.examples, _LESSONS,
              _sgd("examples"), _following(show=True, predict=True), usual=False),
        Stage("examples-whole", spec.EXAMPLES_WHOLE_FILE, fits.examples, _LESSONS,
              _sgd("examples"), _following(show=True, passages=True), usual=False),
        Stage("hyper", spec.HYPER_FILE, fits.hyper, _HYPER, _sgd("hyper_tuning"), usual=False),
        Stage("ridge", spec.RIDGE_FILE, fits.ridge, (*_TARGETS, "predictor", "ridge"),
              usual=False),
        Stage("task-mean", spec.TASK_MEAN_FILE, fits.task_mean, _TARGETS, usual=False),
        Stage("prompt", spec.PROMPT_FILE, fits.prompt, (*_DATA, "base_training", "prompt_tuning"),
              _sgd("prompt_tuning"), usual=False),
        Stage("gate", spec.GATE_FILE, fits.gate, _TARGETS, _trials, usual=False),
    )
}  # fmt: skip
"""All stages by name, in the order in which they can run. A new one is a line here."""
USUAL = tuple(name for name, stage in STAGES.items() if stage.usual)


def run_stage(name: str, run: Run) -> dict[str, Any]:
    """Run one stage and return its record, which is written.

    It holds settings, seconds (of all sessions of a resumed training), versions and facts.
    """
    stage = STAGES[name]
    run = replace(run, parts=run.parts.derived(stage.own(run.settings)))
    started = time.monotonic()
    facts = stage.run(run)
    seconds = facts.pop("seconds", time.monotonic() - started)
    record = {"settings": run.settings.model_dump(), "seconds": round(seconds, 1)}
    record |= {**origin(), **facts}
    write_json(stage.record(run), record)
    return record


def is_done(stage: Stage, run: Run) -> bool:
    """Say whether a stage was finished with these settings: its record is there, and what it made.

    Raises:
        RaggdError: it was finished with other settings.
    """
    run = replace(run, parts=run.parts.derived(stage.own(run.settings)))
    path = stage.record(run)
    weights = path.with_suffix(".safetensors")
    if not path.is_file() or not (stage.name == "targets" or weights.is_file()):
        return False
    made = read_json(path, what="training record")
    own, base = run.settings.model_dump(mode="json"), made.get("base")
    for section in stage.sections:
        for name, value in own[section].items():
            found = made["settings"].get(section, {}).get(name, value)
            if found != value and (section, name) != ("adapter", "weights"):
                raise RaggdError(
                    f"{path} was made with {section}.{name} = {found!r}, now it is {value!r}: "
                    "choose another --out, or remove the file to train this stage again."
                )
    if base is not None and base != run.parts.base.fingerprint:
        raise RaggdError(
            f"{path} was made for base adapter {base}, the one in {run.out} is "
            f"{run.parts.base.fingerprint}: choose another --out, or remove the file."
        )
    return True


def train_all(
    parts: Assembly,
    out: Path,
    names: Sequence[str] = USUAL,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run stages in order; those that are done are left out, an interrupted one continues.

    All names are checked before any stage runs; targets go to ``targets`` below `out`. `announce`
    is told in a line what is left and how long it will take, before it starts.

    ``out``, ``seconds`` of this call, ``estimate`` in seconds by stage, and ``stages``: by name,
    seconds and hashes of each record. It stands in ``train.json``.
    """
    for name in names:
        require_known("stage", name, tuple(STAGES))
    started = time.monotonic()
    # what stages share is loaded into these; each has parts of its own, to read what others wrote
    shared = parts.derived(changed(parts.settings, "adapter", weights=str(out)))
    settings, stores = shared.settings, (out / "targets",)
    order = [stage for name, stage in STAGES.items() if name in names]
    records: dict[str, Any] = {}
    estimate: dict[str, float] = {}
    for number, stage in enumerate(order):
        told = _labelled(progress, f"{number + 1} of {len(order)}, {stage.name}: ")
        run = Run(shared.derived(settings), out, stores, told)
        if is_done(stage, run):
            records[stage.name] = read_json(stage.record(run), what="training record")
            continue
        if not estimate:
            estimate = estimated(replace(run, parts=shared), order[number:])
            announce(_in_words(estimate))
            run = replace(run, parts=shared.derived(settings))
        records[stage.name] = run_stage(stage.name, run)
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


def seconds_per_example(run: Run) -> float:
    """Return the time of a training example, forward and backward, in a batch of the base's."""
    wanted, backbone = run.settings.base_training, run.parts.backbone
    questions = run.questions(wanted.benchmarks[0])[: wanted.batch]
    prompts = run.prompts(questions, wanted.max_tokens)
    spec = backbone.adapter_spec(run.settings.adapter)
    base = fresh_base(spec, backbone.fingerprint, 0).to(backbone.device)
    for tensor in tensors_of(base.factors).values():
        tensor.requires_grad_(True)

    def step() -> None:
        mean_answer_loss(backbone, prompts, base).backward()  # type: ignore[no-untyped-call]

    return in_turn({"step": step}, 1)["step"][0] / 1000 / len(prompts)


def seconds_per_step(run: Run) -> float:
    """Return the time of one step of a predictor on stored targets (paper equation 9)."""
    wanted, backbone = run.settings.predictor, run.parts.backbone
    spec, width = backbone.adapter_spec(run.settings.adapter), backbone.model.config.hidden_size
    base = fresh_base(spec, backbone.fingerprint, 0).to(backbone.device)
    predictor = MLPPredictor(spec, base.fingerprint, width, wanted.hidden, wanted.latent)
    predictor.to(backbone.device)
    states = torch.randn(wanted.batch, run.settings.target.demonstrations, width)
    vectors = torch.randn(wanted.batch, spec.size, device=backbone.device)
    goal = update_from_vector(spec, vectors, base.fingerprint)

    def step() -> None:
        matching_loss(base, predictor(states.to(backbone.device)), goal).mean().backward()  # type: ignore[no-untyped-call]

    return in_turn({"step": step}, 1)["step"][0] / 1000


def estimated(run: Run, stages: Sequence[Stage]) -> dict[str, float]:
    """Say how many seconds stages will take, from steps that are measured now.

    Work that is neither in the backbone nor in a predictor counts as none.
    """
    works = {stage.name: stage.work(run.settings) for stage in stages}
    example = seconds_per_example(run) if any(w.examples for w in works.values()) else 0.0
    step = seconds_per_step(run) if any(w.steps for w in works.values()) else 0.0
    return {name: round(w.examples * example + w.steps * step, 1) for name, w in works.items()}


def _labelled(progress: Progress, label: str) -> Progress:
    return lambda what, done, total: progress(label + what, done, total)


def _in_words(estimate: Mapping[str, float]) -> str:
    parts = ", ".join(f"{name} {duration_text(s)}" for name, s in estimate.items())
    return f"About {duration_text(sum(estimate.values()))} on this machine: {parts}."
