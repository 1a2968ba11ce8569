"""The average target of each task: what its support pool has in common. A control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from raggd.adaptation.target_store import Targets
from raggd.adaptation.training import check_targets
from raggd.core.low_rank import AdapterSpec, BaseAdapter, Update, update_from_vector
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

KIND = "raggd task means"


def task_means(base: BaseAdapter, stores: Sequence[Targets]) -> dict[str, Tensor]:
    """Average the targets of each task over all stores.

    Args:
        base: W0, from which all targets must start.
        stores: targets; a task may stand in several.

    Returns:
        (spec.size,) vectors by task, float32, tasks in the order of their names.
    """
    rows: dict[str, list[Tensor]] = {}
    for store in stores:
        check_targets(base, store)
        for task, vector in zip(store.tasks, store.vectors, strict=True):
            rows.setdefault(task, []).append(vector)
    return {task: torch.stack(rows[task]).float().mean(0) for task in sorted(rows)}


def save_task_means(path: Path, base: BaseAdapter, means: Mapping[str, Tensor]) -> None:
    """Write the means in bfloat16, as the targets are; spec and base stand in the header."""
    metadata = {"kind": KIND, "spec": base.spec.to_json(), "base": base.fingerprint}
    save_tensors(path, {task: mean.bfloat16() for task, mean in means.items()}, metadata)


def load_task_means(path: Path, base: BaseAdapter) -> dict[str, Update]:
    """Read the means.

    Args:
        path: what `save_task_means` wrote.
        base: the adapter in use.

    Returns:
        The mean update of each task.

    Raises:
        RaggdError: the file holds something else, or means for another base adapter.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != KIND:
        raise RaggdError(f"{path} holds no task means: make it with `raggd train task-mean`.")
    if metadata["base"] != base.fingerprint:
        raise RaggdError(
            f"{path}: the targets behind it start from base adapter {metadata['base']}, the one in "
            f"use is {base.fingerprint}: make it again with `raggd train task-mean`."
        )
    spec = AdapterSpec.from_json(metadata["spec"])
    if any(tensor.shape != (spec.size,) for tensor in tensors.values()):
        raise RaggdError(f"{path}: its tensors do not fit its header (vectors of {spec.size}).")
    return {
        task: update_from_vector(spec, tensor.float(), base.fingerprint)
        for task, tensor in sorted(tensors.items())
    }
