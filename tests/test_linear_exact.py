"""Lemma 1 and GD++ in float64: constructions, closed forms, oracles, and what must differ."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from raggd.cli import app
from raggd.linear import verify
from raggd.linear.attention import constructed, head_shift, random_attention
from raggd.linear.objective import (
    Examples,
    Interface,
    autograd_descend,
    descend,
    dot_product_weight,
    gd_plus_plus,
    gradient_step,
    loss,
)
from raggd.linear.verify import DEPARTURES, MUST_DIFFER, TOLERANCE, Case, measure, problem

CASES = st.builds(
    Case,
    interface=st.sampled_from(Interface),
    shared_encoder=st.booleans(),
    zero_start=st.booleans(),
    steps=st.integers(1, 10),
    examples=st.integers(1, 24),
    features=st.integers(1, 12),
    outputs=st.integers(1, 5),
    documents=st.integers(1, 8),
    document_size=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)


def cancels(case: Case) -> bool:
    """Whether gradients of examples nearly cancel: rounding is relative to them, not the sum."""
    given_ = problem(case)
    x, y = given_.examples
    residual = (x @ given_.weights.mT - y).abs()
    terms = given_.eta / len(y) * given_.queries.abs() @ (residual.mT @ x.abs()).mT
    return bool(given_.reference(descend).abs().max() < 2e-3 * terms.max())


@settings(max_examples=500, deadline=None)
@given(case=CASES)
def test_construction_equals_both_references(case: Case) -> None:
    assume(not cancels(case))
    closed, oracle = measure(case)
    assert closed <= TOLERANCE
    assert oracle <= TOLERANCE


@settings(max_examples=500, deadline=None)
@given(case=CASES, curvature=st.floats(0.05, 0.5))
def test_gd_plus_plus_layer_equals_both_references(case: Case, curvature: float) -> None:
    case = replace(case, curvature=curvature)
    assume(not cancels(case))
    closed, oracle = measure(case)
    assert closed <= TOLERANCE
    assert oracle <= TOLERANCE


@settings(max_examples=25, deadline=None)
@given(case=CASES)
def test_gd_plus_plus_is_descent_without_gamma_and_differs_with_it(case: Case) -> None:
    given_ = problem(replace(case, steps=max(2, case.steps), curvature=0.3))
    plain = replace(given_, gamma=0.0).reference(descend)
    asked, steps = (given_.weights, given_.examples, given_.queries, given_.eta), given_.steps
    still, moved = (gd_plus_plus(*asked, gamma, steps) for gamma in (0.0, given_.gamma))
    assert verify.relative(still, plain) <= TOLERANCE
    assert verify.relative(moved, plain) > 1e-4


def test_gd_plus_plus_head_has_one_more_block_and_moves_features_along_the_curvature() -> None:
    given_ = problem(Case(seed=5))
    weights = given_.weights[None]
    eta, gamma = torch.tensor([[0.1], [0.2]], dtype=torch.float64)
    plain = constructed(weights, eta, 4).head()
    head = constructed(weights, eta, 4, gamma=gamma).head()
    width, outputs = head.value.shape[-1], given_.examples.y.shape[-1]
    block = (head.value - plain.value)[0]
    assert torch.equal(block, torch.diag(torch.arange(width) < width - outputs).to(block.dtype))
    tokens = torch.cat(list(given_.examples), -1)[None, None]
    moved = head_shift(head, tokens, tokens)[0, 0, :, :-outputs]
    x = tokens[0, 0, :, :-outputs]
    torch.testing.assert_close(moved, -0.2 * x @ (x.mT @ x / 4), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(case=CASES)
def test_flipped_sign_fails(case: Case) -> None:
    """The meta-test: a wrong construction has to be told from a right one."""
    given_ = problem(case)
    wrong, right = replace(given_, eta=-given_.eta).shift(), given_.reference(autograd_descend)
    assert verify.relative(wrong, right) > MUST_DIFFER


@pytest.mark.parametrize("label", DEPARTURES)
def test_departures_differ(label: str) -> None:
    line = verify.departure_line(label)
    assert line.holds
    assert line.autograd > MUST_DIFFER
    assert line.closed_form > MUST_DIFFER


def finite_difference_gradient(weights: torch.Tensor, examples: Examples) -> torch.Tensor:
    """Gradient of the weights' entries by central differences of the loss."""
    gradient = torch.empty(weights.numel(), dtype=weights.dtype)
    for index in range(len(gradient)):
        values = []
        for step in (1e-5, -1e-5):
            moved = weights.flatten().clone()
            moved[index] += step
            values.append(loss(moved.view_as(weights), examples))
        gradient[index] = (values[0] - values[1]) / 2e-5
    return gradient.view_as(weights)


@settings(max_examples=20, deadline=None)
@given(case=CASES)
def test_oracle_agrees_with_finite_differences(case: Case) -> None:
    given_ = problem(replace(case, features=min(case.features, 4), documents=2))
    after = autograd_descend(given_.weights, given_.examples, 1.0, 1)
    found = given_.weights - after  # eta 1: the gradient
    expected = finite_difference_gradient(given_.weights, given_.examples)
    assert (found - expected).abs().max() <= 1e-7 * max(1.0, float(expected.abs().max()))
    closed = gradient_step(given_.weights, given_.examples, -1.0)
    torch.testing.assert_close(closed, found, rtol=1e-10, atol=1e-12)


