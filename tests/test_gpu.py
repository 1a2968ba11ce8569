"""What only a graphics card can show; `make gpu-check` runs these. Skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from raggd.adaptation.targets import Targets, encode_batch, sgd_updates
from raggd.backbone import capture
from raggd.backbone.batch import answer_losses, make_batch
from raggd.backbone.capture import CapturedSteps, GrowingSteps, capture_for
from raggd.backbone.generate import decode, read_prompts
from raggd.backbone.interface import attach
from raggd.backbone.load import Backbone
from raggd.core.low_rank import BaseAdapter, Update, stack_updates
from raggd.data.prompts import Prompt
from raggd.evaluation.price import random_backbone, random_prompts, random_weights
from raggd.settings import BackboneSettings, TargetSettings
from raggd.study.alignment import alignment_summary

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card"),
]
MOST_BYTES = 100_000
"""That may cross in an adaptation: token ids, and the library's questions about masks."""


def tiny(dtype: str = "float32") -> Backbone:
    torch.backends.cuda.matmul.allow_tf32 = False
    return random_backbone("tiny", BackboneSettings(dtype=dtype))  # type: ignore[arg-type]


def updates(base: BaseAdapter, rows: int) -> Update:
    torch.manual_seed(5)
    made = [base.zero_update().map(lambda t: 0.3 * torch.randn_like(t)) for _ in range(rows)]
    return stack_updates(made)


def crossed(work: Callable[[], object], folder: Path) -> int:
    """Bytes that a piece of work copies between the card and the processor, by the profiler."""
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        work()
        torch.cuda.synchronize()
    path = folder / "trace.json"
    profile.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    copies = [
        e for e in events if str(e.get("name", "")).startswith(("Memcpy HtoD", "Memcpy DtoH"))
    ]
    return sum(int(e["args"].get("bytes", 0)) for e in copies)


def test_nothing_but_tokens_crosses_in_an_adaptation(tmp_path: Path) -> None:
    backbone = random_backbone("smollm2-135m", BackboneSettings())
    base, predictor = random_weights(backbone)
    batch = make_batch(random_prompts(backbone, 3, 64, 4), backbone)

    def adapt() -> Update:
        update: Update = predictor.predict(encode_batch(backbone, base, batch, 1))
        return update

    assert adapt().factors["q"].a.device == backbone.device
    assert crossed(adapt, tmp_path) < MOST_BYTES
    moved = partial(lambda: adapt().to(torch.device("cpu")))
    assert crossed(moved, tmp_path) > MOST_BYTES  # the measure sees an update that leaves


