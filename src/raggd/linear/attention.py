"""Linear self-attention, Lemma 1's and GD++'s weights, stacks of layers (paper section 3, app. B).

A layer adds ``P V K^T q_j`` to every token ``e_j = (x, y)``: scores without softmax, keys and
values from the context tokens only, the query token only receives. All tensors carry two leading
axes: R replicas (each has its own weights) and B tasks, so that thousands of tasks and several
seeds are one product. What it computes is a step on the loss of `objective.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Head(NamedTuple):
    """Weights of a head, R replicas: key, query (R, a, T), value (R, v, T), project (R, T, v)."""

    key: Tensor
    query: Tensor
    value: Tensor
    project: Tensor


def _per_replica(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x @ matrix^T`` for x (R, B, J, p), matrix (R, q, p): one product per replica."""
    moved = x.flatten(1, 2) @ matrix.mT
    return moved.reshape(*x.shape[:-1], matrix.shape[-2])


def head_shift(
    head: Head,
    receivers: Tensor,
    context: Tensor,
    documents: Tensor | None = None,
    *,
    softmax: bool = False,
) -> Tensor:
    """Return what a head adds to the tokens that ask, (R, B, J, T); (R, B, N, T) answer.

    Documents are rows appended to both keys and values, (R, B, k, T), which do not pass through W_K
    and W_V (paper section 4). A softmax is the departure that Lemma 1 does not cover.
    """
    if softmax:
        keys, values = _per_replica(context, head.key), _per_replica(context, head.value)
        if documents is not None:
            keys, values = torch.cat([keys, documents], -2), torch.cat([values, documents], -2)
        scores = _per_replica(receivers, head.query) @ keys.mT / keys.shape[-1] ** 0.5
        return _per_replica(scores.softmax(-1) @ values, head.project)
    # Two T x T products per token instead of four: K^T Q and P V are formed once per replica.
    scores = _per_replica(receivers, head.key.mT @ head.query) @ context.mT
    shift = _per_replica(scores @ context, head.project @ head.value)
    if documents is not None:  # d . Q e = Q^T d . e: the few documents move, not the many tokens
        scores = receivers @ _per_replica(documents, head.query.mT).mT
        shift = shift + scores @ _per_replica(documents, head.project)
    return shift


def _read_back(form: Tensor, head: Head, context: Tensor, documents: Tensor | None) -> Tensor:
    """Return ``form (sum_i P V e_i (K e_i)^T Q)``: what a form on a head's output is on its input.

    Forms are (R, B, m, T), or (R, 1, m, T) where they are alike in all tasks.
    """
    projected = _per_replica(form, head.project.mT)
    pooled = (_per_replica(projected, head.value.mT) @ context.mT) @ context
    back = _per_replica(pooled, head.query.mT @ head.key)
    if documents is not None:
        pooled = (projected @ documents.mT) @ documents
        back = back + _per_replica(pooled, head.query.mT)
    return back