def test_finite_differences_notice_a_wrong_gradient() -> None:
    given_ = problem(Case())
    wrong = gradient_step(given_.weights, given_.examples, -1.0)
    wrong[:, given_.weights.shape[1] // 2 :] *= 1.01
    expected = finite_difference_gradient(given_.weights, given_.examples)
    assert (wrong - expected).abs().max() > 1e-4


@pytest.mark.parametrize("shared", [True, False])
def test_document_attention_folds_into_w2(shared: bool) -> None:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    dx, dd = 4, 4 if shared else 3
    w_q = normal(5, dx)
    w_d = w_q if shared else normal(5, dd)
    documents, w_z, x = normal(6, dd), normal(2, dd), normal(7, dx)
    w2 = dot_product_weight(w_z, documents, w_q.mT @ w_d)

    def attended(documents: torch.Tensor) -> torch.Tensor:
        scores = (x @ w_q.mT) @ (documents @ w_d.mT).mT
        return scores @ documents @ w_z.mT

    torch.testing.assert_close(x @ w2.mT, attended(documents))
    assert (x @ w2.mT - attended(documents[:-1])).abs().max() > 1e-3


def test_only_the_y_slot_changes() -> None:
    given_ = problem(Case(seed=5))
    weights = given_.weights[None]
    eta = torch.tensor([0.1], dtype=torch.float64)
    head = constructed(weights, eta, 4).head()
    tokens = torch.cat(list(given_.examples), -1)[None, None]
    moved = head_shift(head, tokens, tokens)[0, 0]
    outputs = given_.examples.y.shape[-1]
    assert not moved[:, :-outputs].any()
    assert moved[:, -outputs:].abs().min() > 0


def test_a_step_lowers_the_loss() -> None:
    given_ = problem(Case(seed=9))
    after = descend(given_.weights, given_.examples, given_.eta / 10, 1)
    assert loss(after, given_.examples) < loss(given_.weights, given_.examples)


def test_one_layer_is_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    network = random_attention(generator, replicas=2, width=5, scale=0.4)
    tokens = torch.randn(2, 4, 7, 5, generator=generator)
    query = torch.randn(2, 4, 1, 5, generator=generator)
    head = network.head()  # e_q + P V K^T q
    keys, values = tokens @ head.key.mT[:, None], tokens @ head.value.mT[:, None]
    scores = (query @ head.query.mT[:, None]) @ keys.mT
    expected = query + scores @ values @ head.project.mT[:, None]
    torch.testing.assert_close(network(tokens, query), -expected[..., -1:], rtol=1e-4, atol=1e-5)
    start = random_attention(generator, replicas=2, width=5, symmetric=True).head()
    assert torch.equal(start.query, start.key)
    assert not torch.equal(start.value, start.key)


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("shown", [True, False])
def test_form_equals_the_query_passed_through_the_layers(
    layers: int, rows: int, shown: bool
) -> None:
    generator = torch.Generator().manual_seed(layers)
    draw = {"generator": generator, "dtype": torch.float64}
    network = random_attention(generator, replicas=2, width=5, layers=layers, scale=0.3).double()
    offset = torch.randn(2, 5, **draw) if shown else torch.zeros(2, 5)
    network.offset = offset if shown else None
    tokens, query = torch.randn(2, 3, 6, 5, **draw), torch.randn(2, 3, 2, 5, **draw)
    documents = torch.randn(2, 3, rows, 5, **draw) if rows else None

    def passed(context: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        for _ in range(layers):
            source = context + offset[:, None, None]
            shifts = [
                head_shift(network.head(), part, source, documents) for part in (context, asked)
            ]
            context, asked = context + shifts[0], asked + shifts[1]
        return -asked[..., -1:]

    whole = network(tokens, query, documents)
    torch.testing.assert_close(whole, passed(tokens, query), rtol=1e-9, atol=1e-11)
    network.target_only = True
    only = network(tokens, query, documents)
    torch.testing.assert_close(only, passed(tokens, query), rtol=1e-9, atol=1e-11)
    if layers > 1:
        assert (whole - only).abs().max() > 1e-6


def test_command_says_yes_and_gives_json(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = CliRunner()
    shown = runner.invoke(app, ["verify"])
    assert shown.exit_code == 0
    assert shown.stdout.strip().endswith("yes")
    found = json.loads(runner.invoke(app, ["verify", "--json"]).stdout)
    assert set(found) == {"cases", "max_relative_error", "min_must_differ", "holds"}
    assert found["holds"] is True
    assert found["cases"] >= 100
    assert found["max_relative_error"] <= 1e-12 < 1e-2 < found["min_must_differ"]
    monkeypatch.setattr(verify, "TOLERANCE", 1e-20)
    failing = runner.invoke(app, ["verify"])
    assert failing.exit_code == 1
    assert failing.stdout.strip().endswith("no")
