"""Training on the answers of examples: what the base adapter and prompt tuning have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from raggd.adaptation.batching import BatchOrder, BatchSettings
from raggd.adaptation.optimizer import OptimizerSettings, Progress, Trainer, warmup_of
from raggd.data.prompts import Prompt
from raggd.records import RaggdError, content_id

Loss = Callable[[Sequence[int]], Tensor]
"""The mean answer loss of the examples of some numbers, with gradients to what is trained."""


class AnswerSettings(OptimizerSettings, BatchSettings, Protocol):
    """Settings of a training on answers."""


def examples_id(prompts: Sequence[Prompt]) -> str:
    """Hash training examples, token by token.

    Args:
        prompts: the examples.

    Returns:
        16 hexadecimal digits.

    Raises:
        RaggdError: there are none.
    """
    if not prompts:
        raise RaggdError("no training examples: the benchmarks gave no question with an answer.")
    return content_id(*(",".join(map(str, p.tokens)) for p in prompts))


def train_on_answers(
    parameters: Mapping[str, Tensor],
    prompts: Sequence[Prompt],
    loss_of: Loss,
    settings: AnswerSettings,
    *,
    identity: str,
    checkpoint: Path,
    progress: Progress,
    check: Callable[[], None] = lambda: None,
) -> list[float]:
    """Train parameters by AdamW on the cross-entropy of answer tokens, in place.

    Stopped at any moment and called again with the same arguments, it continues from
    `checkpoint` to the same result.

    Args:
        parameters: leaves that require a gradient, by name.
        prompts: training examples with answers.
        loss_of: their loss under the parameters.
        settings: steps, batch, rates.
        identity: hash of all that the result depends on.
        checkpoint: file to continue from and to write every two minutes and at the end.
        progress: told every step.
        check: called when the first gradients stand on the parameters.

    Returns:
        The loss of every step.
    """
    order = BatchOrder([len(p.tokens) for p in prompts], settings.batch, settings.seed)
    trainer = Trainer(parameters, settings, identity=identity, warmup=warmup_of(settings))

    def differentiate(step: int) -> float:
        total = 0.0
        for part in range(settings.accumulate):
            loss = loss_of(order(step * settings.accumulate + part)) / settings.accumulate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        if step == 0:
            check()
        return total

    trainer.run(differentiate, checkpoint, progress)
    return trainer.history
