"""Answering a batch in which every row has its own update, against what else one could do.

All go through the same library loop (`generate`) for the same number of tokens; what differs is how
the updates get into the forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured import Measured
from benchmarks.peers import merged, peft_model
from benchmarks.setting import BenchSetting
from raggd.backbone.batch import Batch, make_batch
from raggd.backbone.interface import attach
from raggd.core.low_rank import Factors, Update, effective_weight, stack_updates
from raggd.data.prompts import Prompt
from raggd.evaluation.timing import Ratio, Work, in_turn, ratio_of
from raggd.methods.base import Adapted

ABOUT = "a batch of different updates: ours, PEFT mixed, PEFT in turn, merged in turn, none"
BATCHES = (1, 4, 8, 16)
MAIN = 8
"""The batch of the promised ratios."""
LONG, SHORT = 8, 24
"""Tokens per answer with and without passages: a fixed number, so that all do the same work."""


@torch.no_grad()
def _generate(model: Any, batch: Batch, padding: int, tokens: int, **options: Any) -> Tensor:
    found: Tensor = model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask,
        min_new_tokens=tokens,
        max_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=padding,
        **options,
    )
    return found[:, batch.tokens.shape[1] :]


class Rows:
    """The competitors on one batch; `answers` (rows, tokens) holds what each left, by name."""

    def __init__(
        self,
        setting: BenchSetting,
        updates: Sequence[Update],
        peft: Mapping[str, Any],
        *,
        passages: bool = True,
    ) -> None:
        """Render the questions.

        Args:
            setting: backbone and questions.
            updates: one per row.
            peft: by name, models with adapters ``row-0`` and on, of the same effective weights.
            passages: with the questions' evidence; without, prompts are short and answers long.
        """
        self._setting = setting
        self._updates = updates
        self._stacked = stack_updates(updates)
        self._peft = peft
        self._padding = int(setting.backbone.tokenizer.pad_token_id)
        self._tokens = LONG if passages else SHORT
        rows = [Adapted(setting.base, reads_evidence=passages)] * len(updates)
        prompts = setting.prompts(rows, self._tokens)
        self._whole = self._batch(prompts)
        self._single = [self._batch([prompt]) for prompt in prompts]
        self.answers: dict[str, Tensor] = {}

    def _batch(self, prompts: Sequence[Prompt]) -> Batch:
        return make_batch(prompts, self._setting.backbone)

    def _generated(self, model: Any, batch: Batch, **options: Any) -> Tensor:
        return _generate(model, batch, self._padding, self._tokens, **options)

    def attached(self, name: str, *, base: bool, updates: bool) -> Work:
        """Make the work of answering in one batch through `attach`, as `name`."""
        setting = self._setting

        def work() -> None:
            own = setting.base if base else None
            with attach(setting.backbone, own, self._stacked if updates else None):
                self.answers[name] = self._generated(setting.backbone.model, self._whole)

        return work

    def peft_mixed(self, kind: str) -> Work:
        """Make the work of one batch through the ``adapter_names`` of one of the PEFT models."""
        names = [f"row-{i}" for i in range(len(self._updates))]

        def work() -> None:
            self.answers[f"{kind}_mixed"] = self._generated(
                self._peft[kind], self._whole, adapter_names=names
            )

        return work

    def peft_in_turn(self) -> None:
        """Row after row, each with its adapter made active."""
        found = []
        for i, batch in enumerate(self._single):
            self._peft["peft"].set_adapter(f"row-{i}", inference_mode=True)
            found.append(self._generated(self._peft["peft"], batch))
        self.answers["peft_in_turn"] = torch.cat(found)

    def merged_in_turn(self) -> None:
        """Row after row, each with its update merged into the weights and taken out again."""
        found = []
        for update, batch in zip(self._updates, self._single, strict=True):
            with merged(self._setting.backbone, self._setting.base, update):
                found.append(self._generated(self._setting.backbone.model, batch))
        self.answers["merged_in_turn"] = torch.cat(found)

    def works(self) -> dict[str, Work]:
        """Return all competitors, by name."""
        return {
            "ours": self.attached("ours", base=True, updates=True),
            "none": self.attached("none", base=True, updates=False),
            "bare": self.attached("bare", base=False, updates=False),
            **{f"{kind}_mixed": self.peft_mixed(kind) for kind in self._peft},
            "peft_in_turn": self.peft_in_turn,
            "merged_in_turn": self.merged_in_turn,
        }

    def agreement(self) -> dict[str, float]:
        """Return the share of rows whose answer, up to its end, is that of our path."""
        stop = self._setting.backbone.tokenizer.eos_token_id

        def until_end(row: Tensor) -> list[int]:
            tokens = row.tolist()
            return tokens[: tokens.index(stop)] if stop in tokens else tokens

        own = [until_end(row) for row in self.answers["ours"]]
        return {
            name: sum(a == until_end(b) for a, b in zip(own, rows, strict=True)) / len(own)
            for name, rows in self.answers.items()
            if name != "ours"
        }


def _adapters(setting: BenchSetting, updates: Sequence[Update]) -> dict[str, dict[str, Factors]]:
    return {f"row-{i}": effective_weight(setting.base, u) for i, u in enumerate(updates)}


RIVALS = {
    "none": "mixed_vs_none",
    "bare": "mixed_vs_bare",
    "peft_mixed": "mixed_vs_peft",
    "narrow_mixed": "mixed_vs_peft_narrow",
    "peft_in_turn": "mixed_vs_set_adapter",
    "merged_in_turn": "mixed_vs_merged",
}
"""Name of the ratio of ours to each."""


def run(setting: BenchSetting) -> Measured:
    """Compare, for batches of 1 to 16 with passages, and for 8 short prompts.

    Returns:
        ``mixed_vs_none``, ``mixed_vs_bare``, ``mixed_vs_peft`` (its adapters in float32, the
        default), ``mixed_vs_peft_narrow`` (in the backbone's dtype), ``mixed_vs_set_adapter``
        and ``mixed_vs_merged`` for 8 rows; for the others under the same names with the number of
        rows or ``_short``; and the share of equal answers.
    """
    adapted = setting.rag_gd.adapt(setting.supports)
    updates = [a.update for a in adapted if a.update is not None][: max(BATCHES)]
    factors = _adapters(setting, updates)
    peft = {
        "peft": peft_model(setting.backbone, factors, train=False),
        "narrow": peft_model(setting.backbone, factors, train=False, narrow=True),
    }
    ratios: dict[str, Ratio] = {}
    times: dict[str, list[float]] = {}
    agreement: dict[str, dict[str, float]] = {}
    for size, passages in [*((size, True) for size in BATCHES), (MAIN, False)]:
        label = f"{size} rows" if passages else f"{size} short rows"
        setting.say(f"answering: {label}, each with its own update")
        rows = Rows(setting, updates[:size], peft, passages=passages)
        found = in_turn(rows.works(), setting.few)
        agreement[label] = rows.agreement()
        times |= {f"{name}, {label}": ms for name, ms in found.items()}
        end = "" if size == MAIN else f"_{size}_rows"
        ending = end if passages else "_short"
        ratios |= {
            f"{name}{ending}": ratio_of(found["ours"], found[rival])
            for rival, name in RIVALS.items()
        }
    facts = {
        "same_answers": agreement,
        "tokens_per_answer": {"with passages": LONG, "short": SHORT},
    }
    return Measured(ratios, times, facts)