def logits_of(
    step: Callable[[Tensor], Tensor], logits: Tensor, following: Tensor | None, tokens: int = 12
) -> tuple[Tensor, Tensor]:
    """Logits of some steps and the tokens that they follow: given ones, or the likeliest."""
    found, chosen = [logits.clone()], []
    for at in range(tokens):
        chosen.append(found[-1].argmax(-1) if following is None else following[at])
        found.append(step(chosen[-1]).float().clone())
    return torch.stack(found), torch.stack(chosen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.no_grad()
def test_captured_graphs_give_the_logits_of_plain_steps(dtype: str) -> None:
    backbone, exact = tiny(dtype), tiny()
    exact.model.load_state_dict(backbone.model.state_dict())
    base, _ = random_weights(backbone, rank=4)
    for rows in (1, 3, 4, 8, 3):  # 3 and 4 share a size; shapes that change are captured anew
        shown = [Prompt(tuple(range(10, 30 + 3 * row)), 0, 0) for row in range(rows)]
        for update in (None, updates(base, rows)):
            with attach(backbone, base, update):
                reading = read_prompts(backbone, shown)
                growing = GrowingSteps(backbone, reading)
                plain, tokens = logits_of(growing, reading.logits, None)
                captured = capture_for(backbone, reading, 12)
                assert captured._graph is not None
                step = CapturedSteps(backbone, captured)
                found, _ = logits_of(step, reading.logits, tokens)
            own = replace(base, backbone=exact.fingerprint)
            step_from = None if update is None else replace(update, base=own.fingerprint)
            with attach(exact, own, step_from):
                reading = read_prompts(exact, shown)
                wanted, _ = logits_of(GrowingSteps(exact, reading), reading.logits, tokens)
            assert not torch.equal(wanted[0], wanted[1])
            size = float(wanted.abs().max())
            wrong, usual = (float((x - wanted).abs().max()) / size for x in (found, plain))
            assert wrong < 3 * usual + 1e-4, (rows, update is None, wrong, usual)
            if dtype == "float32":
                assert torch.equal(found[:-1].argmax(-1), tokens)
    assert backbone.model not in capture._REFUSED


def test_a_row_of_a_batch_is_that_row_alone() -> None:
    backbone = tiny()
    base, _ = random_weights(backbone, rank=4)
    own = updates(base, 4)
    shown = random_prompts(backbone, 4, 40, 0)
    with attach(backbone, base, own):
        together = decode(backbone, read_prompts(backbone, shown), 10)
    alone = []
    for row in range(4):
        with attach(backbone, base, own.row(row)):
            alone += decode(backbone, read_prompts(backbone, shown[row : row + 1]), 10)
    assert together == alone
    assert len(set(together)) > 1


def test_answers_that_come_and_go_on_captured_steps_are_those_of_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fastapi")
    from raggd.methods.base import Adapted
    from raggd.serving import scheduler
    from test_serving_decoding import alone, play, prompts_of
    from tiny import make_backbone, random_base, random_update

    monkeypatch.setattr(scheduler, "AHEAD", 3)  # graphs are continued from one another
    backbone = make_backbone()
    base = random_base(backbone)
    backbone.model.to("cuda")
    rows = [Adapted(base, random_update(base, seed)) for seed in (2, 3, 4, 5)] + [Adapted(base)]
    lengths = (10, 3, 7, 1, 9)
    found = play(backbone, rows, (0, 1, 1, 4, 12), lengths)
    shown = zip(rows, prompts_of(backbone), lengths, strict=True)
    assert found == [alone(backbone, row, prompt, n) for row, prompt, n in shown]
    assert len(capture._CAPTURED[backbone.model]) > 1


@pytest.mark.parametrize("dtype", ["bfloat16", "nf4"])
def test_gradients_reach_every_layer(dtype: str) -> None:
    if dtype == "nf4":
        pytest.importorskip("bitsandbytes")
    backbone = tiny(dtype)
    base, _ = random_weights(backbone, rank=4)
    batch = make_batch(random_prompts(backbone, 2, 40, 4), backbone)
    encode_batch(backbone, base, batch, 1)  # the backward pass of 4 bits broke after such a pass
    (update,) = sgd_updates(backbone, base, batch, 1, TargetSettings(steps=2)).values()
    for factors in update.factors.values():
        for tensor in factors:
            assert (tensor.abs().amax((-2, -1)) > 0).all()
            assert tensor.isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_those_of_each_prompt_alone_however_much_is_padded(dtype: str) -> None:
    backbone = random_backbone("smollm2-135m", BackboneSettings(dtype=dtype))  # type: ignore[arg-type]
    base, _ = random_weights(backbone)
    shown = [random_prompts(backbone, 1, length, 4)[0] for length in (20, 300, 480)]

    def gradient(prompts: list[Prompt]) -> Tensor:
        update = base.zero_update().map(lambda t: t.requires_grad_(True))
        with attach(backbone, base, update):
            losses = answer_losses(backbone, make_batch(prompts, backbone))
        factors = [t for pair in update.factors.values() for t in pair]
        return torch.cat([g.flatten() for g in torch.autograd.grad(losses.sum(), factors)])

    together, apart = gradient(shown), sum(gradient([prompt]) for prompt in shown)
    assert together.isfinite().all()
    cosine = torch.nn.functional.cosine_similarity(together, apart, dim=0)  # type: ignore[arg-type]
    assert cosine > (0.999 if dtype == "float32" else 0.98)


def test_the_head_in_half_precision_is_the_head() -> None:
    backbone = tiny()
    base, predictor = random_weights(backbone, rank=4)
    states = torch.randn(2, 3, base.spec.d_in, device=backbone.device)
    wide = predictor.predict(states).vector()
    narrow = predictor.place(backbone.device)
    assert narrow.head.dtype == torch.float16
    close = narrow.predict(states).vector()
    assert not torch.equal(close, wide)
    assert torch.allclose(close, wide, atol=2e-3 * float(wide.abs().max()))


def test_a_predictor_is_compared_with_targets_where_the_base_is() -> None:
    base, predictor = random_weights(tiny(), rank=4)
    names = tuple("abcd")
    targets = Targets(
        torch.randn(4, base.spec.size).bfloat16(),
        torch.randn(4, 3, base.spec.d_in),
        ("nq",) * 4,
        names,
        tuple((name,) for name in names),
        base.fingerprint,
        "x",
    )
    found = alignment_summary(base, targets, predictor)
    cpu = torch.device("cpu")
    wanted = alignment_summary(base.to(cpu), targets, predictor.to(cpu))
    assert found["cosine"] == pytest.approx(wanted["cosine"], abs=1e-4)