class LinearSelfAttention(nn.Module):
    """K layers of one head that share their weights, for R replicas (paper appendix B).

    Parameters `key`, `query`, `value`, `project` have the shapes of a `Head`. The prediction is
    minus the y slot of m `outputs` (see `constructed`). Layers that are `target_only` write into
    that slot alone, as Lemma 1's do; a trained layer may also change x1 and x2. An `offset` (R, T)
    is what keys and values read beside a context token: the authors' way to show documents to the
    layer that they train (see `tasks.document_offset`).
    """

    def __init__(
        self,
        head: Head,
        *,
        layers: int = 1,
        outputs: int = 1,
        target_only: bool = False,
        softmax: bool = False,
        offset: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.key, self.query, self.value, self.project = (
            nn.Parameter(tensor.clone(), requires_grad=False) for tensor in head
        )
        self.layers, self.outputs, self.offset = layers, outputs, offset
        self.target_only, self.softmax = target_only, softmax

    def head(self) -> Head:
        """Return the weights of a layer, those that it may not write masked."""
        project: Tensor = self.project
        if self.target_only:
            slot = torch.zeros(project.shape[-2], 1, dtype=project.dtype)
            slot[-self.outputs :] = 1
            project = project * slot
        return Head(self.key, self.query, self.value, project)

    def _sources(self, head: Head, context: Tensor, documents: Tensor | None) -> list[Tensor]:
        """Return the tokens that keys and values read in every layer, each (R, B, N, T)."""
        sources: list[Tensor] = []
        for layer in range(self.layers):
            if layer > 0:
                moved = head_shift(head, context, sources[-1], documents, softmax=self.softmax)
                context = context + moved
            sources.append(context if self.offset is None else context + self.offset[:, None, None])
        return sources

    def form(self, context: Tensor, documents: Tensor | None = None) -> Tensor:
        """Return the prediction shifts as linear forms (R, B, m, T) of the query's token.

        Without a softmax every layer is linear in the token that asks, and the query is no key: a
        stack is one form a with ``y = a e_q``, found from the last layer backwards. A query then
        costs T numbers, and the loss in expectation over queries has a closed form.
        """
        head = self.head()
        form = torch.eye(context.shape[-1], dtype=context.dtype)[-self.outputs :]
        form = form.expand(len(context), 1, *form.shape)  # reads the y slot
        for source in reversed(self._sources(head, context, documents)):
            form = form + _read_back(form, head, source, documents)
        return -form

    def forward(self, context: Tensor, queries: Tensor, documents: Tensor | None = None) -> Tensor:
        """Return the shifts of the predictions, (R, B, n, m), at queries (R, B, n, T).

        The context is (R, B, N, T), its y slots filled; those of the queries are zero, and each
        sees the context only. Documents (R, B, k, T) are rows for keys and values.
        """
        if not self.softmax:
            return queries @ self.form(context, documents).mT
        head = self.head()
        for source in self._sources(head, context, documents):
            queries = queries + head_shift(head, queries, source, documents, softmax=True)
        return -queries[..., -self.outputs :]


def constructed(
    weights: Tensor, eta: Tensor, examples: int, steps: int = 1, *, gamma: Tensor | None = None
) -> LinearSelfAttention:
    """Return K layers of Lemma 1, or with gamma of GD++: a sum of K prediction shifts.

    ``W_K = W_Q = diag(I, 0)``; W_V has one non-zero block row, the y row ``(W, -I)``; Lemma 1's P
    is ``-eta / N`` on the y slot; eta is (R,), the weights W (R, m, d). That moves the y slot of a
    token as one gradient step moves its prediction. In a stack the y slot of context token j has to
    become ``y_j - dW x_j``, what the step has left over: the same head with the sign of P turned,
    the prediction read as minus the y slot, which is the same for one layer. GD++ has one more
    block in W_V, the identity of the x rows, and P is ``-gamma / N`` there
    (`objective.gd_plus_plus`).
    """
    replicas, outputs, features = weights.shape
    width, kind = features + outputs, weights.dtype
    seen = torch.zeros(width, dtype=kind)
    seen[:features] = 1
    key = torch.diag(seen).expand(replicas, width, width)
    value = torch.zeros(replicas, width, width, dtype=kind)
    identity = torch.eye(outputs, dtype=kind).expand(replicas, -1, -1)
    value[:, -outputs:] = torch.cat([weights, -identity], -1)
    scale = (1 - seen) * eta.to(kind).unsqueeze(-1)
    if gamma is not None:
        value = value + key
        scale = scale - seen * gamma.to(kind).unsqueeze(-1)
    head = Head(key, key, value, torch.diag_embed(scale / examples))
    return LinearSelfAttention(head, layers=steps, outputs=outputs)


def random_attention(
    generator: torch.Generator,
    *,
    replicas: int,
    width: int,
    scale: float = 0.1,
    symmetric: bool = False,
    **options: Any,
) -> LinearSelfAttention:
    """Return a network with normal random weights of standard deviation `scale`, to be trained.

    `symmetric` queries start equal to the keys: with K^T Q of positive trace, training does not end
    where keys read y and values read one direction of x. `options` are `LinearSelfAttention`'s.
    """
    head = Head(*(scale * torch.randn(4, replicas, width, width, generator=generator)))
    head = head._replace(query=head.key) if symmetric else head
    return LinearSelfAttention(head, **options).requires_grad_(True)
