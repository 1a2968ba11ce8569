"""`python -m benchmarks.claims`: how much the names that passages hold tell of a claim.

Claims are questions of training with a right or a wrong answer beside them, under contracts that
training may see. `data/closed.py` has the line that is fitted here.
"""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.command import run_app
from raggd.adaptation.following import drawn_pool, pools_of
from raggd.adaptation.refusing import area_under, logistic
from raggd.cli.shared import emit_json
from raggd.data.closed import names_held
from raggd.data.contracts.base import draw_lesson
from raggd.data.contracts.families import draw_contract
from raggd.data.questions import prepared_id, read_prepared
from raggd.data.reading import template_of
from raggd.files import write_json
from raggd.provenance import origin

CLAIMS = 2000
GROUPS = (0.0, 0.25, 0.5, 0.75, 0.99, 1.0)  # shares that claims are counted by, up to each
app = typer.Typer(add_completion=False)


def claims_of(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of each claim with names the share that is held, (n,), and whether it is right."""
    pools, draw = pools_of(read_prepared(path)), random.Random("claims")
    shares: list[float] = []
    right: list[bool] = []
    for number in count():
        contract = draw_contract(number)
        if contract.target != "claim":
            continue
        lesson = draw_lesson(contract, drawn_pool(pools, draw), draw)
        template = template_of(lesson.support.demonstrations)[0] if lesson else None
        if lesson is None or template is None or template.closed is None:
            continue
        asked, frame = lesson.asked, template.closed.frame
        share = names_held(asked.question, asked.passages, frame)
        if share is not None:
            shares.append(share)
            right.append(asked.contents == contract.labels[:1])
        if len(shares) == CLAIMS:
            return torch.tensor(shares, dtype=torch.float64), torch.tensor(right)
    raise AssertionError


@app.command()
def main(
    prepared: Annotated[Path, typer.Option(help="Questions that `raggd data prepare` made.")],
    out: Annotated[Path, typer.Option(help="Record.")] = Path("runs/claims.json"),
) -> None:
    """Fit the log-odds that a claim is right to the share of its names that its passages hold."""
    shares, right = claims_of(prepared)
    features = torch.stack([shares, (shares == 1).double()], 1)
    weights, bias = logistic(features, right, penalty=0.0)
    record: dict[str, Any] = {
        "claims": len(shares),
        "slope": round(float(weights[0]), 2),
        "whole": round(float(weights[1]), 2),
        "bias": round(bias, 2),
        "area": round(area_under(shares, right), 3),
        "right_by_share": {
            f"{low} to {high}": [round(float(right[inside].double().mean()), 3), int(inside.sum())]
            for low, high in zip((-1.0, *GROUPS), GROUPS, strict=False)
            if (inside := (shares > low) & (shares <= high)).any()
        },
        "data": prepared_id(read_prepared(prepared)),
        **origin(),
    }
    write_json(out, record)
    emit_json(record)


if __name__ == "__main__":
    run_app(app)
