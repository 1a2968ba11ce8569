"""What a user would run instead: the same adapters in PEFT, and merged into the weights."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from raggd.adaptation.export import peft_tensors
from raggd.backbone.batch import Batch
from raggd.backbone.load import Backbone
from raggd.core.low_rank import PROJECTIONS, BaseAdapter, Factors, Update, dense, effective_weight
from raggd.records import RaggdError


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise RaggdError(
            "this bench compares with peft, which is not installed: `pip install 'raggd[peft]'`, "
            "or choose another by --only."
        ) from error
    return peft


def peft_model(
    backbone: Backbone,
    adapters: Mapping[str, Mapping[str, Factors]],
    *,
    train: bool,
    narrow: bool = False,
    scale: float = 1.0,
) -> Any:
    """Wrap a copy of the backbone in PEFT with adapters of the same effective weights.

    Args:
        backbone: the frozen model; a copy of it is wrapped.
        adapters: factors by projection, by adapter name; at least one. The first is active.
        train: give the adapters gradients.
        narrow: keep the adapters in the backbone's dtype; PEFT's default is float32.
        scale: alpha / r of the adapters; 1 where it is multiplied into the factors.
    """
    peft = _peft()
    logging.getLogger("peft").setLevel(logging.ERROR)
    model: Any = None
    for name, factors in adapters.items():
        rank = factors["q"].a.shape[-2]
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=scale * rank,
            target_modules=[f"{p}_proj" for p in PROJECTIONS],
            task_type="CAUSAL_LM",
            inference_mode=not train,
        )
        if model is None:
            inner = copy.deepcopy(backbone.model)
            model = peft.get_peft_model(
                inner, config, adapter_name=name, autocast_adapter_dtype=not narrow
            )
        else:
            model.add_adapter(name, config, autocast_adapter_dtype=not narrow)
        set_adapter_weights(model, backbone, name, factors)
    return model.train() if train else model.eval()


def set_adapter_weights(
    model: Any, backbone: Backbone, name: str, factors: Mapping[str, Factors]
) -> None:
    """Overwrite the weights of an adapter by factors, scale included."""
    from peft import set_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(model, peft_tensors(backbone, dict(factors)), adapter_name=name)


def merged_change(base: BaseAdapter, update: Update | None) -> dict[str, Tensor]:
    """Multiply base and a single update out, as to merge them: (layers, d_out, d_in) each."""
    return {p: dense(f) for p, f in effective_weight(base, update).items()}


@contextmanager
def merged(backbone: Backbone, base: BaseAdapter, update: Update | None) -> Iterator[None]:
    """Run the backbone with base and update merged into its weights; the plain ones come back."""
    kept: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for projection, change in merged_change(base, update).items():
            for layer, module in enumerate(backbone.projections[projection]):
                weight: Any = module.weight
                kept.append((weight, weight.clone()))
                weight.add_(change[layer].to(weight))
        try:
            yield
        finally:
            for weight, plain in kept:
                weight.copy_(plain)


def plain_loss(logits: Tensor, batch: Batch) -> Tensor:
    """The loss of our loops from the logits of all positions, as one writes it first.

    It is the mean over the rows of the mean answer-token cross-entropy.
    """
    wanted = batch.tokens.clone()
    answers = torch.zeros_like(batch.mask, dtype=torch.bool)
    answers[:, -batch.answer_mask.shape[1] :] = batch.answer_mask
    wanted[~answers] = -100
    losses = functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), wanted[:, 1:], reduction="none"
    )
    return (losses.sum(1) / answers.sum(1)).mean()
