"""Whether to refuse, read from a middle layer instead of from what the model would write.

Asked whether its passages hold an answer, a small model's words know little of it; the state of the
prompt's last token in a middle layer knows more. A linear probe of it decides the first token: the
refusal's, or any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raggd.backbone.load import Backbone
from raggd.files import load_tensors, save_tensors
from raggd.records import RaggdError, content_id

KIND = "raggd refusal probe"
SURE = 10.0
"""How far the logit of a refusal's first token is put above all others."""


@dataclass(frozen=True, slots=True, eq=False)
class RefusalProbe:
    """Refuses where ``weight . state + bias`` is positive.

    Attributes:
        layer: of which the state is read, from 0.
        weight: (hidden size,), float32.
        token: that a refusal begins with.
    """

    layer: int
    weight: Tensor
    bias: float
    token: int

    @property
    def fingerprint(self) -> str:
        """Hash of all that decides."""
        numbers = self.weight.cpu().numpy().tobytes().hex()
        return content_id(str(self.layer), numbers, repr(self.bias), str(self.token))

    def scores(self, states: Tensor) -> Tensor:
        """Return the log-odds of refusing, (rows,), for states (rows, hidden size)."""
        return states.float() @ self.weight.to(states.device) + self.bias

    def save(self, path: Path, identity: str) -> None:
        """Write it with the hash of the step under which its states were read."""
        about = {"kind": KIND, "step": identity, "layer": str(self.layer)}
        about |= {"bias": repr(self.bias), "token": str(self.token)}
        save_tensors(path, {"weight": self.weight}, about)


def load_probe(path: Path, identity: str) -> RefusalProbe:
    """Read what `RefusalProbe.save` wrote.

    Raises:
        RaggdError: it is damaged, or was made for another step.
    """
    advice = "make it again with `raggd train refusals`."
    tensors, about = load_tensors(path, KIND, advice)
    if about["step"] != identity:
        raise RaggdError(
            f"{path} reads states under step {about['step']}, but the one in use is {identity}: "
            f"{advice}"
        )
    layer, bias, token = int(about["layer"]), float(about["bias"]), int(about["token"])
    return RefusalProbe(layer, tensors["weight"], bias, token)


@contextmanager
def layer_states(backbone: Backbone, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """Keep the states of the last position, (rows, hidden size), of some layers' outputs."""
    kept: dict[int, Tensor] = {}

    def keeping(layer: int) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            kept[layer] = states[:, -1].float()

        return hook

    blocks = backbone.model.base_model.layers if layers else []
    handles = [blocks[layer].register_forward_hook(keeping(layer)) for layer in layers]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def decided(
    logits: Tensor, states: Mapping[int, Tensor], probes: Sequence[RefusalProbe | None]
) -> Tensor:
    """Return the first logits (rows, vocabulary) as the rows' probes decide; others unchanged.

    `states` (rows, hidden size) are those of `layer_states`, for every layer that is probed.
    """
    logits = logits.clone()
    for row, probe in enumerate(probes):
        if probe is not None:
            refuses = bool(probe.scores(states[probe.layer][row : row + 1]) > 0)
            others = logits[row].index_fill(
                0, torch.tensor(probe.token, device=logits.device), -torch.inf
            )
            # finite either way: log-probabilities are told
            logits[row, probe.token] = others.max() + SURE if refuses else logits[row].min()
    return logits
