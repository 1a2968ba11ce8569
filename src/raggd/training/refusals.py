"""The rule that decides whether to refuse: lessons are read as they are answered, then fitted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from raggd.adaptation.refusing import LESSONS, fit_rule, refusal_lessons
from raggd.backbone.generate import read_prompts
from raggd.backbone.refusal import confidence
from raggd.data.prepared import Prepared, prepared_id
from raggd.data.prompts import answer_tokens
from raggd.data.template import REFUSAL
from raggd.methods import spec
from raggd.methods.answering import adapted_rows, render
from raggd.methods.spec import weights_hash
from raggd.retrieval.evidence import coverage
from raggd.settings import changed
from raggd.training.fits import hashes_of
from raggd.training.run import Run


def refusals(run: Run, file: str) -> dict[str, Any]:
    """Return the facts of fitting the rule that decides whether to refuse."""
    rows, path = run.rows(), run.out / file
    path.unlink(missing_ok=True)  # lessons are read without one
    token = answer_tokens(run.parts.backbone.tokenizer, REFUSAL)[0]
    features, wanted = _features(run, rows, token)
    fitted = fit_rule(features, wanted, token)
    fitted.rule.save(path, weights_hash(run.out / spec.EXAMPLES_FILE))
    told = {name: round(getattr(fitted, name), 3) for name in ("area", "recall", "wrongly")}
    return {
        "lessons": len(wanted),
        **told,
        "data": prepared_id(rows),
        "hashes": hashes_of(run, path.name, spec.EXAMPLES_FILE),
    }


def _features(run: Run, rows: Sequence[Prepared], token: int) -> tuple[Tensor, Tensor]:
    # confidence and coverage (lessons, 2), and which are to be refused
    parts = run.parts.derived(changed(run.settings, "adapter", weights=str(run.out)))
    backbone, method = parts.backbone, parts.method("examples")
    limit = run.settings.backbone.context_tokens
    features: list[tuple[float, float]] = []
    wanted: list[bool] = []
    for lesson in islice(refusal_lessons(rows), LESSONS):
        adapted, asked = method.adapt([lesson.support])[0], lesson.asked
        prompt = render(backbone, adapted, asked.question, asked.passages, limit=limit)
        with adapted_rows(backbone, [adapted]):
            reading = read_prompts(backbone, [prompt], prefixes=[adapted.prefix])
        sure = float(confidence(reading.logits, token))
        features.append((sure, coverage(prompt.question, prompt.passages)))
        wanted.append(asked.refused)
        run.progress("refusals", len(wanted), LESSONS)
    return torch.tensor(features, dtype=torch.float64), torch.tensor(wanted)
