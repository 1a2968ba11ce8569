"""The unified linearized RAG loss and its steps: gradient descent, GD++ and the autograd oracle.

``y = W1 x1 + W2 x2 = W x`` (paper section 3); the interfaces differ in x2 and what W2 is made of:

| interface   | x1  | x2                 | W2                                       |
|-------------|-----|--------------------|------------------------------------------|
| projection  | x_q | document feature D | W1 W_d                                   |
| dot-product | x_q | x_q                | W_z (sum_i d_i d_i^T) M^T, M = W_q^T W_d |
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
    """N examples: features (x1, x2), (..., N, d), and targets (..., N, m) or zero."""

    x: Tensor
    y: Tensor


def dot_product_weight(w_z: Tensor, documents: Tensor, mixing: Tensor) -> Tensor:
    """Return the dot-product interface's W2, (..., m, dx): ``W_z sum_i (x^T M d_i) d_i = W2 x``.

    W_z (..., m, dd) reads the mixture of documents d (..., k, dd), M (..., dx, dd) is ``W_q^T W_d``
    of two encoders, symmetric if they are one.
    """
    return w_z @ (documents.mT @ documents) @ mixing.mT


def loss(weights: Tensor, examples: Examples) -> Tensor:
    """Return the RAG loss of weights (..., m, d), ``L = 1/(2N) sum_i |W x_i - y_i|^2``, (...)."""
    residual = examples.x @ weights.mT - examples.y
    return residual.square().sum((-2, -1)) / (2 * examples.x.shape[-2])


def gradient_step(weights: Tensor, examples: Examples, eta: float) -> Tensor:
    """Return ``dW = -(eta/N) sum_i r_i x_i^T``, r_i the residual: one step in closed form."""
    residual = examples.x @ weights.mT - examples.y
    return -eta / examples.x.shape[-2] * residual.mT @ examples.x


Descent = Callable[[Tensor, Examples, float, int], Tensor]


def descend(weights: Tensor, examples: Examples, eta: float, steps: int) -> Tensor:
    """Return the weights after K closed-form steps of size eta."""
    for _ in range(steps):
        weights = weights + gradient_step(weights, examples, eta)
    return weights


def autograd_descend(weights: Tensor, examples: Examples, eta: float, steps: int) -> Tensor:
    """Return the weights after K steps whose gradients come from autograd: the oracle."""
    (after,) = inner_sgd(lambda w: loss(w[0], examples).sum(), [weights], eta, steps)
    return after


def gd_plus_plus(
    weights: Tensor,
    examples: Examples,
    queries: Tensor,
    eta: float,
    gamma: float,
    steps: int,
    descent: Descent = descend,
) -> Tensor:
    """Return the sum of GD++'s K prediction shifts, (..., n, m), at queries (..., n, d).

    A step (von Oswald et al. 2023) is ``dW = -eta grad L``, ``y_j <- y_j - dW x_j`` and, for
    context and queries alike, ``x_j <- (I - gamma H) x_j`` with the Hessian ``H = 1/N sum_i x_i
    x_i^T`` of a row of W. All start from `weights`: the steps before are taken out of y.
    """
    shift = torch.zeros(())
    for _ in range(steps):
        change = descent(weights, examples, eta, 1) - weights
        shift = shift + queries @ change.mT
        y = examples.y - examples.x @ change.mT
        # H x_j is the gradient of 1/(2N) sum_i (v x_i)^2 at v = x_j: a token's features move by
        # a step of the same loss with targets zero, as if they were a row of weights.
        x, untargeted = examples.x, Examples(examples.x, torch.zeros(()))
        examples = Examples(descent(x, untargeted, gamma, 1), y)
        queries = descent(queries, untargeted, gamma, 1)
    return shift
