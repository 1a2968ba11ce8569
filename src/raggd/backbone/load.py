"""Load any causal LM with separate q, k, v projections, and say what decides its answers.

A fingerprint is written ``weights-vocabulary-special-end-template-wording``, so that two of them
say by themselves which part differs. Files made before there were parts name the weights alone.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raggd.backbone.device import (
    check_room,
    choose_device,
    choose_dtype,
    keep_freed_memory,
    quantization,
)
from raggd.backbone.embedded import EMBEDDED, known_fingerprint, loadable, quiet
from raggd.core.low_rank import PROJECTIONS, AdapterSpec
from raggd.data.prompts import (
    ANSWER_CUE,
    WITH_PASSAGES,
    WITHOUT_PASSAGES,
    control_of,
    render_turns,
    template_of,
    user_text,
)
from raggd.files import first_line
from raggd.progress import Progress, on_stderr
from raggd.records import Passage, RaggdError, content_id
from raggd.settings import AdapterSettings, BackboneSettings

FUSED_NAMES = ("qkv_proj", "c_attn", "query_key_value", "Wqkv", "qkv")
PARTS = ("weights", "vocabulary", "special tokens", "end tokens", "chat template", "prompt wording")
_DIGITS = 8
_PROBE = "The 12,345 cafés of Zürich – «10 % off»!\n\tif x_1 >= 0: 図書館 المدرسة 🙂 naïve\u00ad"
_CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Question: one?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Question: two?"},
]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A frozen causal LM with its tokenizer and its q, k, v modules by layer."""

    name: str
    model: Any  # of Hugging Face, in eval mode, no parameter requires a gradient
    tokenizer: Any
    projections: dict[str, list[nn.Module]]  # linear modules of q, k, v, first layer first
    fingerprint: str  # what decides an answer besides an adapter, by its `PARTS`
    stops: list[int]  # the tokens that end an answer

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return torch.device(next(iter(self.model.parameters())).device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states."""
        embeddings: nn.Embedding = self.model.get_input_embeddings()
        return embeddings.weight.dtype

    def with_cache(self, cache: Any) -> dict[str, Any]:
        """Return the arguments of a forward pass that reads and writes a cache."""
        name = _cache_argument(type(self.model))  # type: ignore[arg-type]  # a class is hashable
        return {name: cache, "use_cache": True}

    def adapter_spec(self, settings: AdapterSettings) -> AdapterSpec:
        """Return the shape of an adapter of this backbone; widths are read from the modules."""
        (d_in, q), (_, k), (_, v) = (_widths(self.projections[p]) for p in PROJECTIONS)
        layers = len(self.projections["q"])
        return AdapterSpec(layers, d_in, (q, k, v), settings.rank, settings.alpha)

    def check_made_for(self, recorded: str, thing: str, advice: str) -> None:
        """Refuse a thing that recorded the fingerprint of another backbone or tokenizer."""
        wrong = differences(recorded, self.fingerprint)
        if wrong and wrong[0] == PARTS[0]:
            raise RaggdError(
                f"{thing} was made for backbone {recorded}, but '{self.name}' is "
                f"{self.fingerprint}: {advice}."
            )
        if wrong:
            raise RaggdError(
                f"{thing} was made for backbone '{self.name}' with another tokenizer: "
                f"{', '.join(wrong)} differ. Put back the tokenizer's files that it was made with, "
                f"or {advice}."
            )


@cache
def _cache_argument(kind: type) -> str:
    # transformers 5.24 calls "cache" what was "past_key_values", and warns at every old call
    known = inspect.signature(kind.forward).parameters if hasattr(kind, "forward") else {}
    return "cache" if "cache" in known else "past_key_values"


def _widths(modules: list[nn.Module]) -> tuple[int, int]:
    widths = {(int(m.in_features), int(m.out_features)) for m in modules}  # type: ignore[arg-type]
    if len(widths) > 1:
        raise RaggdError(
            f"the layers of this backbone have projections of different widths {sorted(widths)}: "
            "raggd stacks layers and needs one width per projection."
        )
    return widths.pop()


def find_projections(model: nn.Module, name: str) -> dict[str, list[nn.Module]]:
    """Find q, k and v of every decoder layer, in order; fused or missing ones are refused."""
    found: dict[str, list[nn.Module]] = {p: [] for p in PROJECTIONS}
    fused = []
    for path, module in model.named_modules():
        leaf = path.rsplit(".", 1)[-1]
        if leaf in FUSED_NAMES:
            fused.append(path)
        elif leaf in {"q_proj", "k_proj", "v_proj"}:
            found[leaf[0]].append(module)
    if fused or not found["q"] or len({len(modules) for modules in found.values()}) > 1:
        lack = "has no q_proj, k_proj and v_proj in every layer"
        if fused:
            lack = f"computes q, k and v in one fused module ('{fused[0]}')"
        raise RaggdError(
            f"backbone '{name}' {lack}: the evidence-use interface needs all three apart. Choose a "
            "decoder such as Llama, Qwen2/3, Mistral, Gemma or SmolLM."
        )
    return found


def model_fingerprint(model: nn.Module) -> str:
    """Hash shape and 256 values of every parameter, rounded to bfloat16: 16 hexadecimal digits."""
    digest = sha256()
    for path, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)][:256]
        digest.update(f"{path}{tuple(parameter.shape)}".encode())
        digest.update(sample.to(torch.bfloat16).cpu().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def end_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Return the tokens that end a text, the tokenizer's and the settings'; none is refused."""
    own = tokenizer.eos_token_id
    if own is None:
        raise RaggdError(
            "the tokenizer of this backbone has no end token, so no answer can end: name its "
            "eos_token in tokenizer_config.json."
        )
    others = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = others if isinstance(others, list) else [] if others is None else [others]
    return list(dict.fromkeys([own, *sorted(listed)]))


def stop_tokens(tokenizer: Any, model: Any) -> list[int]:
    """Return the tokens that end an answer: end tokens; a line break without a chat template."""
    stops = set(end_tokens(tokenizer, model))
    if template_of(tokenizer) is None:
        breaks = (tokenizer.encode(text, add_special_tokens=False) for text in ("\n", "\n\n"))
        stops.update(tokens[0] for tokens in breaks if len(tokens) == 1)
    return sorted(stops)


def fingerprint_of(model: Any, tokenizer: Any) -> str:
    """Say what decides an answer besides the adapter: end tokens as they are, the rest hashed."""
    words = tokenizer.get_vocab()
    vocabulary = sha256("\0".join(sorted(words, key=words.get)).encode(errors="replace"))
    vocabulary.update(str(tokenizer.encode(_PROBE, add_special_tokens=False)).encode())
    special = [tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id]
    control = control_of(tokenizer)
    asked = user_text("q", [Passage("1", "text", "title"), Passage("2", "text")])
    parts = [
        model_fingerprint(model),
        vocabulary.hexdigest()[:_DIGITS],
        content_id(str(special), str(sorted(control.ids)), control.words.pattern, length=_DIGITS),
        "+".join(map(str, end_tokens(tokenizer, model))),
        content_id(render_turns(tokenizer, _CONVERSATION), length=_DIGITS),
        content_id(WITH_PASSAGES, WITHOUT_PASSAGES, ANSWER_CUE, asked, length=_DIGITS),
    ]
    return "-".join(parts)


def differences(recorded: str, now: str) -> list[str]:
    """Name the `PARTS` in which two fingerprints differ, of those that both have.

    >>> differences("aa-bb-cc-2-dd-ee", "aa-bb-cc-1+2-dd-ff")
    ['end tokens (2 then, 1+2 now)', 'prompt wording']
    """
    then = known_fingerprint(recorded).split("-")
    pairs = zip(PARTS, then, now.split("-"), strict=False)
    return [
        f"{name} ({a} then, {b} now)" if name == "end tokens" else name
        for name, a, b in pairs
        if a != b
    ]


def wrap_model(model: Any, tokenizer: Any, name: str) -> Backbone:
    """Freeze a causal LM and find its projections; a missing padding token is the end token."""
    projections = find_projections(model, name)
    model.eval().requires_grad_(False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    fingerprint, stops = fingerprint_of(model, tokenizer), stop_tokens(tokenizer, model)
    return Backbone(name, model, tokenizer, projections, fingerprint, stops)


@contextmanager
def compile_layers(backbone: Backbone) -> Iterator[None]:
    """Compile every decoder layer inside a ``with`` block, on a processor with a C++ compiler.

    Elementwise work is half of a training step there: 1.2 to 1.5 times faster after 20 seconds.
    """
    layers = getattr(backbone.model.base_model, "layers", [])
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None or backbone.device.type != "cpu":
        layers = []
    for layer in layers:
        layer.compile()
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


def _from_pretrained(source: str, options: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    # the third value: names of the weights that the files do not hold
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # downloads from the hub show their own bars; loading local files needs none
    with quiet(bars=not Path(source).is_dir()):
        tokenizer = AutoTokenizer.from_pretrained(source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, output_loading_info=True, **options
        )
    model, info = loaded
    return model, tokenizer, sorted(info["missing_keys"])  # the library would fill these at random


def _lack(source: str) -> str:
    # the library's own words for these are about the names of its hub
    if Path(source).is_dir() and source:
        there = (Path(source) / "config.json").is_file()
        return "" if there else "there is no model in it (no config.json)."
    is_path = source.startswith(("/", "./", "../", "~"))
    return "there is no such folder." if is_path else "" if source else "the name is empty."


def _unloadable(name: str, source: str, reason: str) -> RaggdError:
    kind = "folder" if Path(source).is_dir() else "hub name"
    return RaggdError(
        f"cannot load backbone '{name}' ({kind}): {reason} Embedded backbones: "
        f"{', '.join(EMBEDDED)}; otherwise give a Hugging Face name, a folder, or a GGUF file."
    )


def check_embedded(name: str, folder: str, now: str, parts: Sequence[str]) -> None:
    """Refuse an embedded backbone that is not the one that was shipped, in some of its parts."""
    found = differences(EMBEDDED[name]["fingerprint"], now)
    wrong = [part for part in found if part.partition(" (")[0] in parts]
    if wrong:
        raise RaggdError(
            f"the files of '{name}' in {folder} are not those that raggd makes: {', '.join(wrong)} "
            "differ. Remove that folder: it is made again."
        )


def load_backbone(settings: BackboneSettings, progress: Progress = on_stderr) -> Backbone:
    """Load the frozen backbone, embedded, from the hub, a folder or a file, to its device."""
    from safetensors import SafetensorError

    name, device = settings.name, choose_device(settings.device)
    four_bits = quantization(settings, device)
    source = loadable(name, progress)
    if reason := _lack(source):
        raise _unloadable(name, source, reason)
    options = {"dtype": choose_dtype(settings, device), **four_bits}
    check_room(source, settings, device)
    try:
        model, tokenizer, missing = _from_pretrained(source, options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _unloadable(name, source, first_line(error)) from error
    if missing:
        raise RaggdError(
            f"the weights of backbone '{name}' lack {len(missing)} tensors "
            f"({', '.join(missing[:3])}, ...): the files are incomplete. Copy or fetch them again."
        )
    if not four_bits:
        model = model.to(device)
    if device.type == "cpu":
        keep_freed_memory()
    backbone = wrap_model(model, tokenizer, name)
    if name in EMBEDDED:  # the wording is not the files', and 4 bits hold other numbers
        parts = PARTS[1:-1] if four_bits else PARTS[:-1]
        check_embedded(name, source, backbone.fingerprint, parts)
    return backbone
