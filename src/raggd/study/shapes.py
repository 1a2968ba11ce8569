"""The shape of a backbone without its weights: from its configuration, or from a short list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from raggd.backbone.embedded import EMBEDDED, embedded_folder
from raggd.backbone.shapes import PUBLISHED, shape_config
from raggd.records import RaggdError


@dataclass(frozen=True, slots=True)
class Sizes:
    """What an estimate needs of a backbone.

    Attributes:
        parameters: weights of the matrices that every token passes, output layer apart.
        embeddings: weights of input embedding and output layer (once if they are tied).
        layers: decoder layers.
        width: heads times head size.
        kv_width: key-value heads times head size.
        hidden: width of the hidden state.
        inner: width of the feed-forward layer.
        vocabulary: rows of the output layer.
        source: where the numbers come from.
    """

    parameters: int
    embeddings: int
    layers: int
    width: int
    kv_width: int
    hidden: int
    inner: int
    vocabulary: int
    source: str


def source_of(name: str) -> str:
    """Return what transformers loads a backbone from: a folder for embedded ones, else the name."""
    return str(embedded_folder(name)) if name in EMBEDDED else name


def _config(name: str) -> tuple[Any, str]:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source_of(name)), "its configuration"
    except (OSError, ValueError, RaggdError) as error:
        if name not in PUBLISHED:
            reason = str(error).strip().splitlines()[0]
            raise RaggdError(f"no configuration of backbone '{name}': {reason}") from error
    return shape_config(PUBLISHED[name]), "the list that raggd carries"


def backbone_sizes(name: str) -> Sizes:
    """Build the model without memory and measure it.

    Args:
        name: of the backbone.

    Returns:
        Its sizes; it is refused if there is neither a configuration nor an entry in `PUBLISHED`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from raggd.evaluation.flops import model_shape

    config, source = _config(name)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    shape = model_shape(model)
    tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    tied = bool(getattr(config, "tie_word_embeddings", False)) or len(tables) == 1
    keys = next(m for path, m in model.named_modules() if path.endswith("k_proj"))
    return Sizes(
        parameters=shape.parameters,
        embeddings=shape.vocabulary * shape.hidden * (1 if tied else 2),
        layers=shape.layers,
        width=shape.width,
        kv_width=int(keys.out_features),
        hidden=shape.hidden,
        inner=int(config.intermediate_size),
        vocabulary=shape.vocabulary,
        source=source,
    )
