"""Stored support sets as answers show them."""

from __future__ import annotations

import math

from raggd.serving.forms import passage_views
from raggd.serving.schemas import DemonstrationView, PassageView, SupportView
from raggd.serving.supports import StoredSupport


def support_view(stored: StoredSupport) -> SupportView:
    """Show a stored support set.

    Args:
        stored: the set.

    Returns:
        It, without anything that only the server needs.
    """
    shown = [
        DemonstrationView(
            question=d.question,
            answer=d.answer,
            passages=[PassageView(**view) for view in passage_views(d.passages)],
        )
        for d in stored.support.demonstrations
    ]
    total = math.hypot(*(value for norms in stored.norms.values() for value in norms))
    return SupportView(
        id=stored.support.id,
        model=f"rag-gd/{stored.support.id}",
        task=stored.support.task,
        created=stored.created,
        base=stored.base,
        demonstrations=shown,
        norms={name: list(values) for name, values in stored.norms.items()},
        norm=total,
        adapt_ms=stored.adapt_ms,
    )
