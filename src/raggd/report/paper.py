"""Our gains beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raggd.methods.spec import method_label
from raggd.report.contrasts import POOLED, Contrast
from raggd.report.tables import NOTHING, Column, Table

COLUMNS = ("Qwen BM25", "Qwen E5", "Llama BM25", "Llama E5")
SCORES: Mapping[str, tuple[tuple[float, float] | None, ...]] = {
    "query-only": ((18.94, 25.09), (18.94, 25.09), (21.52, 28.08), (21.52, 28.08)),
    "vanilla-rag": ((27.16, 34.90), (32.61, 40.60), (28.72, 36.34), (34.01, 41.90)),
    "vanilla-few-shot": ((27.14, 34.76), (32.14, 40.31), None, None),
    "base": ((29.71, 37.72), (34.16, 42.54), (35.86, 45.34), (38.86, 48.04)),
    "base-few-shot": ((31.58, 40.20), (36.22, 44.75), None, None),
    "prompt-tuning": ((30.60, 40.22), (34.59, 43.60), None, None),
    "hyper-tuning": ((31.69, 40.65), (35.85, 44.21), None, None),
    "tt-sgd": ((32.36, 40.88), (36.54, 45.02), None, None),
    "rag-gd-k1": ((32.25, 40.81), (36.35, 44.94), (36.93, 45.79), (39.93, 48.65)),
    "rag-gd": ((32.43, 40.87), (36.71, 45.11), (36.83, 45.70), (40.54, 49.24)),
    "rag-gd-k10": ((32.40, 40.68), (36.68, 44.86), (36.96, 45.79), (40.59, 49.29)),
}
"""EM and F1 averages over seven benchmarks, as published (arXiv:2605.26356v1, CC BY 4.0)."""


def _published(method: str, column: int) -> str:
    ours, base = SCORES[method][column], SCORES["base"][column]
    if ours is None or base is None:
        return NOTHING
    return f"{ours[0] - base[0]:+.2f} / {ours[1] - base[1]:+.2f}"


def _against_base(
    found: Sequence[Contrast], scope: str, method: str, metric: str
) -> Contrast | None:
    for c in found:
        if (c.scope, c.subset, c.metric) == (scope, "all", metric):
            if (c.method, c.other) == (method, "base"):
                return c
            if (c.method, c.other) == ("base", method):
                return c.turned()
    return None


def _over_all_blocks(found: Sequence[Contrast]) -> list[Contrast]:
    # a pooled comparison of methods that not every backbone has is of fewer blocks than its column
    widest = max((c.blocks for c in found), default=0)
    return [c for c in found if c.scope != POOLED or c.blocks == widest]


def _scopes(found: Sequence[Contrast]) -> list[str]:
    return list(dict.fromkeys(c.scope for c in found))


def paper_table(found: Sequence[Contrast]) -> Table:
    """Set differences from the base adapter beside the published ones.

    Absolute scores of small backbones on other questions cannot be compared with the paper's;
    what a method adds to the base adapter can.

    Args:
        found: contrasts of the study.

    Returns:
        EM / F1 points above the base adapter, the paper's columns first.
    """
    found = _over_all_blocks(found)
    scopes = _scopes(found)
    columns = [Column("Minus base adapter"), *(Column(f"paper: {x}", "right") for x in COLUMNS)]
    columns += [Column(scope, "right") for scope in scopes]
    rows = []
    for method in SCORES:
        if method == "base":
            continue
        cells = [method_label(method), *(_published(method, i) for i in range(len(COLUMNS)))]
        for scope in scopes:
            both = [_against_base(found, scope, method, metric) for metric in ("em", "f1")]
            shown = [f"{c.difference.mean:+.2f}" for c in both if c]
            cells.append(" / ".join(shown) if len(shown) == 2 else NOTHING)
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows))
