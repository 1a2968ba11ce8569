"""A step in few kernels gives what the library's own model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from raggd.backbone.fused import ATTENTION, attend, fused, plain_norms
from raggd.backbone.interface import Attached, Codes
from raggd.core.low_rank import PROJECTIONS, Factors
from tiny import make_backbone, make_sliding_backbone


def seen(rows: int, heads: int, kept: int, asked: int = 1) -> dict[str, torch.Tensor]:
    """Query, keys, values and a mask that shuts out some columns."""
    draw = torch.Generator().manual_seed(3)
    shapes = {"query": (rows, heads, asked, 8), "key": (rows, kept, 21, 8)}
    made = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    made["value"] = torch.randn(shapes["key"], generator=draw)
    mask = torch.zeros(rows, 1, asked, 21)
    mask[:, :, :, :4] = torch.finfo(mask.dtype).min
    return made | {"attention_mask": mask}


@pytest.mark.parametrize(("rows", "heads", "kept"), [(1, 4, 4), (3, 6, 2), (2, 8, 1)])
def test_one_query_attends_as_the_library_does(rows: int, heads: int, kept: int) -> None:
    shown = seen(rows, heads, kept)
    found, _ = attend(None, **shown, scaling=0.3)
    keys, values = (shown[n].repeat_interleave(heads // kept, 1) for n in ("key", "value"))
    wanted = functional.scaled_dot_product_attention(
        shown["query"], keys, values, attn_mask=shown["attention_mask"], scale=0.3
    )
    assert torch.allclose(found, wanted.transpose(1, 2), atol=1e-5)
    opened = functional.scaled_dot_product_attention(shown["query"], keys, values, scale=0.3)
    assert not torch.allclose(found, opened.transpose(1, 2), atol=1e-2)  # the mask is seen


def test_several_queries_attend_by_the_library() -> None:
    module: Any = nn.Module()
    module.num_key_value_groups = 2
    shown = seen(2, 4, 2, asked=3)
    found, _ = attend(module, **shown, scaling=0.3)
    one, _ = attend(module, **seen(2, 4, 2), scaling=0.3)
    assert found.shape == (2, 3, 4, 8)
    assert one.shape == (2, 1, 4, 8)


def test_norms_of_another_kind_stay_as_they_are() -> None:
    llama, gemma = make_backbone().model, make_sliding_backbone(6).model
    assert len(plain_norms(llama)) == 2 * llama.config.num_hidden_layers + 1
    with torch.no_grad():
        for module in gemma.modules():
            if type(module).__name__ == "Gemma3RMSNorm":
                module.weight.fill_(0.5)  # it multiplies by one more
    assert not any(type(module).__name__ == "Gemma3RMSNorm" for module in plain_norms(gemma))


def test_a_model_is_left_as_it_was() -> None:
    model = make_backbone().model
    norms = plain_norms(model)
    before = model.config._attn_implementation
    with fused(model, norms):
        assert model.config._attn_implementation == ATTENTION
        assert all("forward" in vars(norm) for norm in norms)
    assert model.config._attn_implementation == before
    assert not any("forward" in vars(norm) for norm in norms)


def test_codes_of_one_product_are_those_of_three() -> None:
    draw = torch.Generator().manual_seed(5)
    bases = [
        Factors(torch.randn(4, 12, generator=draw), torch.randn(size, 4, generator=draw))
        for size in (10, 6, 6)
    ]
    codes = Codes(torch.cat([base.a for base in bases]))
    apart = [Attached(base, None, 0.7, 1, place) for place, base in enumerate(bases)]
    shared = [Attached(base, None, 0.7, 1, place, codes) for place, base in enumerate(bases)]
    none = nn.Identity()
    with torch.no_grad():
        for rows in (1, 3):  # what was made for one input is not taken for another
            h = torch.randn(rows, 5, 12, generator=draw)
            for base, one, other in zip(bases, apart, shared, strict=True):
                plain = torch.randn(rows, 5, len(base.b), generator=draw)
                found = other(none, (h,), plain.clone())
                assert torch.allclose(found, one(none, (h,), plain.clone()), atol=1e-5)
                assert not torch.allclose(found, plain)
    assert len(apart) == len(PROJECTIONS)
    assert codes._seen is None  # nothing is kept of a pass
