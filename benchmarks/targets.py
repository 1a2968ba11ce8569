"""K-step targets per second: several sets in one batch, against a plain PEFT and optimizer loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured import Measured
from benchmarks.peers import peft_model, plain_loss, set_adapter_weights
from benchmarks.setting import BenchSetting
from raggd.adaptation.targets import SHARD, sgd_updates, support_batch
from raggd.backbone.batch import Batch
from raggd.backbone.load import compile_layers
from raggd.core.low_rank import PROJECTIONS, Factors, factors_of
from raggd.evaluation.timing import in_turn, ratio_of

ABOUT = "K-step targets: ours, a plain PEFT and optimizer loop"


class PlainLoop:
    """The direct way: one support set after the other, all logits, `torch.optim.SGD`."""

    def __init__(self, setting: BenchSetting, batches: Sequence[Batch]) -> None:
        """Wrap a copy of the backbone; there is one batch per support set."""
        self._setting = setting
        self._batches = batches
        self._start = setting.base.factors
        self._model = peft_model(
            setting.backbone,
            {"default": self._start},
            train=True,
            scale=setting.base.spec.scaling,
        )
        self._model.eval()  # the same mode as ours; there is no dropout

    def run(self, steps: int) -> list[dict[str, Factors]]:
        """Take K steps on each support set; returns the change of the factors of each."""
        return [self._one(batch, steps) for batch in self._batches]

    def _one(self, batch: Batch, steps: int) -> dict[str, Factors]:
        model: Any = self._model
        set_adapter_weights(model, self._setting.backbone, "default", self._start)
        parameters = [p for p in model.parameters() if p.requires_grad]
        rate = self._setting.parts.settings.target.learning_rate
        optimizer = torch.optim.SGD(parameters, lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            logits = model(input_ids=batch.tokens, attention_mask=batch.mask).logits
            plain_loss(logits, batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return self._change(model)

    def _change(self, model: Any) -> dict[str, Factors]:
        found: dict[str, Tensor] = {}
        for p in PROJECTIONS:
            sites = [m for n, m in model.named_modules() if n.endswith(f"{p}_proj")]
            a = torch.stack([m.lora_A["default"].weight.detach().float() for m in sites])
            b = torch.stack([m.lora_B["default"].weight.detach().float() for m in sites])
            start = self._start[p]
            found |= {f"{p}.a": a - start.a.to(a), f"{p}.b": b - start.b.to(b)}
        return factors_of(found)


def run(setting: BenchSetting) -> Measured:
    """Compare on as many support sets as a shard of targets holds.

    Returns:
        ``targets_vs_plain`` (how many times more targets per second), and how alike they are.
    """
    backbone, limit = setting.backbone, setting.limit
    supports = setting.supports[:SHARD]
    target = setting.parts.settings.target
    together = support_batch(backbone, supports, limit)
    alone = [support_batch(backbone, [support], limit) for support in supports]
    setting.say("targets: a plain loop's copy of the backbone")
    plain = PlainLoop(setting, alone)
    kept: dict[str, Any] = {}

    def ours(steps: int = target.steps) -> None:
        chosen = target.model_copy(update={"steps": steps, "keep": []})
        updates = sgd_updates(backbone, setting.base, together, len(supports), chosen)
        kept["ours"] = updates[steps]

    def theirs() -> None:
        kept["plain"] = plain.run(target.steps)

    with compile_layers(backbone):
        setting.say("targets: compiling the layers, once")
        ours(1)
        plain.run(1)
        setting.say("targets: ours and the plain loop in turn")
        times = in_turn({"plain": theirs, "ours": ours}, setting.few, warm=False)
    likeness = []
    for row, change in enumerate(kept["plain"]):
        own = kept["ours"].row(row)
        theirs_flat = torch.cat([t.flatten() for f in change.values() for t in f])
        ours_flat = torch.cat([t.flatten() for f in own.factors.values() for t in f])
        likeness.append(float(torch.cosine_similarity(ours_flat, theirs_flat, dim=0)))
    ratio = ratio_of(times["plain"], times["ours"])
    return Measured(
        ratios={"targets_vs_plain": ratio},
        times={f"{name}, {len(supports)} targets": ms for name, ms in times.items()},
        facts={
            "targets_per_second": {
                "ours": 1000 * len(supports) / ratio.b_ms,
                "plain": 1000 * len(supports) / ratio.a_ms,
            },
            "cosine_to_plain": likeness,
            "steps": target.steps,
        },
    )
