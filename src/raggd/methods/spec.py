"""The one table of methods: what each is made of, costs, is called and is compared with.

Pure data: torch loads when a method is made. A new method is a file with a builder, and an entry in
`SPECS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from raggd.files import file_hash
from raggd.records import RaggdError, require_known

if TYPE_CHECKING:  # torch and transformers load only when a method is made
    from raggd.adaptation.predictors.base import Predictor
    from raggd.backbone.load import Backbone
    from raggd.core.low_rank import BaseAdapter
    from raggd.methods.base import Method
    from raggd.retrieval.base import Retriever
    from raggd.settings import Settings


def file_of(stage: str) -> str:
    """Name the file that a stage of training ends in, in a folder of weights."""
    return f"{stage}.safetensors"


BASE_FILE, PREDICTOR_FILE, MEAN_FILE = file_of("base"), file_of("predictor"), file_of("mean")
TUNED_FILE, PROMPT_FILE = file_of("tuned"), file_of("prompt")
EXAMPLES_FILE, REFUSALS_FILE = file_of("examples"), file_of("refusals")
FAMILIES = {
    "frozen model": "#7a7f87",
    "trained once": "#009e73",
    "gradients at test time": "#0072b2",
    "predicted update": "#d55e00",
    "controls": "#c0699a",
}
"""Colours of the families, after Okabe and Ito: a contrast of 3 to 1 on white and near-black."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """A row of the table."""

    # ``module:function`` below `raggd.methods`, called with the parts of a run, the method's name
    # and the `options`; empty for what only a report names
    builder: str
    label: str  # its name in tables and figures
    family: str  # of `FAMILIES`
    mark: str  # matplotlib's marker in figures of cost and accuracy
    explanation: str  # what it does, for a reader who does not know the paper
    # its files, W0's first, by the stage of training that makes each; ``mean`` is the predictor's
    weights: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)  # further arguments of the builder
    shown: bool = False  # whether demonstrations stand in the prompt
    encoded: bool = False  # whether demonstrations are read for a predictor
    gradient_steps: int | None = None  # at test time; 0: as `target.steps` says; None: none
    imitates: int | None = None  # K of the targets that its update is compared with, likewise
    compared_with: tuple[str, ...] = ()  # in a study; one family for Holm's rule
    control: str = ""  # the method trained as it is, with one result for all demonstrations
    headline: bool = False  # whether short tables and the evaluation's default hold it


# fmt: off
SPECS: dict[str, MethodSpec] = {
    "query-only": MethodSpec(
        "plain:build", "Query only", "frozen model", "s",
        "The frozen model answers from the question alone: what it knows by heart.",
    ),
    "vanilla-rag": MethodSpec(
        "plain:build", "Vanilla RAG", "frozen model", "^",
        "The frozen model reads the retrieved passages in its prompt. Nothing is adapted.",
        headline=True,
    ),
    "vanilla-few-shot": MethodSpec(
        "plain:build_few_shot", "Vanilla + few shot", "frozen model", "d",
        "Vanilla RAG with the demonstrations of the task, passages included, in its prompt. They "
        "are read once and serve every question.",
        options={"with_base": False}, shown=True,
    ),
    "base": MethodSpec(
        "plain:build", "Base adapter", "trained once", "v",
        "The model with one small adapter that was trained once to use passages. It is the same "
        "for every task, and the starting point of the methods below.",
        weights=("base",), headline=True, compared_with=("vanilla-rag",),
    ),
    "base-few-shot": MethodSpec(
        "plain:build_few_shot", "Base + few shot", "trained once", "s",
        "The base adapter with the demonstrations of the task in its prompt.",
        weights=("base",), options={"with_base": True}, shown=True,
    ),
    "prompt-tuning": MethodSpec(
        "plain:build_prompt_tuning", "Prompt tuning", "trained once", "X",
        "The frozen model with a trained prefix of artificial words before its prompt, in the "
        "place of the base adapter and from the same examples.",
        weights=("prompt",),
    ),
    "hyper-tuning": MethodSpec(
        "predicted:build", "HyperTuning", "predicted update", "X",
        "The network of RAG-GD, trained to lower the loss of other answers of the task instead of "
        "imitating gradient steps.",
        weights=("base", "hyper"), encoded=True, imitates=0,
    ),
    "mean-update": MethodSpec(
        "plain:build_mean", "Mean update", "controls", "P",
        "The base adapter plus one fixed change, the average of all training targets. A control: "
        "it never looks at the demonstrations of the task.",
        weights=("base", "mean"), imitates=0, headline=True,
        compared_with=("base",),
    ),
    "mean-tuned": MethodSpec(
        "plain:build_mean", "Mean update, tuned", "controls", "X",
        "One fixed change for all tasks, trained on the answers that RAG-GD, tuned, learns from. "
        "A control: what is left when the demonstrations are not read.",
        weights=("base", "mean-tuned"),
        headline=True,
    ),
    "task-mean": MethodSpec(
        "plain:build_task_mean", "Task mean", "controls", "d",
        "The base adapter plus the average change that gradient steps make on many demonstrations "
        "of the task. A control: it knows the task, but reads no demonstrations at test time.",
        weights=("base", "task-mean"),
    ),
    "tt-sgd-k1": MethodSpec(
        "predicted:build_sgd", "TT-SGD, K = 1", "gradients at test time", "<",
        "Test-time training with one gradient step.",
        weights=("base",), gradient_steps=1,
    ),
    "tt-sgd": MethodSpec(
        "predicted:build_sgd", "TT-SGD", "gradients at test time", "o",
        "Test-time training. The adapter takes real gradient steps on the demonstrations of the "
        "task, forwards and backwards through the model, before it answers.",
        weights=("base",), gradient_steps=0, headline=True, compared_with=("base",),
    ),
    "tt-sgd-k10": MethodSpec(
        "predicted:build_sgd", "TT-SGD, K = 10", "gradients at test time", ">",
        "Test-time training with ten gradient steps.",
        weights=("base",), gradient_steps=10,
    ),
    "rag-gd-k1": MethodSpec(
        "predicted:build", "RAG-GD, K = 1", "predicted update", "<",
        "RAG-GD with a predictor that learned the change of one gradient step.",
        weights=("base", "predictor-k1"), encoded=True, imitates=1, compared_with=("base",),
    ),
    "rag-gd": MethodSpec(
        "predicted:build", "RAG-GD", "predicted update", "D",
        "The method of the paper. A trained predictor reads the demonstrations once and emits the "
        "change that gradient steps would make. There is no backward pass.",
        weights=("base", "predictor"), encoded=True, imitates=0, headline=True,
        control="mean-update",
        compared_with=("base", "tt-sgd", "mean-update", "task-mean", "shuffled-support",
            "hyper-tuning", "prompt-tuning", "base-few-shot"),
    ),
    "rag-gd-k10": MethodSpec(
        "predicted:build", "RAG-GD, K = 10", "predicted update", ">",
        "RAG-GD with a predictor that learned the change of ten gradient steps.",
        weights=("base", "predictor-k10"), encoded=True, imitates=10, compared_with=("base",),
    ),
    "rag-gd-ridge": MethodSpec(
        "predicted:build", "RAG-GD, closed form", "predicted update", "p",
        "RAG-GD whose predictor was not trained in steps but solved for: a regression on what the "
        "changes of a task have in common.",
        weights=("base", "ridge"), encoded=True,
    ),
    "rag-gd-tuned": MethodSpec(
        "predicted:build", "RAG-GD, tuned", "predicted update", "*",
        "RAG-GD whose predictor was trained on, through the answer loss, as in HyperTuning.",
        weights=("base", "tuned"), encoded=True, imitates=0, headline=True, control="mean-tuned",
        compared_with=("base", "tt-sgd", "rag-gd", "mean-update", "mean-tuned"),
    ),
    "rag-gd-made": MethodSpec(
        "", "RAG-GD, made", "predicted update", "H",
        "RAG-GD with demonstrations that the model itself made from passages.",
        compared_with=("base", "rag-gd", "rag-gd-tuned", "mean-update", "mean-tuned"),
    ),
    "rag-gd-gated": MethodSpec(
        "predicted:build_gated", "RAG-GD, gated", "predicted update", "h",
        "RAG-GD, tuned, with a gate that scales the change or withholds it, by its expected gain.",
        weights=("base", "tuned", "gate"), encoded=True, compared_with=("base",),
    ),
    "examples": MethodSpec(
        "examples:build", "Examples, followed", "trained once", "P",
        "The questions and answers of the demonstrations, read once and kept as keys and values, "
        "under one small change that was trained to follow whatever they show.",
        weights=("base", "examples"), shown=True, encoded=True,
        headline=True, compared_with=("base", "rag-gd-tuned", "base-examples"),
    ),
    "examples-constant": MethodSpec(
        "examples:build", "Examples, constant", "controls", "h",
        "The step trained on the lessons of Examples, followed, without the examples. A control: "
        "what is left when they are not read.",
        weights=("base", "examples-constant"),
        options={"prefix": False, "template": False},
    ),
    "examples-update": MethodSpec(
        "examples:build", "Examples, update alone", "predicted update", "s",
        "The same lessons, the examples read for an update instead of standing before the "
        "question: what an engine needs that takes a LoRA and no prefix.",
        weights=("base", "examples-update"),
        options={"prefix": False, "predict": True}, encoded=True,
    ),
    "examples-both": MethodSpec(
        "examples:build", "Examples, prefix and update", "predicted update", "d",
        "Examples, followed, with an update predicted from them beside the prefix.",
        weights=("base", "examples-both"),
        options={"predict": True}, shown=True, encoded=True,
    ),
    "examples-whole": MethodSpec(
        "examples:build", "MetaICL", "trained once", "D",
        "The same lessons, the examples before the question with their passages, read once and "
        "kept: an interface trained to learn in context, as MetaICL trains a whole model.",
        weights=("base", "examples-whole"),
        options={"template": False, "passages": True}, shown=True, encoded=True,
    ),
    "base-examples": MethodSpec(
        "examples:build", "Base + examples", "trained once", "p",
        "The same prefix under the base adapter alone, which was not trained to follow it.",
        weights=("base",), options={"step": False}, shown=True, encoded=True,
    ),
    "examples-left": MethodSpec(
        "examples:build", "Examples, forms left to the model", "controls", "8",
        "Examples, followed, without taking out and putting back the template that they settle: "
        "the model writes it itself.",
        weights=("base", "examples"),
        options={"template": False}, shown=True, encoded=True,
    ),
    "base-template": MethodSpec(
        "examples:build", "Base + template", "controls", "*",
        "The base adapter's answer, written in the template that the examples settle. The model "
        "sees none of them.",
        weights=("base",), options={"step": False, "prefix": False},
    ),
    "vanilla-examples": MethodSpec(
        "examples:build", "Vanilla + examples", "frozen model", "p",
        "The same prefix before the frozen model.",
        options={"base": False, "step": False}, shown=True, encoded=True,
    ),
    "rag-gd-step": MethodSpec(
        "predicted:build_sgd", "RAG-GD, then one step", "gradients at test time", "X",
        "The predicted change, and from there one real gradient step on the demonstrations.",
        weights=("base", "predictor"), encoded=True, gradient_steps=1, compared_with=("rag-gd",),
    ),
    "shuffled-support": MethodSpec(
        "controls:build_control", "Shuffled support", "controls", "<",
        "RAG-GD given the demonstrations of another task. A control.",
        weights=("base", "predictor"), encoded=True,
    ),
    "irrelevant-passages": MethodSpec(
        "controls:build_control", "Irrelevant passages", "controls", ">",
        "RAG-GD answering from the passages of another question. A control.",
        weights=("base", "predictor"), encoded=True,
    ),
    "rag-gd-x0.5": MethodSpec(
        "predicted:build", "RAG-GD x 0.5", "controls", "v",
        "RAG-GD with half the predicted change.",
        weights=("base", "predictor"), options={"scale": 0.5}, encoded=True,
    ),
    "rag-gd-x2": MethodSpec(
        "predicted:build", "RAG-GD x 2", "controls", "^",
        "RAG-GD with twice the predicted change.",
        weights=("base", "predictor"), options={"scale": 2.0}, encoded=True,
    ),
}
# fmt: on
"""All methods by name, in the order of the tables."""
METHODS = tuple(name for name, spec in SPECS.items() if spec.builder)
"""Every method that can be run."""
FILES_OF = {name: tuple(map(file_of, SPECS[name].weights)) for name in METHODS}
"""Files of the weights folder that each method reads."""
NAMED = tuple((name, other) for name, spec in SPECS.items() for other in spec.compared_with)
"""Comparisons, (method, other), that a study is made for."""
HEADLINE = tuple(name for name, spec in SPECS.items() if spec.headline)  # methods of short tables


def method_label(name: str) -> str:
    """Return the readable name of a method (its own name when it is not in the table)."""
    return SPECS[name].label if name in SPECS else name


def by_family(family: str) -> tuple[str, ...]:
    """Return the methods of a family that can be run, in the order of the tables."""
    return tuple(name for name in METHODS if SPECS[name].family == family)


SHIPPED = Path(str(resources.files("raggd"))) / "weights"


def shipped_weights(backbone: str) -> Path:
    """Return the folder of the weights that come with raggd for a backbone: none, if none do."""
    there = {path.name: path for path in SHIPPED.iterdir() if path.is_dir()}
    return there.get(backbone, SHIPPED / "none")


def is_untrained(folder: Path) -> bool:
    """Return whether no W0 ships in a folder: then it is untrained, and changes nothing."""
    return folder.parent == SHIPPED and not (folder / BASE_FILE).is_file()


def made_by(file: str) -> str:
    """Return the command that makes a weight file."""
    stage = Path(file).stem
    return f"raggd train {'predictor' if stage == 'mean' else stage}"


def weight_file(folder: Path, file: str) -> Path:
    """Find a weight file, or refuse with the command that makes it."""
    path = folder / file
    if not path.is_file():
        lack = f"no weight file at {path}"
        if folder.parent == SHIPPED:
            lack = f"raggd ships no {file} for this backbone"
        raise RaggdError(
            f"{lack}: make it with `{made_by(file)}` and name its folder by adapter.weights."
        )
    return path


def weights_hash(path: Path) -> str:
    """Return the short hash by which records name a weight file: 16 hexadecimal digits."""
    return file_hash(path)[:16]


def can_run(method: str, folder: Path) -> bool:
    """Return whether all weights of a method lie in a folder."""
    return all((folder / file).is_file() for file in FILES_OF[method])


PREFERRED = ("examples", "rag-gd-tuned", "rag-gd")  # the first whose files are there


def adapting_method(folder: Path) -> str:
    """Name what adapts where nobody names a method: the first of `PREFERRED` with its files."""
    there = (n for n in PREFERRED if all((folder / file).is_file() for file in FILES_OF[n][1:]))
    return next(there, "base-examples")


class Parts(Protocol):
    """What methods are made of; an `Assembly` has it all."""

    settings: Settings

    @property
    def backbone(self) -> Backbone:
        """The frozen language model."""

    @property
    def base(self) -> BaseAdapter:
        """W0."""

    @property
    def weights(self) -> Path:
        """Folder of the weight files."""

    @property
    def source(self) -> str:
        """Where benchmarks are read from."""

    @property
    def retriever(self) -> Retriever:
        """Finds passages."""

    def predictor(self, file: str) -> Predictor:
        """Load a predictor of the weights folder, given its file name."""


def build_method(parts: Parts, name: str) -> Method:
    """Return a method of `METHODS` ready to adapt and answer; another name is refused."""
    require_known("method", name, METHODS)
    module, function = SPECS[name].builder.split(":")
    builder = getattr(import_module(f"raggd.methods.{module}"), function)
    method: Method = builder(parts, name, **SPECS[name].options)
    return method
