"""What a study will take: operations, hours, memory, and questions enough. Pure arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from raggd.backbone.room import BYTES
from raggd.data.prompts import Prompt
from raggd.evaluation.flops import ModelShape, answering_flops, reading_flops, sgd_flops
from raggd.evaluation.statistics import questions_needed
from raggd.methods.spec import SPECS
from raggd.study.shapes import Sizes

EFFECTS = (1.0, 2.7)
"""Gains of RAG-GD over the base adapter in the paper, points of EM."""
ASSUMED_CHANGED = 0.10
"""Share of questions whose EM differs between two methods, where no record tells it."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of what is read and written.

    Attributes:
        prompt: a question with its passages.
        bare: a question without.
        demonstration: a demonstration with passages and answer.
        answer: an answer with its end.
        measured: whether a real tokenizer counted them.
    """

    prompt: float
    bare: float
    demonstration: float
    answer: float
    measured: bool


@dataclass(frozen=True, slots=True)
class Rates:
    """How fast the machine is.

    Attributes:
        flops: operations per second where many tokens are read at once.
        bandwidth: bytes of weights per second where tokens are written one by one.
        told: where the numbers come from.
    """

    flops: float
    bandwidth: float
    told: str


@dataclass(frozen=True, slots=True)
class Work:
    """One method on one backbone.

    Attributes:
        adapt_flops: of one adaptation.
        answer_flops: of one question.
        adapt_seconds: of one adaptation.
        answer_seconds: of one question.
    """

    adapt_flops: float
    answer_flops: float
    adapt_seconds: float
    answer_seconds: float


def weight_bytes(sizes: Sizes, dtype: str) -> float:
    """Return the memory of a backbone's weights in bytes."""
    embeddings = 2.0 if dtype == "nf4" else BYTES[dtype]
    return sizes.parameters * BYTES[dtype] + sizes.embeddings * embeddings


def _shown(lengths: Lengths, count: int) -> list[Prompt]:
    tokens = round(lengths.demonstration)
    return [Prompt((0,) * tokens, round(lengths.answer), 0)] * count


def method_work(
    method: str,
    sizes: Sizes,
    lengths: Lengths,
    rates: Rates,
    *,
    demonstrations: int,
    steps: int,
    rank: int,
    batch: int,
    dtype: str,
) -> Work:
    """Estimate what a method costs.

    Args:
        method: its name.
        sizes: of the backbone.
        lengths: of prompts and answers.
        rates: of the machine.
        demonstrations: N.
        steps: K of TT-SGD.
        rank: of the adapter.
        batch: questions answered together; they share the reading of the weights.
        dtype: of the weights.

    Returns:
        Operations and seconds.
    """
    shape = ModelShape(sizes.parameters, sizes.layers, sizes.width, sizes.vocabulary, sizes.hidden)
    adapter = sizes.layers * rank * (3 * sizes.hidden + sizes.width + 2 * sizes.kv_width)
    shown = _shown(lengths, demonstrations)
    prompt = lengths.bare if method == "query-only" else lengths.prompt
    adapting, spec = 0.0, SPECS[method]
    if spec.shown:
        opening = round(lengths.demonstration * demonstrations)
        adapting = float(shape.forward(opening))
        answering = answering_flops(
            shape, opening + round(prompt), round(lengths.answer), cached=opening
        )
    else:
        answering = answering_flops(shape, round(prompt), round(lengths.answer), extra=2 * adapter)
        if spec.gradient_steps is not None:
            adapting = float(sgd_flops(shape, shown, adapter, spec.gradient_steps or steps))
        if spec.encoded:
            adapting += float(reading_flops(shape, shown, adapter))
    writing = (lengths.answer - 1) * weight_bytes(sizes, dtype) / rates.bandwidth / batch
    return Work(adapting, answering, adapting / rates.flops, answering / rates.flops + writing)


def memory_bytes(
    sizes: Sizes,
    lengths: Lengths,
    *,
    dtype: str,
    batch: int,
    demonstrations: int,
    gradients: bool,
    longest: int,
) -> dict[str, float]:
    """Estimate the memory of one backbone at its largest moment.

    Args:
        sizes: of the backbone.
        lengths: of prompts and answers.
        dtype: of the weights.
        batch: questions answered together.
        demonstrations: N; a gradient step holds them all.
        gradients: whether a method takes gradient steps.
        longest: tokens that a prompt may have at most.

    Returns:
        Bytes of ``weights``, ``cache`` (keys and values of the longest prompts), ``activations``
        and their sum ``total``. Activations count about 16 hidden and 4 feed-forward vectors per
        token and layer where gradients need them, of one layer where not.
    """
    weights = weight_bytes(sizes, dtype)
    cache = 2 * sizes.layers * sizes.kv_width * longest * batch * 2.0
    vectors = (16 * sizes.hidden + 4 * sizes.inner) * 2.0
    reading = vectors * longest * batch + sizes.vocabulary * batch * 4.0
    training = 0.0
    if gradients:
        tokens = lengths.demonstration * demonstrations
        logits = lengths.answer * demonstrations * sizes.vocabulary * 8.0
        training = vectors * tokens * sizes.layers + logits
    activations = max(reading, training)
    total = weights + cache + activations
    return {"weights": weights, "cache": cache, "activations": activations, "total": total}


def power(
    questions: int, changed: float | None, observed_std: float | None = None
) -> dict[str, object]:
    """Tell how many questions show the paper's effects, and which effect the plan shows.

    Args:
        questions: distinct questions planned per block.
        changed: share of questions whose EM differs, where records tell it.
        observed_std: standard deviation of one question's difference, where records tell it.

    Returns:
        The share assumed or observed, ``needed`` by effect (points of EM), and ``detectable``:
        the effect seen with 80 % power. Two-sided, 95 %, paired.
    """
    share = ASSUMED_CHANGED if changed is None else changed
    needed = {}
    for effect in EFFECTS:
        std = observed_std or math.sqrt(max(share - (effect / 100) ** 2, 0.0))
        needed[f"{effect:g}"] = questions_needed(effect / 100, std)
    quantile = NormalDist().inv_cdf
    std = observed_std or math.sqrt(share)
    detectable = 100 * (quantile(0.975) + quantile(0.8)) * std / math.sqrt(max(1, questions))
    return {
        "changed": share,
        "observed": changed is not None,
        "needed": needed,
        "planned": questions,
        "detectable": round(detectable, 2),
    }
