"""Where the identity reaches into the LLM half: the first SGD step of a fresh LoRA.

For a LoRA whose B is zero the step is an outer product, read out as linear attention with the keys
``A h_t``: A gets no gradient, B moves by ``-lr s sum_t delta_t (A h_t)^T`` (docs/linear.md).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raggd.core.inner_sgd import inner_sgd

RATE, SCALING, TOKENS, D_IN, D_OUT, RANK = 0.3, 2.0, 7, 6, 5, 3


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def read_out(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """Linear attention: the fast weight ``sum_t values_t keys_t^T`` applied to the queries."""
    return (queries @ keys.mT) @ values


@pytest.fixture
def setting() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Frozen weight, factor A, hidden states, targets of a squared loss on the output."""
    return (
        normal(0, D_OUT, D_IN),
        normal(1, RANK, D_IN),
        normal(2, TOKENS, D_IN),
        normal(3, TOKENS, D_OUT),
    )


def after_sgd(
    setting: tuple[Tensor, Tensor, Tensor, Tensor], b: Tensor, steps: int, query: Tensor
) -> Tensor:
    """Change of the layer's output at a query, by autograd."""
    weight, a, hidden, target = setting

    def output(parts: list[Tensor], h: Tensor) -> Tensor:
        return h @ weight.mT + SCALING * h @ parts[0].mT @ parts[1].mT

    new = inner_sgd(
        lambda parts: (output(parts, hidden) - target).square().sum() / 2, [a, b], RATE / 50, steps
    )
    return output(new, query) - output([a, b], query)


def predicted(setting: tuple[Tensor, Tensor, Tensor, Tensor], b: Tensor, query: Tensor) -> Tensor:
    """The same as linear attention over the tokens, if B were zero."""
    weight, a, hidden, target = setting
    delta = hidden @ weight.mT + SCALING * hidden @ a.mT @ b.mT - target
    return read_out(hidden @ a.mT, -RATE / 50 * SCALING**2 * delta, query @ a.mT)


def test_first_step_of_a_fresh_lora_is_linear_attention(
    setting: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    zero, query = torch.zeros(D_OUT, RANK, dtype=torch.float64), normal(7, 4, D_IN)
    found = after_sgd(setting, zero, 1, query)
    assert found.abs().max() > 1e-2
    torch.testing.assert_close(found, predicted(setting, zero, query), rtol=1e-12, atol=1e-14)
    weight, a, hidden, target = setting
    keys, delta = hidden @ a.mT, hidden @ weight.mT - target
    moved = -RATE / 50 * SCALING * delta.mT @ keys  # dB; A stays
    torch.testing.assert_close(SCALING * query @ a.mT @ moved.mT, found, rtol=1e-12, atol=1e-14)


def test_a_trained_base_and_a_second_step_are_outside(
    setting: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    query, trained = normal(7, 4, D_IN), normal(8, D_OUT, RANK)
    zero = torch.zeros_like(trained)
    base = after_sgd(setting, trained, 1, query)
    assert (base - predicted(setting, trained, query)).norm() / base.norm() > 1e-2
    twice = after_sgd(setting, zero, 2, query)
    assert (twice - 2 * predicted(setting, zero, query)).norm() / twice.norm() > 1e-2
