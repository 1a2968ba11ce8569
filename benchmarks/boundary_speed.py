"""`python -m benchmarks.boundary_speed`: the training loop's steps per second against a plain loop.

The plain loop is the direct transcription: one seed at a time, every task's M drawn in full, all
tokens updated though only the query is read, four products per head, unfused Adam.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from benchmarks.command import run_app
from raggd.cli.shared import Json, progress_bar, show
from raggd.files import write_json
from raggd.linear.attention import random_attention
from raggd.linear.figure import interval, rounded
from raggd.linear.objective import Interface
from raggd.linear.synthetic import synthetic_cell, task_spec
from raggd.linear.tasks import TaskSpec, document_map, sample
from raggd.linear.training import TrainSpec, attention_predictor, squared_error, train
from raggd.progress import Progress
from raggd.provenance import origin


class PlainLayer(nn.Module):
    """One layer as the formula reads, for one seed."""

    def __init__(self, width: int) -> None:
        """Make four square matrices of width T."""
        super().__init__()
        self.key = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """Return updated tokens (B, N + 1, T); the last, the query, is no key."""
        context = tokens[:, :-1]
        keys, values = self.key(context), self.value(context)
        if rows is not None:
            keys, values = torch.cat([keys, rows], 1), torch.cat([values, rows], 1)
        scores = self.query(tokens) @ keys.mT
        moved: Tensor = tokens + self.project(scores @ values)
        return moved


def plain_batch(spec: TaskSpec, batch: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """Draw tasks of one seed by the definitions.

    Returns:
        Tokens (B, N + 1, T), rows for keys and values or None, labels (B,).
    """
    x = torch.rand(batch, spec.examples + 1, spec.features) * 2 - 1
    w1 = torch.randn(batch, 1, spec.features)
    rows = None
    if spec.interface == Interface.projection:
        z = torch.rand(batch, spec.examples + 1, spec.second_size) * 2 - 1
        w2 = torch.randn(batch, 1, spec.second_size)
        y = x @ w1.mT + z @ w2.mT
    else:
        z = x
        documents = torch.rand(batch, spec.documents, spec.features) - 0.5
        mixing = spec.sigma * torch.randn(batch, spec.features, spec.features)
        w_z = spec.sigma * torch.randn(batch, 1, spec.features)
        w2 = w_z @ (documents.mT @ documents) @ mixing.mT
        y = x @ (w1 + w2).mT
        h = documents @ document_map(spec).mT
        rows = torch.cat([h, h, torch.zeros(batch, spec.documents, 1)], -1)
    shown = y.clone()
    shown[:, -1] = 0
    return torch.cat([x, z, shown], -1), rows, y[:, -1, 0]


def plain_loop(spec: TaskSpec, steps: int, batch: int, rate: float, seeds: int) -> None:
    """Train one layer per seed, one after the other."""
    for _ in range(seeds):
        layer = PlainLayer(spec.width)
        optimizer = torch.optim.Adam(layer.parameters(), lr=rate, foreach=False)
        for _ in range(steps):
            tokens, rows, labels = plain_batch(spec, batch)
            loss = (-layer(tokens, rows)[:, -1, -1] - labels).square().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
            optimizer.step()


def batched_loop(spec: TaskSpec, steps: int, batch: int, rate: float, seeds: int) -> None:
    """Train all seeds at once, as the figures do."""
    generator = torch.Generator().manual_seed(0)
    net = random_attention(generator, replicas=seeds, width=spec.width)
    train(
        squared_error(attention_predictor(net)),
        net.parameters(),
        lambda: sample(spec, seeds, batch, generator),
        TrainSpec(steps, rate),
    )


def measure_speed(steps: int, rounds: int, seeds: int, progress: Progress) -> dict[str, Any]:
    """Time both loops in turn on figure 1's settings, in pairs of `steps` with `seeds` each.

    Returns:
        By interface: steps per second of one seed (a step of R seeds counts R) for both loops,
        their ratio with its 95 % interval, and the seconds that figure 1 in full would take.
    """
    loops: dict[str, Callable[..., None]] = {"batched": batched_loop, "plain": plain_loop}
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "seeds": seeds}
    for interface in Interface:
        cell = synthetic_cell(interface, 5)
        spec = task_spec(cell)
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(rounds + 1):
            progress(f"speed, {interface}", turn, rounds + 1)
            for name, loop in loops.items():
                start = time.perf_counter()
                loop(spec, steps, cell["batch"], cell["learning_rate"], seeds)
                rates[name].append(seeds * steps / (time.perf_counter() - start))
        kept = {name: values[1:] for name, values in rates.items()}  # the first turn warms up
        ratios = [a / b for a, b in zip(kept["batched"], kept["plain"], strict=True)]
        best = median(kept["batched"])
        found[str(interface)] = {
            "batched_steps_per_second": round(best, 1),
            "plain_steps_per_second": round(median(kept["plain"]), 1),
            "ratio": rounded(interval(ratios), 4),
            "seconds_for_figure_1": round(seeds * cell["steps"] / best, 1),
        }
    return found


app = typer.Typer(add_completion=False)


@app.command()
def speed(
    out: Annotated[Path, typer.Option(help="Folder of speed.json.")] = Path("results/linear"),
    steps: Annotated[int, typer.Option(min=1, help="Steps per measurement.")] = 200,
    rounds: Annotated[int, typer.Option(min=2, help="Pairs of measurements.")] = 5,
    as_json: Json = False,
) -> None:
    """Steps per second of the figures' training loop against a plain loop, in one run."""
    with progress_bar() as bar:
        summary = measure_speed(steps, rounds, 3, bar)
    settings = {"steps": steps, "rounds": rounds, "cores": os.cpu_count()}
    record = {"summary": summary, **settings, **origin()}
    write_json(out / "speed.json", record)
    lines = []
    for interface in Interface:
        found = summary[str(interface)]
        mean, low, high = found["ratio"]
        lines.append(
            f"{interface}: {found['batched_steps_per_second']} steps/s, plain loop "
            f"{found['plain_steps_per_second']}; ratio {mean:.1f} ({low:.1f} to {high:.1f})"
        )
    show(record, as_json, *lines)


if __name__ == "__main__":
    run_app(app)
