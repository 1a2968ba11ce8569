"""Base training, tokens per second: ours, and PEFT with the transformers Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measured import Measured
from benchmarks.peers import peft_model, plain_loss
from benchmarks.setting import BenchSetting
from raggd.adaptation.base_adapter import fresh_base, train_base
from raggd.adaptation.optimizer import (
    CLIP,
    WEIGHT_DECAY,
    Session,
    batch_order,
    learning_rate_at,
    warmup_of,
)
from raggd.adaptation.targets import answered_prompt
from raggd.backbone.batch import Batch, make_batch
from raggd.backbone.load import compile_layers
from raggd.data.benchmarks import choose_by_hash, training_questions
from raggd.data.prompts import Prompt
from raggd.evaluation.timing import in_turn, ratio_of
from raggd.retrieval.evidence import make_demonstrations
from raggd.settings import BaseTrainingSettings

ABOUT = "base training: ours, PEFT with the transformers Trainer"
STEPS = 3
"""Optimizer steps of one measurement."""
EXAMPLES = 128


class TrainerLoop:
    """PEFT and the transformers Trainer on the same batches, rates and initial weights."""

    def __init__(
        self, setting: BenchSetting, batches: Sequence[Batch], wanted: BaseTrainingSettings
    ) -> None:
        """Wrap a copy of the backbone; there is one batch per step."""
        settings = setting.parts.settings
        spec = setting.backbone.adapter_spec(settings.adapter)
        start = fresh_base(spec, setting.backbone.fingerprint, settings.training.seed)
        model = peft_model(
            setting.backbone, {"default": start.factors}, train=True, scale=spec.scaling
        )
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._model = model
        self._start = {name: p.detach().clone() for name, p in trained.items()}
        self._batches = batches
        self._wanted = wanted
        self.losses: list[float] = []

    def run(self) -> None:
        """Train from the start, a step per batch."""
        from transformers import Trainer, TrainingArguments

        wanted = self._wanted
        parameters = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, value in self._start.items():
                parameters[name].copy_(value)
        optimizer = torch.optim.AdamW(
            [parameters[name] for name in self._start],
            lr=wanted.learning_rate,
            weight_decay=WEIGHT_DECAY,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: learning_rate_at(step, wanted, warmup_of(wanted)) / wanted.learning_rate,
        )
        batches = self._batches

        def loss(output: Any, labels: Tensor, **_: Any) -> Tensor:
            return plain_loss(output.logits, batches[int(labels[0])])

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=len(batches),
                per_device_train_batch_size=1,
                max_grad_norm=CLIP,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=self._model.device.type == "cpu",
                remove_unused_columns=False,
            )
            trainer = Trainer(
                model=self._model,
                args=arguments,
                train_dataset=_Steps(len(batches)),
                data_collator=lambda rows: _features(batches[rows[0]], rows[0]),
                optimizers=(optimizer, schedule),
                compute_loss_func=loss,
            )
            trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(  # type: ignore[method-assign]
                _Steps(len(batches))
            )
            trainer.train()
        logged = trainer.state.log_history
        self.losses = [float(entry["loss"]) for entry in logged if "loss" in entry]


class _Steps(torch.utils.data.Dataset[int]):
    # the numbers of the batches, in order: the Trainer is given our batches whole
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


def _features(batch: Batch, number: int) -> dict[str, Tensor]:
    return {
        "input_ids": batch.tokens,
        "attention_mask": batch.mask,
        "labels": torch.tensor([number]),
    }


def _examples(setting: BenchSetting, limit: int) -> list[Prompt]:
    settings = setting.parts.settings
    pool = training_questions(setting.parts.source, settings.base_training.benchmarks[0])
    chosen = choose_by_hash(pool, min(EXAMPLES, len(pool)), settings.training.seed)
    shown = make_demonstrations(chosen, setting.parts.retriever, settings.retrieval.top_k)
    return [answered_prompt(setting.backbone.tokenizer, d, limit) for d in shown]


def run(setting: BenchSetting) -> Measured:
    """Compare on the first steps of base training.

    Returns:
        ``training_vs_trainer`` (how many times more tokens per second), and both loss curves.
    """
    backbone = setting.backbone
    settings = setting.parts.settings
    wanted = settings.base_training.model_copy(update={"steps": STEPS})
    common = settings.training.model_copy(update={"accumulate": 1})
    prompts = _examples(setting, common.max_tokens)
    order = batch_order([len(p.tokens) for p in prompts], wanted.batch, common.seed)
    numbers = [order(step) for step in range(STEPS)]
    batches = [make_batch([prompts[i] for i in n], backbone) for n in numbers]
    spec = backbone.adapter_spec(settings.adapter)
    setting.say("training: the Trainer's copy of the backbone")
    trainer = TrainerLoop(setting, batches, wanted)
    history: list[float] = []

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            session = Session(wanted, Path(folder) / "checkpoint", common)
            _, losses = train_base(backbone, spec, prompts, session)
        history[:] = losses

    with compile_layers(backbone):
        setting.say("training: compiling the layers, once")
        ours()
        setting.say("training: ours and the Trainer in turn")
        times = in_turn({"trainer": trainer.run, "ours": ours}, setting.few, warm=False)
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    ratio = ratio_of(times["trainer"], times["ours"])
    return Measured(
        ratios={"training_vs_trainer": ratio},
        times={f"{name}, {STEPS} steps": ms for name, ms in times.items()},
        facts={
            "tokens_per_second": {
                "ours": 1000 * tokens / ratio.b_ms,
                "trainer": 1000 * tokens / ratio.a_ms,
            },
            "loss": {"ours": history, "trainer": trainer.losses},
        },
    )
