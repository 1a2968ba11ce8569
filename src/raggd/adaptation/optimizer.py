"""The one training loop: which examples a step sees, AdamW, checkpoints that resume exactly.

Examples of a step are a pure function of seed and step. The learning rate warms up and decays by a
cosine; gradients are clipped (paper section 5).
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from raggd.data.prompts import Prompt
from raggd.files import load_tensors, save_tensors, tensor_header
from raggd.progress import Progress, silent
from raggd.records import RaggdError, content_id
from raggd.settings import ScheduleSettings, TrainingSettings

WINDOW = 16  # batches sorted by length together: padding shrinks, the order stays random
CHECKPOINT_SECONDS = 120.0
WEIGHT_DECAY = 0.01
CLIP = 1.0
"""AdamW's decoupled weight decay and the largest norm of the gradient (paper section 5)."""
DEFAULTS = TrainingSettings()
Schedule = TypeVar("Schedule", bound=ScheduleSettings)


def epoch_batches(lengths: Sequence[int], batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Cut a shuffled epoch into whole batches of similar length, as numbers of examples."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths)).tolist()
    batches = []
    for start in range(0, len(order), batch * WINDOW):
        window = sorted(order[start : start + batch * WINDOW], key=lambda i: lengths[i])
        batches += [window[at : at + batch] for at in range(0, len(window), batch)]
    # a last incomplete batch is dropped unless it is the only one
    whole = [b for b in batches if len(b) == batch] or batches
    return [whole[i] for i in generator.permutation(len(whole))]


def batch_order(lengths: Sequence[int], batch: int, seed: int) -> Callable[[int], list[int]]:
    """Return the examples of every step, counted from 0; an epoch is shuffled once."""
    per_epoch = max(1, len(lengths) // batch)
    epoch = lru_cache(maxsize=1)(partial(epoch_batches, lengths, batch, seed))
    return lambda step: epoch(step // per_epoch)[step % per_epoch]


def warmup_of(settings: ScheduleSettings) -> int:
    """Return the steps of warm-up: a tenth of all, at most 20."""
    return min(20, settings.steps // 10)


def learning_rate_at(step: int, settings: ScheduleSettings, warmup: int) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    share = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


@dataclass(eq=False)
class Trainer:
    """Named parameters under AdamW."""

    parameters: Mapping[str, Tensor]
    settings: ScheduleSettings
    identity: str  # of the run, to which its checkpoint belongs
    warmup: int = 0  # steps
    step: int = 0  # that are done
    history: list[float] = field(default_factory=list)  # their losses
    seconds: float = 0.0  # of all sessions

    def __post_init__(self) -> None:
        self._since = time.monotonic()
        self._adam = torch.optim.AdamW(
            self.parameters.values(), lr=self.settings.learning_rate, weight_decay=WEIGHT_DECAY
        )

    def apply(self, loss: float) -> None:
        """Clip the gradients, take one step, clear them; what is not finite is refused."""
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters.values(), CLIP))
        for what, value in (("loss", loss), ("gradient", norm)):
            if not math.isfinite(value):  # one such step, and a checkpoint would hold nothing else
                raise RaggdError(
                    f"the training's {what} became {value} at step {self.step}: lower "
                    "learning_rate. The last checkpoint is whole."
                )
        for group in self._adam.param_groups:
            group["lr"] = learning_rate_at(self.step, self.settings, self.warmup)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self.history.append(loss)
        self.step += 1

    def run(
        self, differentiate: Callable[[int], float], checkpoint: Path, progress: Progress
    ) -> None:
        """Take the steps left; `differentiate` makes a step's gradients and returns its loss."""
        self.resume(checkpoint)
        saved = time.monotonic()
        while self.step < self.settings.steps:
            between = True  # two steps: parameters and optimizer belong together
            try:
                loss = differentiate(self.step)
                between = False
                self.apply(loss)
            except torch.OutOfMemoryError as error:
                self._adam.zero_grad(set_to_none=True)
                if between:
                    self.save(checkpoint)
                raise RaggdError(self._too_large(checkpoint)) from error
            label = f"{checkpoint.name.partition('.')[0]}, loss {self.history[-1]:.4f}"
            progress(label, self.step, self.settings.steps)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                self.save(checkpoint)
                saved = time.monotonic()
        self.save(checkpoint)

    def _too_large(self, checkpoint: Path) -> str:
        section = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self.settings).__name__).lower()
        section = section.removesuffix("_settings")
        return (
            f"the device's memory ran out at step {self.step} of {self.settings.steps}. What is in "
            f"the checkpoint {checkpoint} is whole: with a smaller batch another run starts (--set "
            f"{section}.batch=..., training.accumulate=... times as many, or fewer "
            "training.max_tokens); on a larger card the same command continues."
        )

    def save(self, path: Path) -> None:
        """Write parameters, optimizer state, step and history as one safetensors file."""
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        tensors = {f"parameter.{n}": p for n, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self._adam.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        metadata = {
            "step": str(self.step),
            "seconds": str(round(self.seconds, 1)),
            "identity": self.identity,
            "history": json.dumps(self.history),
        }
        save_tensors(path, tensors, metadata)

    @torch.no_grad()
    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint, if there is one: return that. Another run's is refused."""
        if not path.exists():
            return False
        tensors, metadata = load_tensors(path)
        if metadata.get("identity") != self.identity:
            raise RaggdError(
                f"checkpoint {path} belongs to another run (identity {metadata.get('identity')}, "
                f"this run is {self.identity}): settings, data or weights changed. Choose another "
                "output folder or remove the checkpoint."
            )
        self.step = int(metadata["step"])
        self.seconds = float(metadata.get("seconds", 0))
        self.history = json.loads(metadata["history"])
        for name, value in tensors.items():
            key, _, own = name.partition(".")
            parameter = self.parameters[own]
            if key == "parameter":
                parameter.copy_(value)
            else:  # a count of steps stays on the processor
                state = value if key == "step" else value.to(parameter.device)
                self._adam.state[parameter][key] = state
        return True


def seconds_spent(checkpoint: Path) -> float:
    """Return the seconds that a run took up to its checkpoint, over all its sessions."""
    return float(tensor_header(checkpoint)["seconds"])


def examples_id(prompts: Sequence[Prompt]) -> str:
    """Hash training examples, token by token, to 16 hexadecimal digits; none are refused."""
    if not prompts:
        raise RaggdError("no training examples: the benchmarks gave no question with an answer.")
    return content_id(*(",".join(map(str, p.tokens)) for p in prompts))


@dataclass(frozen=True, slots=True)
class Session(Generic[Schedule]):
    """A training to be: its own settings, where it is kept, what all share, whom it tells."""

    settings: Schedule
    checkpoint: Path  # from which it continues to the same result
    common: TrainingSettings = DEFAULTS
    progress: Progress = silent

    def train(
        self,
        parameters: Mapping[str, Tensor],
        lengths: Sequence[int],
        loss_of: Callable[[Sequence[int]], Tensor],
        identity: str,
        *,
        warmup: int | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> list[float]:
        """Train parameters by AdamW in place, and return the loss of every step.

        `loss_of` gives the mean loss of the examples of some numbers, with gradients; `identity`
        hashes what the result depends on beside the settings. Warm-up is `warmup_of`'s unless it is
        given; `check` is called when the first gradients are there.
        """
        seed, accumulate = self.common.seed, self.common.accumulate
        identity = content_id(identity, self.settings.model_dump_json(), f"{seed} {accumulate}")
        order = batch_order(lengths, self.settings.batch, seed)
        steps = warmup_of(self.settings) if warmup is None else warmup
        trainer = Trainer(parameters, self.settings, identity=identity, warmup=steps)

        def differentiate(step: int) -> float:
            total = 0.0
            for part in range(accumulate):
                loss = loss_of(order(step * accumulate + part)) / accumulate
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
            if step == 0:
                check()
            return total

        trainer.run(differentiate, self.checkpoint, self.progress)
        return trainer.history
