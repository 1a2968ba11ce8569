"""The probe that decides whether to refuse: lessons are read as they are answered, then fitted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.refusing import DEPTHS, LESSONS, fit_probe, refusal_lessons
from raggd.backbone.generate import read_prompts
from raggd.backbone.refusal import layer_states
from raggd.data.prepared import Prepared, prepared_id
from raggd.data.prompts import answer_tokens
from raggd.data.template import REFUSAL
from raggd.methods import spec
from raggd.methods.answering import adapted_rows, render
from raggd.methods.spec import weights_hash
from raggd.settings import changed
from raggd.training.fits import hashes_of
from raggd.training.run import Run


def refusals(run: Run) -> dict[str, Any]:
    """Return the facts of fitting the probe that decides whether to refuse."""
    rows, path = run.rows(), run.out / spec.REFUSALS_FILE
    path.unlink(missing_ok=True)  # lessons are read without one
    states, wanted = _refusal_states(run, rows)
    token = answer_tokens(run.parts.backbone.tokenizer, REFUSAL)[0]
    fitted = fit_probe(states, wanted, token)
    fitted.probe.save(path, weights_hash(run.out / spec.EXAMPLES_FILE))
    told = {name: round(getattr(fitted, name), 3) for name in ("area", "recall", "wrongly")}
    return {
        "lessons": len(wanted),
        "layer": fitted.probe.layer,
        **told,
        "data": prepared_id(rows),
        "hashes": hashes_of(run, path.name, spec.EXAMPLES_FILE),
    }


def _refusal_states(run: Run, rows: Sequence[Prepared]) -> tuple[dict[int, Tensor], Tensor]:
    # by layer (lessons, hidden size), and which are to be refused
    parts = run.parts.derived(changed(run.settings, "adapter", weights=str(run.out)))
    backbone, method = parts.backbone, parts.method("examples")
    depth = len(backbone.model.base_model.layers)
    states: dict[int, list[Tensor]] = {int(share * depth): [] for share in DEPTHS}
    wanted: list[bool] = []
    for lesson in islice(refusal_lessons(rows), LESSONS):
        adapted, asked = method.adapt([lesson.support])[0], lesson.asked
        limit = run.settings.backbone.context_tokens
        prompt = render(backbone, adapted, asked.question, asked.passages, limit=limit)
        with adapted_rows(backbone, [adapted]), layer_states(backbone, list(states)) as found:
            read_prompts(backbone, [prompt], prefixes=[adapted.prefix])
        for layer, kept in states.items():
            kept.append(found[layer][0].cpu())
        wanted.append(asked.refused)
        run.progress("refusals", len(wanted), LESSONS)
    return {layer: torch.stack(kept) for layer, kept in states.items()}, torch.tensor(wanted)
