"""Adapters for other engines: LoRA in PEFT's folder form and as GGUF, with the prompt to use.

The effective weight is ``s B A`` of the base plus ``s (dB A + (B + dB) dA)`` of the update. The
parts are put side by side by rank concatenation, so the file has rank r for the base alone and 3r
with an update: a small update keeps its digits even where an engine rounds the factors to
bfloat16. The scale s is multiplied into B, and alpha equals the rank (a scale of 1).

An adapter reads what it was trained to read: under other words it answers otherwise. The chat
template puts raggd's instruction, and the examples that an adapted state shows, before a
conversation that has no system turn, so that a stock engine needs nothing but the user's turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.interface import check_fits
from raggd.backbone.load import Backbone
from raggd.core.low_rank import (
    PROJECTIONS,
    AdapterSpec,
    BaseAdapter,
    Factors,
    Update,
    concat,
    effective_change,
    effective_weight,
    factors_of,
)
from raggd.data.prompts import (
    ANSWER_CUE,
    Turns,
    control_of,
    render_turns,
    system_text,
    template_of,
    user_text,
)
from raggd.files import load_tensors, read_json, replacing, save_tensors, write_json, write_text
from raggd.records import Demonstration, Passage, RaggdError
from raggd.settings import AdapterSettings

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
TEMPLATE_FILE, PROMPT_FILE = "chat_template.jinja", "prompt.txt"


@dataclass(frozen=True, slots=True)
class PeftFolder:
    """What was written: ``adapter_config.json`` and ``adapter_model.safetensors`` in a folder."""

    folder: Path
    rank: int  # of the LoRA; an engine's largest allowed rank must not be below it
    backbone: str  # the model to load it over, a folder or a Hugging Face name


def lora_factors(base: BaseAdapter, update: Update | None) -> dict[str, Factors]:
    """Base and a single update as one product per projection, scale included; rank r, or 3r."""
    whole = effective_weight(base)
    if update is None:
        return whole
    if update.rows is not None:
        raise RaggdError(
            f"cannot export a batch of {update.rows} updates as one adapter: export each row "
            "(`update.row(i)`)."
        )
    change = effective_change(base, update)
    return {p: concat([whole[p], change[p]]) for p in PROJECTIONS}


def model_source(backbone: Backbone) -> str:
    """Return where the backbone was loaded from: a folder or a Hugging Face name."""
    return str(getattr(backbone.model, "name_or_path", "") or backbone.name)


def peft_tensors(backbone: Backbone, factors: dict[str, Factors]) -> dict[str, Tensor]:
    """Name every layer's factors as PEFT does: lora_A (rank, d_in), lora_B (d_out, rank)."""
    paths = {id(module): path for path, module in backbone.model.named_modules()}
    tensors = {}
    for projection in PROJECTIONS:
        for module, a, b in zip(
            backbone.projections[projection], *factors[projection], strict=True
        ):
            name = f"base_model.model.{paths[id(module)]}"
            tensors[f"{name}.lora_A.weight"] = a.float()
            tensors[f"{name}.lora_B.weight"] = b.float()
    return tensors


def _check_target(folder: Path) -> None:
    # another adapter may be replaced; anything else that lies in the folder may be precious, but
    # for what is hidden: a desktop's notes, what another process writes or was killed writing
    if folder.is_dir():
        ours = {WEIGHTS_FILE, CONFIG_FILE, TEMPLATE_FILE, PROMPT_FILE}
        strange = {path.name for path in folder.glob("[!.]*")} - ours
        if strange:
            raise RaggdError(
                f"{folder} holds other files ({', '.join(sorted(strange)[:3])}): name a new or "
                "empty folder, or that of an earlier export."
            )
    elif folder.exists():
        raise RaggdError(f"{folder} is a file: name a folder for the adapter.")


