"""Backbones by shape alone: published sizes, and models of such a shape with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raggd.backbone.device import choose_device, choose_dtype, quantization
from raggd.backbone.identity import model_fingerprint
from raggd.backbone.load import Backbone, find_projections
from raggd.records import require_known
from raggd.settings import BackboneSettings

_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "tiny": ("llama", (64, 128, 2, 4, 2, 512, False)),
    "smollm2-135m": ("llama", (576, 1536, 30, 9, 3, 49152, True)),
    "qwen2.5-0.5b": ("qwen2", (896, 4864, 24, 14, 2, 151936, True)),
    "qwen2.5-1.5b": ("qwen2", (1536, 8960, 28, 12, 2, 151936, True)),
    "qwen2.5-7b": ("qwen2", (3584, 18944, 28, 28, 4, 152064, False)),
    "llama-3.1-8b": ("llama", (4096, 14336, 32, 32, 8, 128256, False)),
}
"""By name: the architecture, and the values of `_FIELDS`."""
PUBLISHED = {
    "Qwen/Qwen2.5-7B-Instruct": "qwen2.5-7b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
}
"""Shapes of the paper's backbones, for estimates where the hub is out of reach."""


def shape_config(name: str) -> Any:
    """Return the transformers configuration of a shape in `SHAPES`."""
    from transformers import AutoConfig

    require_known("shape", name, tuple(SHAPES))
    kind, values = SHAPES[name]
    return AutoConfig.for_model(kind, **dict(zip(_FIELDS, values, strict=True)))


class NoText:
    """Stands for a tokenizer where tokens are only counted: no token ends an answer."""

    pad_token_id = 0
    eos_token_id = -1
    chat_template = ""
    padding_side = "left"

    def decode(self, tokens: list[int], **_: Any) -> str:
        """Return the token ids, as text."""
        return " ".join(map(str, tokens))


@dataclass(frozen=True, slots=True)
class Silent(Backbone):
    """A backbone whose prompts are tokens, not text; no token ends its answers."""

    @property
    def stops(self) -> list[int]:
        """No token at all."""
        return [NoText.eos_token_id]


def without_text(backbone: Backbone) -> Silent:
    """Return the same model without its tokenizer, to measure work of given lengths."""
    own = (backbone.projections, backbone.fingerprint)
    return Silent(backbone.name, backbone.model, NoText(), *own)


def _random(like: Tensor, device: torch.device) -> nn.Parameter:
    value = torch.ones_like(like, device=device)  # of a norm
    if like.dim() > 1:
        value.normal_(0, 0.02)
    return nn.Parameter(value, requires_grad=False)


def _four_bits(linear: nn.Linear, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    wide = _random(linear.weight, device)
    narrow = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16
    )
    narrow.weight = bnb.nn.Params4bit(wide.data, requires_grad=False, quant_type="nf4")
    if linear.bias is not None:
        narrow.bias = _random(linear.bias, device)
    return narrow.to(device)  # type: ignore[no-any-return]


def _materialise(model: Any, device: torch.device, *, nf4: bool) -> None:
    # module by module: a card that holds the 4-bit weights need not hold the wide ones
    head = model.get_output_embeddings()
    for path, module in list(model.named_modules()):
        if nf4 and type(module) is nn.Linear and module is not head:
            model.set_submodule(path, _four_bits(module, device))
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = _random(parameter, device)
    model.to(device).tie_weights()


def random_backbone(name: str, settings: BackboneSettings) -> Backbone:
    """Build a backbone of a shape in `SHAPES`, to time it: random weights, no tokenizer."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    device = choose_device(settings.device)
    config, nf4 = shape_config(name), quantization(settings, device) is not None
    torch.manual_seed(0)
    with init_empty_weights(include_buffers=False):
        make: Any = AutoModelForCausalLM.from_config
        model = make(config, dtype=choose_dtype(settings, device))
    _materialise(model, device, nf4=nf4)
    model.eval().requires_grad_(False)
    projections = find_projections(model, name)
    return Silent(name, model, NoText(), projections, model_fingerprint(model))
