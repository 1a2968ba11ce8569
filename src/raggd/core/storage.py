"""Updates in and out of safetensors files."""

from __future__ import annotations

from pathlib import Path

from raggd.core.low_rank import AdapterSpec, Update, check_shapes, factors_of, tensors_of
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError

KIND = "raggd update"


def save_update(path: Path, update: Update) -> None:
    """Write an update; its shape and the base adapter that it starts from stand in the header.

    Args:
        path: the file.
        update: a single one or a batch.
    """
    metadata = {"kind": KIND, "spec": update.spec.to_json(), "base": update.base}
    save_tensors(path, tensors_of(update.factors), metadata)


def load_update(path: Path | str) -> Update:
    """Read an update.

    Args:
        path: what `save_update` wrote.

    Returns:
        The update, on the CPU. That it belongs to a base adapter is checked where it is used.

    Raises:
        RaggdError: the file is not an update, or is damaged.
    """
    tensors, metadata = load_tensors(Path(path))
    if metadata.get("kind") != KIND:
        raise RaggdError(f"{path} is not a raggd update: `update.save(file)` in Python writes one.")
    spec = AdapterSpec.from_json(metadata["spec"])
    check_shapes(spec, tensors, str(path))
    return Update(spec, factors_of(tensors), metadata["base"])