def write_peft(
    folder: Path, backbone: Backbone, base: BaseAdapter, update: Update | None = None
) -> PeftFolder:
    """Write base and update as one PEFT LoRA, in float32; an earlier export is replaced."""
    check_fits(backbone, base, update)
    _check_target(folder)
    factors = lora_factors(base, update)
    rank = factors["q"].a.shape[-2]
    source = model_source(backbone)
    metadata = {"format": "pt", "raggd_base": base.fingerprint, "backbone": backbone.fingerprint}
    with suppress(OSError):  # no config, no adapter, until all is written
        (folder / CONFIG_FILE).unlink()
    save_tensors(folder / WEIGHTS_FILE, peft_tensors(backbone, factors), metadata)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": source,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": [f"{p}_proj" for p in PROJECTIONS],
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)
    return PeftFolder(folder, rank, source)


ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architectures by transformers' types of models."""


def reordered(b: Tensor, heads: int) -> Tensor:
    """Put the rows of a q or k matrix in the order of llama.cpp's rotation: pairs side by side."""
    by_half = b.reshape(heads, 2, -1, b.shape[-1])
    return by_half.transpose(1, 2).reshape(b.shape)


def _architecture(backbone: Backbone) -> str:
    kind = str(getattr(backbone.model.config, "model_type", "unknown"))
    if kind not in ARCHITECTURES:
        raise RaggdError(
            f"no GGUF export for model type '{kind}' of backbone '{backbone.name}': only for "
            f"{', '.join(ARCHITECTURES)}, whose result was checked in llama.cpp. "
            "`raggd export peft` writes a form that llama.cpp's own converter reads."
        )
    return ARCHITECTURES[kind]


