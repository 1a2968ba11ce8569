"""A tiny language model, its tokenizer, and random adapters: what most tests run on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.load import Backbone, wrap_model
from raggd.core.low_rank import (
    AdapterSpec,
    BaseAdapter,
    Update,
    dense,
    effective_weight,
    factors_of,
    stack_updates,
)
from raggd.data.prompts import Prompt
from raggd.methods.answering import adapted_rows
from raggd.methods.base import Adapted
from raggd.methods.plain import Unadapted
from raggd.records import Demonstration, Passage, SupportSet
from raggd.settings import AdapterSettings

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<system>", "<user>", "<assistant>"]
_TEXT = (
    "the a of is in to and or not it are was red blue green big small city river bird fish tree "
    "bee honey sea coast stone water salt fire north south east west near far king queen old new "
    "first last one two three Lima Peru Oslo Rome Cairo Quito capital country makes lies flows "
    "lives eats long short what which who where how many name Use passages passage answer "
    "question Question Answer Reply with alone as few words possible nq trivia"
)
WORDS = _TEXT.split()
MARKS = ["\n", ".", ",", ":", "?", "[", "]", *map(str, range(10))]

TEMPLATE = (
    "{% for turn in messages %}<{{ turn['role'] }}> {{ turn['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
"""Every turn opens with its role's token and closes with the end token."""
NO_SYSTEM = (
    "{% for turn in messages %}{% if turn['role'] == 'system' %}"
    "{{ raise_exception('no system turns here') }}{% endif %}"
    "<{{ turn['role'] }}> {{ turn['content'] }}</s>{% endfor %}<assistant> "
)
"""The same, but it refuses a system turn."""


def tiny_tokenizer(template: str | None = TEMPLATE) -> Any:
    """One token per known word, mark or line break; everything else is ``<unk>``."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, *MARKS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), "removed", invert=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<system>", "<user>", "<assistant>"],
    )
    tokenizer.chat_template = template
    return tokenizer


SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.25,
}
"""What all tiny backbones have in their configuration."""


def tiny_model(vocabulary: int, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama, 3 layers of width 32, whose logits differ enough to tell answers apart."""
    options = SMALL | {
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(options | changes)))


def make_backbone(
    seed: int = 0, dtype: torch.dtype = torch.float32, template: str | None = TEMPLATE
) -> Backbone:
    """A tiny backbone of its own, for tests that change it or need another dtype or template."""
    tokenizer = tiny_tokenizer(template)
    return wrap_model(tiny_model(len(tokenizer), seed).to(dtype), tokenizer, "tiny")


def make_sliding_backbone(window: int) -> Backbone:
    """A tiny backbone whose layers see the last `window` positions only."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        sliding_window=window,
    )
    return wrap_model(MistralForCausalLM(config), tokenizer, "sliding")


def make_gemma_backbone(window: int) -> Backbone:
    """A tiny backbone of two layers that see the last `window` positions, and a full one."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **SMALL,
        vocab_size=len(tokenizer),
        head_dim=8,
        sliding_window=window,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        pad_token_id=3,
    )
    return wrap_model(Gemma3ForCausalLM(config), tokenizer, "gemma")


def spec_of(backbone: Backbone, rank: int = 2, alpha: float = 6.0) -> AdapterSpec:
    """Shape of an adapter with a scale that is not 1."""
    return backbone.adapter_spec(AdapterSettings(rank=rank, alpha=alpha))


def random_tensors(
    spec: AdapterSpec,
    seed: int,
    size: float,
    batch: Sequence[int] = (),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The six tensors of an adapter or an update, normal with standard deviation `size`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(*batch, *shape, generator=generator, dtype=dtype)
        for name, shape in spec.shapes.items()
    }


def random_base(
    backbone: Backbone, seed: int = 1, size: float = 0.2, rank: int = 2, alpha: float = 6.0
) -> BaseAdapter:
    """A base adapter that changes the model: both factors are random."""
    spec = spec_of(backbone, rank, alpha)
    return BaseAdapter(spec, factors_of(random_tensors(spec, seed, size)), backbone.fingerprint)


def random_update(base: BaseAdapter, seed: int = 2, size: float = 0.2) -> Update:
    """One update that changes the model."""
    tensors = random_tensors(base.spec, seed, size)
    return Update(base.spec, factors_of(tensors), base.fingerprint)


def random_updates(base: BaseAdapter, rows: int, seed: int = 10, size: float = 0.2) -> Update:
    """A batch of different updates."""
    return stack_updates([random_update(base, seed + i, size) for i in range(rows)])


def merged(backbone: Backbone, base: BaseAdapter, update: Update | None = None) -> Any:
    """A copy of the model with base and update multiplied out into its weights: the oracle."""
    model = copy.deepcopy(backbone.model)
    for projection, weights in effective_weight(base, update).items():
        change = dense(weights)
        for layer, block in enumerate(model.model.layers):
            module = getattr(block.self_attn, f"{projection}_proj")
            module.weight.data += change[layer].to(module.weight.dtype)
    return model


@torch.no_grad()
def losses_of(backbone: Backbone, rows: Sequence[Adapted], prompts: Sequence[Prompt]) -> Tensor:
    """Loss of each answered prompt, row i under ``rows[i]``, in one plain forward pass."""
    batch = make_batch(prompts, backbone)
    with adapted_rows(backbone, rows):
        return answer_losses(backbone, batch)


def hooks_of(backbone: Backbone) -> int:
    """Forward hooks that stand on the projections."""
    modules = [m for stack in backbone.projections.values() for m in stack]
    return sum(len(module._forward_hooks) for module in modules)


def demonstration(number: int, words: str, answer: str, passages: int = 1) -> Demonstration:
    """A demonstration whose question and passages hold the given words."""
    shown = tuple(
        Passage(f"p{number}.{i}", f"{words} is near {WORDS[(number + i) % 40]} .", "Lima")
        for i in range(passages)
    )
    return Demonstration(f"d{number}", f"where is the {words} ?", shown, answer)


def support_sets() -> list[SupportSet]:
    """Three sets of two demonstrations each, of two tasks, with prompts of different lengths."""
    return [
        SupportSet(
            "nq",
            (
                demonstration(1, "capital of Peru", "Lima", 2),
                demonstration(2, "red bird", "the old tree"),
            ),
        ),
        SupportSet(
            "nq",
            (
                demonstration(3, "long river", "Cairo"),
                demonstration(4, "first king and the last queen", "Rome", 2),
            ),
        ),
        SupportSet(
            "trivia",
            (
                demonstration(5, "salt", "the blue sea", 0),
                demonstration(6, "fish", "water", 3),
            ),
        ),
    ]


def query_only() -> Unadapted:
    return Unadapted("query-only", Adapted(reads_evidence=False))


def vanilla_rag() -> Unadapted:
    return Unadapted("vanilla-rag", Adapted())


def base_only(base: BaseAdapter) -> Unadapted:
    return Unadapted("base", Adapted(base), {"base": base.fingerprint})
