"""What one adaptation costs: predicted, by gradient steps, by a longer prompt, at the floor."""

from __future__ import annotations

from statistics import median

import torch
from torch import Tensor, nn

from benchmarks.measured import Measured
from benchmarks.setting import BenchSetting
from raggd.adaptation.targets import support_batch
from raggd.backbone.batch import Batch, last_states
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter
from raggd.evaluation.flops import model_shape
from raggd.evaluation.timing import Work, in_turn, ratio_of
from raggd.methods.answering import answer_batch
from raggd.methods.base import Adapted
from raggd.methods.predicted import TestTimeSGD
from raggd.methods.spec import file_of
from raggd.methods.store import Store

ABOUT = "one adaptation: RAG-GD, TT-SGD, few shot's longer prompt, one forward pass"
STEPS = (1, 5, 10)
"""K of the TT-SGD rows."""


def floor_pass(backbone: Backbone, base: BaseAdapter, batch: Batch) -> Work:
    """Make the cheapest work that reads a support set: one forward pass over its tokens."""

    def work() -> None:
        with attach(backbone, base):
            last_states(backbone, batch)

    return work


def layer_matrices(backbone: Backbone) -> list[Tensor]:
    """Return the weights of every matrix that a token passes, embedding and output apart."""
    return [
        module.weight.detach()
        for module in backbone.model.base_model.modules()
        if isinstance(module, nn.Linear)
    ]


def matrix_products(backbone: Backbone, tokens: int) -> Work:
    """Make the bare matrix products of a forward pass over so many tokens, and nothing else."""
    matrices = layer_matrices(backbone)
    widths = {matrix.shape[1] for matrix in matrices}
    inputs = {w: torch.randn(tokens, w).to(matrices[0]) for w in widths}

    @torch.no_grad()
    def work() -> None:
        for matrix in matrices:
            torch.mm(inputs[matrix.shape[1]], matrix.T)

    return work


def support_flops(backbone: Backbone, batch: Batch) -> int:
    """Count the operations of one forward pass over a batch's real tokens, padding left out."""
    shape = model_shape(backbone.model)
    return sum(shape.forward(n) for n in batch.mask.sum(1).tolist())


def _tt_sgd(setting: BenchSetting, steps: int) -> Work:
    target = setting.parts.settings.target.model_copy(update={"steps": steps})
    method = TestTimeSGD(setting.backbone, setting.base, target)
    return lambda: method.adapt(setting.supports[:1])


def _answers(setting: BenchSetting, row: Adapted) -> Work:
    limit = setting.parts.settings.evaluation.max_answer_tokens
    prompts = setting.prompts([row], limit)
    return lambda: answer_batch(setting.backbone, [row], prompts, limit)


FLOOR = "one forward pass over the support tokens"
MATRICES = "bare matrix products of these tokens"
KNOWN = "RAG-GD, support set known"
ANSWER = "answering one question"
FEW_SHOT = "answering with the demonstrations in the prompt"


def _quick_works(setting: BenchSetting, batch: Batch) -> dict[str, Work]:
    backbone, base, rag_gd = setting.backbone, setting.base, setting.rag_gd
    supports = setting.supports[:1]
    known = Store()
    adapted = known.adapt(rag_gd, supports, "bench")[0]
    longer = Adapted(base, shown=supports[0].demonstrations)
    works: dict[str, Work] = {
        "RAG-GD": lambda: rag_gd.adapt(supports),
        FLOOR: floor_pass(backbone, base, batch),
        MATRICES: matrix_products(backbone, int(batch.mask.sum())),
        KNOWN: lambda: known.adapt(rag_gd, supports, "bench"),
        ANSWER: _answers(setting, adapted),
        FEW_SHOT: _answers(setting, longer),
    }
    if (setting.parts.weights / file_of("hyper")).is_file():
        hyper = setting.parts.method("hyper-tuning")
        works["HyperTuning"] = lambda: hyper.adapt(supports)
    return works


def _slow_times(setting: BenchSetting) -> dict[int, tuple[list[float], list[float]]]:
    # by K: RAG-GD and TT-SGD in turn; a first call of each is behind us
    setting.say("adaptation: TT-SGD")
    found = {}
    for steps in sorted({*STEPS, setting.parts.settings.target.steps}):
        works = {"own": lambda: setting.rag_gd.adapt(setting.supports[:1])}
        times = in_turn({**works, "sgd": _tt_sgd(setting, steps)}, setting.few, warm=steps == 1)
        found[steps] = (times["own"], times["sgd"])
    return found


def run(setting: BenchSetting) -> Measured:
    """Compare the ways to adapt to one support set, given as text: rendering counts.

    Returns:
        ``adapt_vs_tt_sgd`` (K of the settings), ``adapt_vs_floor``, ``adapt_vs_matrices`` (the
        bare matrix products of its tokens), ``cached_vs_answer`` and the times of all.
    """
    backbone = setting.backbone
    batch = support_batch(backbone, setting.supports[:1], setting.limit)
    tokens, flops = int(batch.mask.sum()), support_flops(backbone, batch)
    times = in_turn(_quick_works(setting, batch), setting.rounds)
    slow = _slow_times(setting)
    weights = sum(matrix.numel() for matrix in layer_matrices(backbone))
    rate = 2 * weights * tokens / (median(times[MATRICES]) / 1000)
    k = setting.parts.settings.target.steps
    return Measured(
        ratios={
            "adapt_vs_tt_sgd": ratio_of(*slow[k]),
            **{f"adapt_vs_tt_sgd_k{steps}": ratio_of(*pair) for steps, pair in slow.items()},
            "adapt_vs_floor": ratio_of(times["RAG-GD"], times[FLOOR]),
            "adapt_vs_matrices": ratio_of(times["RAG-GD"], times[MATRICES]),
            "cached_vs_answer": ratio_of(times[KNOWN], times[ANSWER]),
            "few_shot_vs_answer": ratio_of(times[FEW_SHOT], times[ANSWER]),
        },
        times={**times, **{f"TT-SGD, K = {steps}": ms for steps, (_, ms) in slow.items()}},
        facts={
            "support_tokens": tokens,
            "padded_tokens": batch.tokens.numel(),
            "forward_flops": flops,
            "matrix_flops_per_second": rate,
            "ms_at_that_rate": 1000 * flops / rate,
            "tt_sgd_steps": k,
        },
    )