def write_gguf(
    path: Path, backbone: Backbone, base: BaseAdapter, update: Update | None = None
) -> Path:
    """Write base adapter and update as one GGUF LoRA, in float32, and return the file."""
    from gguf import GGUFType, GGUFWriter, Keys

    check_fits(backbone, base, update)
    architecture, config = _architecture(backbone), backbone.model.config
    factors, heads = lora_factors(base, update), dict[str, int]()
    if architecture == "llama":  # it alone has the rows of these in another order
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    with replacing(path) as temporary:
        writer = GGUFWriter(temporary, architecture)
        writer.add_type(GGUFType.ADAPTER)
        writer.add_string(Keys.Adapter.TYPE, "lora")
        # llama.cpp scales by alpha / rank: this scale stands in B already
        writer.add_float32(Keys.Adapter.LORA_ALPHA, float(factors["q"].a.shape[-2]))
        writer.add_string("raggd.base", base.fingerprint)
        writer.add_string("raggd.backbone", backbone.fingerprint)
        for projection, stacks in factors.items():
            for layer, (a, b) in enumerate(zip(*stacks, strict=True)):
                if projection in heads:
                    b = reordered(b, heads[projection])
                for end, tensor in (("lora_a", a), ("lora_b", b)):
                    values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
                    writer.add_tensor(f"blk.{layer}.attn_{projection}.weight.{end}", values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


_PLAIN = (
    "{{- messages[0]['content'] -}}{%- for m in messages[1:] -%}{%- if m['role'] == 'assistant' -%}"
    "{{- ' ' + m['content'] -}}{%- else -%}{{- '\\n\\n' + m['content'] + '\\nCUE' -}}{%- endif -%}"
    "{%- endfor -%}"
).replace("CUE", ANSWER_CUE)
"""What raggd writes for a tokenizer without a template."""


def opening_turns(tokenizer: Any, shown: Sequence[Demonstration], instruction: str) -> Turns:
    """Return the turns before the user's own, instruction and examples; refuse control words."""
    turns = [{"role": "system", "content": system_text(True, instruction)}]
    for example in shown:
        text = user_text(example.question, example.passages)
        turns.append({"role": "user", "content": text})
        turns.append({"role": "assistant", "content": example.answer})
    for turn in turns:
        if found := control_of(tokenizer).words.search(turn["content"]):
            raise RaggdError(
                f"cannot export examples that hold '{found[0]}': another engine would take it for "
                "a control word of the model, not for text. Leave it out of them."
            )
    return turns


_JOINED = (
    "{%- set messages = [{'role': 'user', 'content': messages[0]['content'] + '\\n\\n' + "
    "messages[1]['content']}] + messages[2:] -%}"
)
"""Puts the words of a system turn into the user's first one."""


def chat_template(tokenizer: Any, turns: Turns) -> str:
    """Make the backbone's chat template, in Jinja, begin with some turns where nobody else does."""
    own = template_of(tokenizer)
    # what is no JSON in Jinja: nothing; strings of both are written alike
    put = "{%- if messages[0]['role'] != 'system' -%}{%- set messages = "
    put += json.dumps(turns, ensure_ascii=False) + " + messages -%}{%- endif -%}"
    if not own:
        return put + _PLAIN
    tried = [{"role": "system", "content": "S0"}, {"role": "user", "content": "U0"}]
    refused = "S0\n\nU0" in render_turns(tokenizer, tried)  # a system turn
    return put + (_JOINED if refused else "") + own


def write_prompt(
    folder: Path, tokenizer: Any, turns: Turns, stem: str = "", *, sources: bool = False
) -> None:
    """Write ``prompt.txt``, for people, and ``chat_template.jinja``, for engines, into `folder`.

    `stem` stands before both names; `turns` are those before the user's own; `sources`: whether
    passages are shown with the names of their files.
    """
    passage = Passage("1", "{text of the first passage}", "{its title}", "{its file}")
    asked = {"role": "user", "content": user_text("{question}", [passage], sources)}
    told = render_turns(tokenizer, [*turns, asked])
    write_text(folder / f"{stem}{PROMPT_FILE}", told + "\n")
    write_text(folder / f"{stem}{TEMPLATE_FILE}", chat_template(tokenizer, turns))


_NAME = re.compile(r"\.(\d+)\.(?:self_attn|attn|attention)\.([qkv])_proj\.lora_([AB])\.")


def _shape_of(path: Path, backbone: Backbone) -> AdapterSpec:
    # of the LoRA that a PEFT configuration describes
    config = read_json(path, what="adapter configuration")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise RaggdError(f"{path} names no rank r and lora_alpha: no LoRA of PEFT.")
    for name in ("rank_pattern", "alpha_pattern", "use_dora"):
        if config.get(name):
            raise RaggdError(
                f"{path} has {name}: the audit reads LoRA of one rank and one scale alone."
            )
    scale = alpha / rank**0.5 * rank if config.get("use_rslora") else alpha
    return backbone.adapter_spec(AdapterSettings(rank=rank, alpha=float(scale)))


def read_peft(folder: Path, backbone: Backbone) -> BaseAdapter:
    """Read a PEFT folder of LoRA as an adapter of the backbone; a missing projection is zero."""
    spec, path = _shape_of(folder / CONFIG_FILE, backbone), folder / WEIGHTS_FILE
    tensors = {name: torch.zeros(shape) for name, shape in spec.shapes.items()}
    for name, tensor in load_tensors(path)[0].items():
        match = _NAME.search(name)
        if match is None:
            raise RaggdError(
                f"{path}: '{name}' is no LoRA of a q, k or v projection: the audit reads adapters "
                "of these three alone (target_modules q_proj, k_proj, v_proj)."
            )
        layer, stack = int(match[1]), tensors[f"{match[2]}.{match[3].lower()}"]
        if layer >= spec.layers or tensor.shape != stack[layer].shape:
            raise RaggdError(
                f"{path}: '{name}' has shape {tuple(tensor.shape)}, expected "
                f"{tuple(stack.shape[1:])} in each of {spec.layers} layers: it was made for "
                "another backbone or rank."
            )
        stack[layer] = tensor
    return BaseAdapter(spec, factors_of(tensors), backbone.fingerprint)


def mean_adapter(adapters: Sequence[BaseAdapter]) -> BaseAdapter:
    """Average the products of adapters of one backbone, of any rank, by rank concatenation."""
    weights = [effective_weight(adapter) for adapter in adapters]
    factors = {
        p: concat([Factors(w[p].a, w[p].b / len(weights)) for w in weights]) for p in PROJECTIONS
    }
    rank = factors["q"].a.shape[-2]
    spec = replace(adapters[0].spec, rank=rank, alpha=float(rank))
    return BaseAdapter(spec, factors, adapters[0].backbone)
