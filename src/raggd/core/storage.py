"""Updates out of safetensors files; `Update.save` writes them."""

from __future__ import annotations

from pathlib import Path

from raggd.core.low_rank import UPDATE_KIND, AdapterSpec, Update, check_shapes, factors_of
from raggd.files import load_tensors
from raggd.records import RaggdError


def load_update(path: Path | str) -> Update:
    """Read an update.

    Args:
        path: what `Update.save` wrote.

    Returns:
        The update, on the CPU. That it belongs to a base adapter is checked where it is used.

    Raises:
        RaggdError: the file is not an update, or is damaged.
    """
    tensors, metadata = load_tensors(Path(path))
    if metadata.get("kind") != UPDATE_KIND:
        raise RaggdError(f"{path} is not a raggd update: `update.save(file)` in Python writes one.")
    spec = AdapterSpec.from_json(metadata["spec"])
    check_shapes(spec, tensors, str(path))
    return Update(spec, factors_of(tensors), metadata["base"])
