"""What adapting and answering cost on this machine: measured in turn, and estimated ahead.

On your backbone, or on one of a published shape with random weights. Tokens are random and no token
ends an answer, so lengths alone decide.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from raggd.adaptation.predictors.base import MLPPredictor
from raggd.adaptation.targets import encode_batch, sgd_updates
from raggd.backbone.batch import Batch, last_states, make_batch
from raggd.backbone.device import choose_device, choose_dtype, quantization
from raggd.backbone.generate import decode, read_prompts
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone, find_projections, model_fingerprint
from raggd.core.low_rank import BaseAdapter, Update, factors_of
from raggd.data.prompts import Prompt
from raggd.evaluation.timing import Stopwatch, Work, in_turn, ratio_of
from raggd.progress import Progress
from raggd.records import require_known
from raggd.settings import AdapterSettings, BackboneSettings, TargetSettings

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
ROWS = (1, 8)  # of the batches that are answered


def shape_config(name: str) -> Any:
    """Return the transformers configuration of a shape in `SHAPES`."""
    from transformers import AutoConfig

    require_known("shape", name, tuple(SHAPES))
    kind, values = SHAPES[name]
    return AutoConfig.for_model(kind, **dict(zip(_FIELDS, values, strict=True)))


class NoText:
    """Stands for a tokenizer where tokens are only counted."""

    pad_token_id = 0

    def decode(self, tokens: list[int], **_: Any) -> str:
        """Return the token ids, as text."""
        return " ".join(map(str, tokens))


def without_text(backbone: Backbone) -> Backbone:
    """Return the same model without its tokenizer; no token ends its answers."""
    return replace(backbone, tokenizer=NoText(), stops=[-1])


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
    config, nf4 = shape_config(name), bool(quantization(settings, device))
    torch.manual_seed(0)
    with init_empty_weights(include_buffers=False):
        make: Any = AutoModelForCausalLM.from_config
        model = make(config, dtype=choose_dtype(settings, device))
    _materialise(model, device, nf4=nf4)
    model.eval().requires_grad_(False)
    projections, fingerprint = find_projections(model, name), model_fingerprint(model)
    return Backbone(name, model, NoText(), projections, fingerprint, stops=[-1])


@dataclass(frozen=True, slots=True)
class Lengths:
    """Sizes of the work, in tokens."""

    demonstrations: int = 3  # N
    support: int = 770  # of each demonstration
    prompt: int = 768  # of each question with its passages
    answer: int = 16
    steps: int = 5  # K of TT-SGD


def random_weights(backbone: Backbone, rank: int = 16) -> tuple[BaseAdapter, MLPPredictor]:
    """Make a random base adapter and predictor of the paper's size (256, 64), where they run."""
    spec = backbone.adapter_spec(AdapterSettings(rank=rank))
    tensors = {
        name: 0.01 * torch.randn(shape, device=backbone.device)
        for name, shape in spec.shapes.items()
    }
    base = BaseAdapter(spec, factors_of(tensors), backbone.fingerprint)
    with torch.device(backbone.device):
        predictor = MLPPredictor(spec, base.fingerprint, spec.d_in, 256, 64)
    predictor.head.data.normal_(0, 1e-3)
    return base, predictor.eval().requires_grad_(False)


