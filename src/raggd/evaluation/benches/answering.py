"""Answering a batch in which every row has its own update, against what else one could do.

All go through the same library loop (`generate`) for the same number of tokens; what differs is how
the updates get into the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.batch import Batch, make_batch
from raggd.backbone.interface import attach
from raggd.core.low_rank import Factors, Update, effective_weight, stack_updates
from raggd.data.prompts import Prompt
from raggd.evaluation.bench import Found, Ratio, Work, in_turn, ratio_of
from raggd.evaluation.benches.peers import merged, peft_model
from raggd.evaluation.benches.setting import ANSWER_TOKENS, BenchSetting
from raggd.methods.base import Adapted

ABOUT = "a batch of different updates: ours, PEFT mixed, PEFT in turn, merged in turn, none"
BATCHES = (1, 4, 8, 16)
MAIN = 8
"""The batch of the promised ratios."""


@torch.no_grad()
def _generate(model: Any, batch: Batch, padding: int, **options: Any) -> Tensor:
    found: Tensor = model.generate(
        input_ids=batch.tokens,
        attention_mask=batch.mask,
        min_new_tokens=ANSWER_TOKENS,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=padding,
        **options,
    )
    return found[:, batch.tokens.shape[1] :]


class Rows:
    """The competitors on one batch; each leaves its answers in `answers`.

    Attributes:
        answers: (rows, tokens) by competitor.
    """

    def __init__(self, setting: BenchSetting, updates: Sequence[Update], peft: Any) -> None:
        """Render the questions.

        Args:
            setting: backbone and questions.
            updates: one per row.
            peft: model with adapters ``row-0`` and on, of the same effective weights.
        """
        self._setting = setting
        self._updates = updates
        self._stacked = stack_updates(updates)
        self._peft = peft
        self._padding = int(setting.backbone.tokenizer.pad_token_id)
        prompts = setting.prompts([Adapted(setting.base)] * len(updates))
        self._whole = self._batch(prompts)
        self._single = [self._batch([prompt]) for prompt in prompts]
        self.answers: dict[str, Tensor] = {}

    def _batch(self, prompts: Sequence[Prompt]) -> Batch:
        return make_batch(prompts, self._padding, self._setting.backbone.device)

    def attached(self, name: str, *, base: bool, updates: bool) -> Work:
        """Make the work of answering in one batch through `attach`.

        Args:
            name: of the answers.
            base: with the base adapter.
            updates: with each row's update.

        Returns:
            The work.
        """
        setting = self._setting

        def work() -> None:
            own = setting.base if base else None
            with attach(setting.backbone, own, self._stacked if updates else None):
                self.answers[name] = _generate(setting.backbone.model, self._whole, self._padding)

        return work

    def peft_mixed(self) -> None:
        """One batch through PEFT's ``adapter_names``."""
        names = [f"row-{i}" for i in range(len(self._updates))]
        self.answers["peft_mixed"] = _generate(
            self._peft, self._whole, self._padding, adapter_names=names
        )

    def peft_in_turn(self) -> None:
        """Row after row, each with its adapter made active."""
        found = []
        for i, batch in enumerate(self._single):
            self._peft.set_adapter(f"row-{i}", inference_mode=True)
            found.append(_generate(self._peft, batch, self._padding))
        self.answers["peft_in_turn"] = torch.cat(found)

    def merged_in_turn(self) -> None:
        """Row after row, each with its update merged into the weights and taken out again."""
        found = []
        for update, batch in zip(self._updates, self._single, strict=True):
            with merged(self._setting.backbone, self._setting.base, update):
                found.append(_generate(self._setting.backbone.model, batch, self._padding))
        self.answers["merged_in_turn"] = torch.cat(found)

    def works(self) -> dict[str, Work]:
        """Return all competitors, by name."""
        return {
            "ours": self.attached("ours", base=True, updates=True),
            "none": self.attached("none", base=True, updates=False),
            "bare": self.attached("bare", base=False, updates=False),
            "peft_mixed": self.peft_mixed,
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


def _ratios(times: dict[str, list[float]]) -> dict[str, Ratio]:
    ours = times["ours"]
    return {
        "mixed_vs_none": ratio_of(ours, times["none"]),
        "mixed_vs_bare": ratio_of(ours, times["bare"]),
        "mixed_vs_peft": ratio_of(ours, times["peft_mixed"]),
        "mixed_vs_set_adapter": ratio_of(ours, times["peft_in_turn"]),
        "mixed_vs_merged": ratio_of(ours, times["merged_in_turn"]),
    }


def run(setting: BenchSetting) -> Found:
    """Compare, for batches of 1 to 16.

    Args:
        setting: backbone, weights, questions, support sets.

    Returns:
        ``mixed_vs_none``, ``mixed_vs_bare``, ``mixed_vs_peft``, ``mixed_vs_set_adapter`` and
        ``mixed_vs_merged`` for 8 rows; for the others under the same names with the number of
        rows; and the share of equal answers.
    """
    adapted = setting.rag_gd.adapt(setting.supports)
    updates = [a.update for a in adapted if a.update is not None]
    peft = peft_model(setting.backbone, _adapters(setting, updates), train=False)
    ratios: dict[str, Ratio] = {}
    times: dict[str, list[float]] = {}
    agreement: dict[str, dict[str, float]] = {}
    for size in BATCHES:
        setting.say(f"answering: {size} rows, each with its own update")
        rows = Rows(setting, updates[:size], peft)
        found = in_turn(rows.works(), setting.few)
        agreement[str(size)] = rows.agreement()
        times |= {f"{name}, {size} rows": ms for name, ms in found.items()}
        named = _ratios(found)
        ratios |= named if size == MAIN else {f"{n}_{size}_rows": r for n, r in named.items()}
    facts = {"same_answers": agreement, "tokens_per_answer": ANSWER_TOKENS}
    return Found(ratios, times, facts)
