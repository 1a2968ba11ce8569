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

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from raggd.core.inner_sgd import inner_sgd


class Interface(StrEnum):
    """How documents enter."""

    projection = "projection"  # document features stand beside the query in the token
    dot_product = "dot-product"  # the query attends to the documents


class Examples(NamedTuple):
    """N examples: query-side features, retrieval-derived features, targets."""

    x1: Tensor
    x2: Tensor
    y: Tensor


class Weights(NamedTuple):
    """The two weight matrices of the predictor."""

    w1: Tensor
    w2: Tensor

    def minus(self, other: Weights) -> Weights:
        """Return the change from `other` to these."""
        return Weights(self.w1 - other.w1, self.w2 - other.w2)


def dot_product_weight(w_z: Tensor, documents: Tensor, mixing: Tensor) -> Tensor:
    """Return the dot-product interface's W2, (..., m, dx): attention over documents in one matrix.

    ``W_z sum_i (x^T M d_i) d_i = (W_z D M^T) x`` with the document moment ``D = sum_i d_i d_i^T``:
    W_z (..., m, dd) reads the mixture of documents (..., k, dd), M (..., dx, dd) is ``W_q^T W_d``
    of two encoders, symmetric if they are one.
    """
    return w_z @ (documents.mT @ documents) @ mixing.mT


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


Descent = Callable[[Weights, Examples, float, int], Weights]


def gd_plus_plus(
    weights: Weights,
    examples: Examples,
    queries: tuple[Tensor, Tensor],
    eta: float,
    gamma: float,
    steps: int,
    descent: Descent = descend,
) -> Tensor:
    """Return the sum of GD++'s K prediction shifts at the queries (x1, x2), (..., n, m).

    A step (von Oswald et al. 2023) is ``dW = -eta grad L``, ``y_j <- y_j - dW x_j`` and, for
    context and queries alike, ``x_j <- (I - gamma H) x_j`` with the Hessian ``H = 1/N sum_i x_i
    x_i^T`` of a row of W. It always starts from `weights`, the steps before it are taken out of y.
    Without gamma it is gradient descent; with `autograd_descend` for `descent` it is the oracle.
    """
    shift = torch.zeros(())
    count = examples.y.shape[-2]
    for _ in range(steps):
        change = descent(weights, examples, eta, 1).minus(weights)
        shift = shift + predict(change, *queries)
        y = examples.y - predict(change, examples.x1, examples.x2)
        # H x_j is the gradient of 1/(2N) sum_i (v x_i)^2 at v = x_j: a token's features move by
        # a step of the same loss with targets zero, as if they were a row of weights.
        x = Weights(*(torch.cat(pair, -2) for pair in zip(examples[:2], queries, strict=True)))
        nothing = y.new_zeros(*y.shape[:-1], x.w1.shape[-2])
        x1, x2 = descent(x, examples._replace(y=nothing), gamma, 1)
        examples = Examples(x1[..., :count, :], x2[..., :count, :], y)
        queries = (x1[..., count:, :], x2[..., count:, :])
    return shift