def random_prompts(backbone: Backbone, count: int, tokens: int, answer: int) -> list[Prompt]:
    """Draw prompts of random tokens, the last of them the answer's; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    high = backbone.model.config.vocab_size
    drawn = torch.randint(10, high, (count, tokens), generator=generator).tolist()
    return [Prompt(tuple(row), answer, 0) for row in drawn]


def weight_seconds(backbone: Backbone) -> float:
    """Return how long reading all weights that a token passes takes, at the measured bandwidth."""
    model = backbone.model
    weights: int = sum(p.numel() * p.element_size() for p in model.parameters())
    embeddings = model.get_input_embeddings().weight
    if embeddings is not model.get_output_embeddings().weight:  # of these, a row is read
        weights -= embeddings.numel() * embeddings.element_size()
    wide = 2 ** (26 if backbone.device.type == "cpu" else 28)
    block = torch.ones(wide, device=backbone.device)  # of float32: larger than any cache
    times = in_turn({"read": block.sum}, 7)["read"]
    return float(weights / (block.nbytes / min(times) * 1000))


def _adapting(
    backbone: Backbone, base: BaseAdapter, predictor: Any, batch: Batch, steps: int
) -> dict[str, Work]:
    def floor() -> None:
        with attach(backbone, base):
            last_states(backbone, batch)

    def predict() -> Update:
        update: Update = predictor.predict(encode_batch(backbone, base, batch, 1))
        return update

    settings = TargetSettings(steps=steps)
    sgd = partial(sgd_updates, backbone, base, batch, 1, settings)
    return {"one forward pass": floor, "RAG-GD": predict, f"TT-SGD, K = {steps}": sgd}


def _answering(
    backbone: Backbone, base: BaseAdapter, update: Update, rows: int, lengths: Lengths
) -> dict[str, Work]:
    prompts = random_prompts(backbone, rows, lengths.prompt, 0)
    updates = update.map(lambda t: t.expand(rows, *t.shape[1:]).contiguous())

    def answer(own: BaseAdapter | None, step: Update | None, tokens: int) -> None:
        with attach(backbone, own, step):
            decode(backbone, read_prompts(backbone, prompts), tokens)

    ways = {"bare": (None, None), "base": (base, None), "updates": (base, updates)}
    return {
        f"{rows} x {tokens} tokens, {name}": partial(answer, *way, tokens)
        for name, way in ways.items()
        for tokens in (1, lengths.answer)
    }


def measure_price(
    backbone: Backbone,
    base: BaseAdapter,
    predictor: Any,
    lengths: Lengths,
    rounds: int,
    progress: Progress,
) -> dict[str, Any]:
    """Time adapting, answering and decoding: ``ms`` (medians), ``ratios`` with range, sizes."""
    silent = without_text(backbone)
    shown = random_prompts(silent, lengths.demonstrations, lengths.support, 4)
    batch = make_batch(shown, silent)
    progress("adapting", 0, None)
    adapting = _adapting(silent, base, predictor, batch, lengths.steps)
    update = adapting["RAG-GD"]()
    times = in_turn(adapting, rounds)
    floor, own, sgd = times.values()
    ratios = {"RAG-GD / one forward pass": (own, floor), "RAG-GD / TT-SGD": (own, sgd)}
    for rows in ROWS:
        progress(f"answering, {rows} rows", 0, None)
        works = _answering(silent, base, update, rows, lengths)  # type: ignore[arg-type]
        times |= in_turn(works, rounds)
        bare, plain, mixed = (
            times[f"{rows} x {lengths.answer} tokens, {way}"] for way in ("bare", "base", "updates")
        )
        ratios |= {
            f"{rows} rows: base / bare": (plain, bare),
            f"{rows} rows: updates / base": (mixed, plain),
        }
    whole, first = (times[f"1 x {n} tokens, updates"] for n in (lengths.answer, 1))
    step = [(w - f) / (lengths.answer - 1) for w, f in zip(whole, first, strict=True)]
    times["decoding step, 1 row"] = step
    times["reading the weights once"] = [1000 * weight_seconds(backbone)] * len(step)
    ratios["decoding step / reading the weights"] = (step, times["reading the weights once"])
    return {
        "ms": {name: round(median(ms), 3) for name, ms in times.items()},
        "ratios": {name: asdict(ratio_of(*pair)) for name, pair in ratios.items()},
        "lengths": asdict(lengths),
        "backbone": backbone.name,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "device": _device_name(backbone.device),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else "mps"


LOOK = (3, 464, 7)  # the demo's batch: prompts of that many tokens, answers with their end
STEP = 2.4  # A step of SGD, forwards and backwards, in forward passes over the same tokens
CHOICES = (24, 40, 60, 90, 120)  # questions of a demo: few, to be chosen again


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds on one machine: a question with three passages; reading three demonstrations."""

    answer: float
    encode: float

    def of(self, methods: int, encoded: int, sgd_steps: int) -> Pace:
        """Return the pace of a comparison of methods; steps and encodings are of all together."""
        return Pace(methods * self.answer, self.encode * (encoded + STEP * sgd_steps))

    def seconds(self, questions: int, sets: int) -> float:
        """Estimate the seconds of so many questions, and of adapting to so many support sets."""
        return questions * self.answer + sets * self.encode


def look(backbone: Backbone) -> Pace:
    """Time one small batch of random tokens, as long as real prompts: a few seconds."""
    silent, (rows, prompt, answer) = without_text(backbone), LOOK
    decode(silent, read_prompts(silent, random_prompts(silent, 1, 32, 0)), 2)  # warm
    watch = Stopwatch(cuda=backbone.device.type == "cuda")
    with watch.timed("read"):
        reading = read_prompts(silent, random_prompts(silent, rows, prompt, 0))
    with watch.timed("decode"):
        decode(silent, reading, answer)
    encode, written = (ms / 1000 for ms in watch.medians().values())
    return Pace((encode + written) / rows, encode)


def questions_for(seconds: float, pace: Pace) -> tuple[int, int]:
    """Choose questions in all, and support sets per benchmark (of two), for some seconds."""
    plans = [*((questions, 1) for questions in CHOICES), *((more, 3) for more in CHOICES[2:])]
    fitting = [plan for plan in plans if pace.seconds(plan[0], 2 * plan[1]) <= seconds]
    return fitting[-1] if fitting else plans[0]
