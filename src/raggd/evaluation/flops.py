"""Counted operations of adapting and answering, from the model's shape and the prompts' lengths.

Padding is left out. PyTorch's own counter, against which tests hold these formulas, has to run the
model, multiplies masked pairs of tokens too, and misses products that add in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from raggd.adaptation.targets import answered_prompt
from raggd.data.prompts import Prompt
from raggd.evaluation.runner import CellRun
from raggd.methods.answering import opening_tokens
from raggd.methods.base import Adapted, Control, Item, Method, Shows
from raggd.methods.predicted import PredictedUpdate, TestTimeSGD
from raggd.records import SupportSet


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What decides a dense decoder's operations: a multiply-add is two, norms count as none."""

    parameters: int  # P, weights of the matrices that every token passes, output layer apart
    layers: int  # L
    width: int  # d, heads times head size
    vocabulary: int = 0  # V, rows of the output layer
    hidden: int = 0  # h, width of the state that the output layer reads

    def _attention(self, tokens: int, past: int = 0) -> int:
        # token i (1 .. T) meets past + i keys: 2 d for the score and 2 d for the mix, each
        pairs = tokens * past + tokens * (tokens + 1) // 2
        return 4 * self.layers * self.width * pairs

    def forward(self, tokens: int, *, past: int = 0, logits: int = 0, extra: int = 0) -> int:
        """Count a causal pass: ``2 P T + 4 L d (T past + T (T + 1) / 2) + 2 h V logits``.

        T new tokens come after `past` cached ones; `extra` are weights of an unmerged adapter.
        """
        body = 2 * (self.parameters + extra) * tokens + self._attention(tokens, past)
        return body + 2 * self.hidden * self.vocabulary * logits

    def backward(self, tokens: int, *, trainable: int, logits: int = 0) -> int:
        """Count a backward pass to an adapter's weights: ``2 (P + 2 A) T`` and twice attention.

        The gradient flows through every weight, A adapter weights among them, whose own is formed.
        """
        body = 2 * (self.parameters + 2 * trainable) * tokens + 2 * self._attention(tokens)
        return body + 2 * self.hidden * self.vocabulary * logits


def model_shape(model: Any) -> ModelShape:
    """Read the shape off a Hugging Face causal LM, which may lie on the meta device."""
    head = model.get_output_embeddings()
    linear = [m for m in model.modules() if m is not head and hasattr(m, "in_features")]
    queries = [m for name, m in model.named_modules() if name.endswith("q_proj")]
    return ModelShape(
        parameters=sum(m.in_features * m.out_features for m in linear),
        layers=len(queries),
        width=queries[0].out_features,
        vocabulary=head.out_features,
        hidden=head.in_features,
    )


def answering_flops(
    shape: ModelShape, prompt: int, answer: int, *, extra: int = 0, cached: int = 0
) -> int:
    """Count reading a prompt, whose first `cached` tokens are there, and decoding its answer."""
    later = max(0, answer - 1)  # the first token comes from the prompt's last position
    reading = shape.forward(prompt - cached, past=cached, logits=1, extra=extra)
    return reading + shape.forward(later, past=prompt, logits=later, extra=extra)


def reading_flops(shape: ModelShape, demonstrations: Sequence[Prompt], extra: int) -> int:
    """Count one forward pass over the demonstrations: what a predictor's encoder costs."""
    return sum(shape.forward(len(p.tokens), extra=extra) for p in demonstrations)


def sgd_flops(shape: ModelShape, demonstrations: Sequence[Prompt], adapter: int, steps: int) -> int:
    """Count K gradient steps on the demonstrations; base adapter and update are both passed."""
    once = sum(
        shape.forward(len(p.tokens), logits=p.answer_tokens, extra=2 * adapter)
        + shape.backward(len(p.tokens), trainable=adapter, logits=p.answer_tokens)
        for p in demonstrations
    )
    return steps * once


def adapting_flops(
    method: Method, shape: ModelShape, demonstrations: Sequence[Prompt], adapter: int
) -> int:
    """Count one adaptation; 0 for a method that does not adapt, or reads them in its prompts."""
    if not method.adapts or isinstance(method, Shows):
        return 0
    predictor = getattr(method, "predictor", None)
    if predictor is not None:
        own: int = sum(p.numel() for p in getattr(predictor, "parameters", tuple)())
        return reading_flops(shape, demonstrations, adapter) + 2 * own
    if isinstance(method, Control):
        return adapting_flops(method.inner, shape, demonstrations, adapter)
    assert isinstance(method, TestTimeSGD)
    steps = sgd_flops(shape, demonstrations, adapter, method.settings.steps)
    start = method.start
    return steps + (adapting_flops(start, shape, demonstrations, adapter) if start else 0)


def _extra(method: Method, adapted: Adapted) -> int:
    # weights of the adapter and update in use
    base = adapted.base or getattr(getattr(method, "inner", method), "base", None)
    changed = adapted.update is not None or (method.adapts and not adapted.shown)
    return base.spec.size * (2 if changed else 1) if base else 0


def _unread(method: Method, support: SupportSet) -> tuple[Adapted, Sequence[int]]:
    # of the others that adapt it is known that they show passages, nothing before them
    if isinstance(method, Shows):
        return method.unread(support)
    return Adapted() if method.adapts else method.adapt([support])[0], ()


def counted_costs(answers: Mapping[str, str], run: CellRun) -> dict[str, float]:
    """Count means: ``adapt_flops`` (few shot: reading demonstrations) and ``answer_flops``.

    Nothing is counted of a method that adapts in a way of its own.
    """
    known = (Shows, Control, PredictedUpdate, TestTimeSGD)
    if run.method.adapts and not isinstance(run.method, known):
        return {}
    shape, tokenizer = model_shape(run.backbone.model), run.backbone.tokenizer
    groups: dict[tuple[int, str], list[Item]] = {}
    for number in range(len(run.task.draws)):
        for item in run.given(number):
            groups.setdefault((number, item.support.id), []).append(item)
    adapting, answering = [], []
    for items in groups.values():
        support = items[0].support
        adapted, encoded = _unread(run.method, support)
        extra = _extra(run.method, adapted)
        prompts = run.prompts(items, [adapted] * len(items))
        cached = len(adapted.prefix.tokens if adapted.prefix else opening_tokens(adapted, prompts))
        limit = run.settings.target.max_tokens
        shown = [answered_prompt(tokenizer, d, limit) for d in support.demonstrations]
        opening = shape.forward(cached, extra=extra)
        w0 = adapted.base.spec.size if adapted.base else 0
        opening += shape.forward(len(encoded), extra=w0)  # the network behind it is negligible
        adapting.append(opening + adapting_flops(run.method, shape, shown, extra // 2))
        before = len(adapted.soft.vectors) if adapted.soft else 0
        for item, prompt in zip(items, prompts, strict=True):
            answer = tokenizer.encode(answers[item.question.id], add_special_tokens=False)
            read, length = len(prompt.tokens) + before, len(answer) + 1
            answering.append(answering_flops(shape, read, length, extra=extra, cached=cached))
    return {"adapt_flops": fmean(adapting), "answer_flops": fmean(answering)}
