"""`raggd bench`: what the method costs on this machine, before anything is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raggd.cli.options import Assignments, Config, Json, load_parts


def bench(
    shape: Annotated[
        str | None,
        typer.Option(help="A shape with random weights, e.g. qwen2.5-7b; else your backbone."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, bfloat16, float16 or nf4; default: as set."),
    ] = None,
    support: Annotated[int, typer.Option(min=8, help="Tokens of each of 3 demonstrations.")] = 770,
    prompt: Annotated[int, typer.Option(min=8, help="Tokens of a question's prompt.")] = 768,
    answer: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each comparison.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Write the record there, too.")] = None,
    config: Config = None,
    assignments: Assignments = None,
    as_json: Json = False,
) -> None:
    """Time adapting, answering and decoding on your backbone, or on a shape with random weights."""
    from raggd.backbone.shapes import random_backbone
    from raggd.cli.console import emit_json, progress_bar, say
    from raggd.evaluation.price import Lengths, measure_price, random_weights
    from raggd.files import write_json
    from raggd.provenance import origin

    chosen = [f"backbone.dtype='{dtype}'"] if dtype else []
    with progress_bar() as bar:
        parts = load_parts(config, [*(assignments or []), *chosen], bar)
        bar.say("loading")
        backbone = random_backbone(shape, parts.settings.backbone) if shape else parts.backbone
        base, predictor = random_weights(backbone, parts.settings.adapter.rank)
        lengths = Lengths(support=support, prompt=prompt, answer=answer)
        found = measure_price(backbone, base, predictor, lengths, rounds, bar.say)
    record = {**found, **origin()}
    if out is not None:
        write_json(out, record)
    if as_json:
        emit_json(record)
        return
    say(f"{found['backbone']}, {found['dtype']}, {found['device']}")
    for name, ms in found["ms"].items():
        say(f"{ms:>12,.1f} ms  {name}")
    for name, ratio in found["ratios"].items():
        say(f"{ratio['ratio']:>12.3f}     {name} ({ratio['low']:.3f} to {ratio['high']:.3f})")


def register(app: typer.Typer) -> None:
    """Add the command to the program.

    Args:
        app: the program's commands.
    """
    app.command()(bench)
