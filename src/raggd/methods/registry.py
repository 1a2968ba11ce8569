"""All methods by name: what each is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from raggd.methods.weights import (
    FILES_OF,
    GRADIENT_STEPS,
    PROMPT_FILE,
    TASK_MEAN_FILE,
    weight_file,
    weights_hash,
)
from raggd.records import SupportSet, require_known

if TYPE_CHECKING:  # torch and transformers load only when a method is made
    from raggd.adaptation.predictors.base import Predictor
    from raggd.backbone.load import Backbone
    from raggd.core.low_rank import BaseAdapter
    from raggd.methods.base import Method
    from raggd.methods.predicted import PredictedUpdate
    from raggd.retrieval.base import Retriever
    from raggd.settings import Settings


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


Builder = Callable[[Parts, str], "Method"]
"""Makes a method, given its name."""


def _query_only(parts: Parts, name: str) -> Method:
    from raggd.methods.plain import query_only

    return query_only()


def _vanilla(parts: Parts, name: str) -> Method:
    from raggd.methods.plain import vanilla_rag

    return vanilla_rag()


def _base(parts: Parts, name: str) -> Method:
    from raggd.methods.plain import base_only

    return base_only(parts.base)


def _few_shot(parts: Parts, name: str, with_base: bool) -> Method:
    from raggd.methods.few_shot import FewShot

    return FewShot(name, parts.base if with_base else None)


def _prompt_tuning(parts: Parts, name: str) -> Method:
    from raggd.adaptation.prompt_tuning import check_prefix, load_prefix
    from raggd.methods.plain import prompt_tuning

    prefix = load_prefix(weight_file(parts.weights, PROMPT_FILE))
    check_prefix(parts.backbone, prefix)
    return prompt_tuning(prefix)


def _predicted(parts: Parts, name: str, scale: float = 1.0) -> PredictedUpdate:
    from raggd.methods.predicted import PredictedUpdate

    file = FILES_OF[name][1]
    return PredictedUpdate(
        name=name,
        backbone=parts.backbone,
        base=parts.base,
        predictor=parts.predictor(file),
        limit=parts.settings.target.max_tokens,
        weights=weights_hash(parts.weights / file),
        scale=scale,
    )


def _gated(parts: Parts, name: str) -> Method:
    from raggd.adaptation.predictors.gated import GatedPredictor, load_gate

    plain = _predicted(parts, name)
    path = weight_file(parts.weights, FILES_OF[name][2])
    gated = GatedPredictor(plain.predictor, load_gate(path, plain.weights))
    return replace(plain, predictor=gated, weights=f"{plain.weights}-{weights_hash(path)}")


def _tt_sgd(parts: Parts, name: str, predicted: bool = False) -> Method:
    from raggd.methods.tt_sgd import TestTimeSGD

    settings = parts.settings.target
    if GRADIENT_STEPS[name]:
        settings = settings.model_copy(update={"steps": GRADIENT_STEPS[name]})
    start = _predicted(parts, name) if predicted else None
    return TestTimeSGD(parts.backbone, parts.base, settings, name, start)


def _task_mean(parts: Parts, name: str) -> Method:
    from raggd.adaptation.task_means import load_task_means
    from raggd.methods.task_mean import TaskMean

    path = weight_file(parts.weights, TASK_MEAN_FILE)
    return TaskMean(parts.base, load_task_means(path, parts.base), weights_hash(path))


def _shuffled(parts: Parts, name: str) -> Method:
    from raggd.methods.shuffled import ShuffledSupport, other_support

    settings = parts.settings

    def choose(support: SupportSet) -> SupportSet:
        k, seed = settings.retrieval.top_k, settings.evaluation.seed
        return other_support(support, parts.source, parts.retriever, k, seed)

    return ShuffledSupport(_predicted(parts, "rag-gd"), choose)


def _irrelevant(parts: Parts, name: str) -> Method:
    from raggd.methods.irrelevant import IrrelevantPassages

    return IrrelevantPassages(_predicted(parts, "rag-gd"))


_SPECIAL: dict[str, Builder] = {
    "query-only": _query_only,
    "vanilla-rag": _vanilla,
    "vanilla-few-shot": partial(_few_shot, with_base=False),
    "base": _base,
    "base-few-shot": partial(_few_shot, with_base=True),
    "prompt-tuning": _prompt_tuning,
    "task-mean": _task_mean,
    "tt-sgd-k1": _tt_sgd,
    "tt-sgd": _tt_sgd,
    "tt-sgd-k10": _tt_sgd,
    "shuffled-support": _shuffled,
    "irrelevant-passages": _irrelevant,
    "rag-gd-gated": _gated,
    "rag-gd-step": partial(_tt_sgd, predicted=True),
    "rag-gd-x0.5": partial(_predicted, scale=0.5),
    "rag-gd-x2": partial(_predicted, scale=2.0),
}
"""How methods are made whose update does not simply come from the predictor in their file."""
METHODS = tuple(FILES_OF)
"""Every method, in the order of the tables."""


def build_method(parts: Parts, name: str) -> Method:
    """Make a method ready to adapt and answer.

    Args:
        parts: what it is made of.
        name: one of `METHODS`; another is refused, the nearest offered.

    Returns:
        The method.
    """
    require_known("method", name, METHODS)
    return _SPECIAL.get(name, _predicted)(parts, name)
