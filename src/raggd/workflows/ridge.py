"""`raggd train ridge`: the predictor in closed form, from stored targets, in a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from raggd.adaptation.predictors.ridge import ridge_predictor
from raggd.adaptation.predictors.store import load_predictor, mean_predictor, save_predictor
from raggd.adaptation.target_store import denoised, split_held_out
from raggd.adaptation.training import check_targets
from raggd.assembly import Assembly
from raggd.files import write_json
from raggd.methods.spec import RIDGE_FILE, weights_hash
from raggd.workflows.train import held_out_facts, training_record, training_targets


def run_train_ridge(parts: Assembly, store: Path, out: Path) -> dict[str, Any]:
    """Fit the ridge predictor to the targets that the MLP predictor is trained on.

    Args:
        parts: settings and base adapter.
        store: folder of targets.
        out: folder for ``ridge.safetensors`` and its record.

    Returns:
        The record, with the alignment on held-out support sets beside the mean update's.
    """
    started = time.monotonic()
    settings, base = parts.settings, parts.base
    targets = training_targets(store, settings.predictor.target_steps)
    check_targets(base, targets)
    kept, held = split_held_out(targets, settings.predictor.held_out_share)
    goal = denoised(kept) if settings.ridge.denoise else kept
    ridge = ridge_predictor(base.spec, base.fingerprint, kept.states, goal.vectors, settings.ridge)
    save_predictor(out / RIDGE_FILE, ridge)
    known = {
        "rag-gd-ridge": load_predictor(out / RIDGE_FILE),
        "mean-update": mean_predictor(base.spec, base.fingerprint, kept.vectors),
    }
    record = training_record(
        settings,
        time.monotonic() - started,
        base=base.fingerprint,
        targets=targets.identity,
        **held_out_facts(base, kept, held, known),
        hashes={RIDGE_FILE: weights_hash(out / RIDGE_FILE)},
    )
    write_json(out / "ridge.json", record)
    return record
