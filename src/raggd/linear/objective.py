"""The unified linearized RAG loss and its steps: gradient descent, GD++ and the autograd oracle.

``y = W1 x1 + W2 x2`` (paper section 3); the two interfaces differ in x2 and in what W2 is made of:

| interface   | x1  | x2                 | W2                                     |
|-------------|-----|--------------------|----------------------------------------|
| projection  | x_q | document feature D | W1 W_d                                 |
| dot-product | x_q | x_q                | W_z (sum_i d_i d_i^T) M^T, M = W_q^T W_d |

Shapes: x1 (..., N, d1), x2 (..., N, d2), y (..., N, m), W1 (..., m, d1), W2 (..., m, d2); queries
have n rows in place of N.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from raggd.core.inner_sgd import inner_sgd


class Interface(StrEnum):
    """How documents enter."""

    projection = "projection"
    """Document features stand beside the query in the token."""
    dot_product = "dot-product"
    """The query attends to the documents."""


class Examples(NamedTuple):
    """N examples: query-side features, retrieval-derived features, targets."""

    x1: Tensor
    x2: Tensor
    y: Tensor


class Weights(NamedTuple):
    """The two weight matrices of the predictor."""

    w1: Tensor
    w2: Tensor


def projection_weight(w1: Tensor, w_d: Tensor) -> Tensor:
    """Return the projection interface's ``W2 = W1 W_d``; W_d (..., d1, d2) maps documents to x."""
    return w1 @ w_d


def dot_product_weight(w_z: Tensor, documents: Tensor, mixing: Tensor) -> Tensor:
    """Return the dot-product interface's W2, (..., m, dx): attention over documents in one matrix.

    ``W_z sum_i (x^T M d_i) d_i = (W_z D M^T) x`` with the document moment ``D = sum_i d_i d_i^T``:
    W_z (..., m, dd) reads the mixture of documents (..., k, dd), M (..., dx, dd) is ``W_q^T W_d``
    of two encoders, symmetric if they are one.
    """
    return w_z @ (documents.mT @ documents) @ mixing.mT


def tokens(examples: Examples) -> Tensor:
    """Return the tokens ``(x1, x2, y)``, (..., N, d1 + d2 + m)."""
    return torch.cat(list(examples), -1)


def query_tokens(x1: Tensor, x2: Tensor, outputs: int) -> Tensor:
    """Return the queries' tokens, (..., n, d1 + d2 + m): the m numbers of the y slot are zero."""
    return torch.cat([x1, x2, x1.new_zeros(*x1.shape[:-1], outputs)], -1)


def predict(weights: Weights, x1: Tensor, x2: Tensor) -> Tensor:
    """Return ``W1 x1 + W2 x2``, (..., n, m)."""
    return x1 @ weights.w1.mT + x2 @ weights.w2.mT


def loss(weights: Weights, examples: Examples) -> Tensor:
    """Return ``L = 1/(2N) sum_i |W1 x1_i + W2 x2_i - y_i|^2``, (...) (paper section 3)."""
    residual = predict(weights, examples.x1, examples.x2) - examples.y
    return residual.square().sum((-2, -1)) / (2 * examples.y.shape[-2])


def gradient_step(weights: Weights, examples: Examples, eta: float) -> Weights:
    """Return ``dW_k = -(eta/N) sum_i r_i x_ki^T``, r_i the residual: one step in closed form."""
    residual = predict(weights, examples.x1, examples.x2) - examples.y
    scale = -eta / examples.y.shape[-2]
    return Weights(scale * residual.mT @ examples.x1, scale * residual.mT @ examples.x2)


def descend(weights: Weights, examples: Examples, eta: float, steps: int) -> Weights:
    """Return the weights after K closed-form steps of size eta."""
    for _ in range(steps):
        change = gradient_step(weights, examples, eta)
        weights = Weights(weights.w1 + change.w1, weights.w2 + change.w2)
    return weights


def autograd_descend(weights: Weights, examples: Examples, eta: float, steps: int) -> Weights:
    """Return the weights after K steps whose gradients come from autograd: the oracle."""
    after, _ = inner_sgd(
        lambda w: loss(Weights(w[0], w[1]), examples).sum(), list(weights), eta, steps
    )
    return Weights(after[0], after[1])


def _moved_data(
    examples: Examples, change: Weights, x: Tensor
) -> tuple[Examples, tuple[Tensor, Tensor]]:
    """Return the data a step leaves: its prediction out of y, features x (context first) in."""
    y = examples.y - predict(change, examples.x1, examples.x2)
    count, d1 = examples.y.shape[-2], examples.x1.shape[-1]
    context, asked = x[..., :count, :], x[..., count:, :]
    moved = Examples(context[..., :d1], context[..., d1:], y)
    return moved, (asked[..., :d1], asked[..., d1:])


def _features(examples: Examples, queries: tuple[Tensor, Tensor]) -> Tensor:
    """Return all features, context first, (..., N + n, d1 + d2)."""
    return torch.cat([torch.cat([examples.x1, examples.x2], -1), torch.cat(queries, -1)], -2)


def gd_plus_plus(
    weights: Weights,
    examples: Examples,
    queries: tuple[Tensor, Tensor],
    eta: float,
    gamma: float,
    steps: int,
) -> Tensor:
    """GD++ (von Oswald et al. 2023): every step also moves the features along the curvature.

    A step is ``dW = -eta grad L``, ``y_j <- y_j - dW x_j`` and, for context and queries alike,
    ``x_j <- (I - gamma H) x_j`` with the Hessian ``H = 1/N sum_i x_i x_i^T`` of a row of W. Every
    step starts from `weights`, those before it are taken out of y. gamma = 0 is gradient descent.

    Returns:
        The sum of the K prediction shifts at the queries (x1, x2), (..., n, m).
    """
    shift = torch.zeros(())
    for _ in range(steps):
        change = gradient_step(weights, examples, eta)
        shift = shift + predict(change, *queries)
        x = _features(examples, queries)
        context = x[..., : examples.y.shape[-2], :]
        hessian = context.mT @ context / examples.y.shape[-2]
        examples, queries = _moved_data(examples, change, x - gamma * x @ hessian)
    return shift


def autograd_gd_plus_plus(
    weights: Weights,
    examples: Examples,
    queries: tuple[Tensor, Tensor],
    eta: float,
    gamma: float,
    steps: int,
) -> Tensor:
    """Return the same with both gradients from autograd: the oracle of `gd_plus_plus`.

    ``H x_j`` is the gradient of ``1/(2N) sum_i (v x_i)^2`` at ``v = x_j``: a token's features move
    by a gradient step of the same loss, with targets zero.
    """
    shift = torch.zeros(())
    for _ in range(steps):
        after = autograd_descend(weights, examples, eta, 1)
        change = Weights(after.w1 - weights.w1, after.w2 - weights.w2)
        shift = shift + predict(change, *queries)
        x = _features(examples, queries)
        d1, rows = examples.x1.shape[-1], x.shape[-2]
        targets = examples.y.new_zeros(*examples.y.shape[:-1], rows)
        rows_as_weights = Weights(x[..., :d1], x[..., d1:])
        moved = autograd_descend(rows_as_weights, examples._replace(y=targets), gamma, 1)
        examples, queries = _moved_data(examples, change, torch.cat(list(moved), -1))
    return shift
