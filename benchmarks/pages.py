"""What `python -m benchmarks` found, as tables and a figure, from its record alone."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from raggd.records import content_id
from raggd.report.figures import INK, drawing, panels, to_svg
from raggd.report.tables import Column, Table

MEANING = {
    "adapt_vs_tt_sgd": "one adaptation: RAG-GD / TT-SGD, K of the settings",
    "adapt_vs_tt_sgd_k1": "one adaptation: RAG-GD / TT-SGD, K = 1",
    "adapt_vs_tt_sgd_k5": "one adaptation: RAG-GD / TT-SGD, K = 5",
    "adapt_vs_tt_sgd_k10": "one adaptation: RAG-GD / TT-SGD, K = 10",
    "adapt_vs_floor": "one adaptation: RAG-GD / one forward pass over the support tokens",
    "adapt_vs_matrices": "one adaptation: RAG-GD / its matrix products alone",
    "cached_vs_answer": "adapting to a known support set / answering one question",
    "few_shot_vs_answer": "answering with the demonstrations in the prompt / without",
    "following_vs_base": "one question, 8 tokens: under three examples read before / base adapter",
    "following_vs_base_1_token": "the same, reading and one token",
    "mixed_vs_none": "8 rows: 8 updates / base adapter alone",
    "mixed_vs_bare": "8 rows: 8 updates / bare backbone",
    "mixed_vs_peft": "8 rows: 8 updates / PEFT adapter_names",
    "mixed_vs_peft_narrow": "the same, PEFT's adapters in the backbone's dtype",
    "mixed_vs_set_adapter": "8 rows: 8 updates / PEFT set_adapter in turn",
    "mixed_vs_merged": "8 rows: 8 updates / merged weights in turn",
    "targets_vs_plain": "targets per second: ours / plain PEFT and optimizer loop",
    "training_vs_trainer": "training tokens per second: ours / PEFT and Trainer",
    "bm25_vs_bm25s": "median BM25 query: ours / bm25s called directly",
    "dense_vs_faiss": "exact dense query: ours / faiss flat",
}
"""What the promised ratios compare."""


def ratio_table(details: Mapping[str, Mapping[str, float]]) -> Table:
    """Tabulate ratios, the record's ``details``, by name."""
    columns = (
        Column("ratio"),
        Column("what"),
        Column("median", "right"),
        Column("range", "right"),
        Column("ms", "right"),
        Column("rounds", "right"),
    )
    rows = tuple(
        (
            name,
            MEANING.get(name, ""),
            f"{found['ratio']:.3g}",
            f"{found['low']:.3g} to {found['high']:.3g}",
            f"{found['a_ms']:.4g} / {found['b_ms']:.4g}",
            str(found["rounds"]),
        )
        for name, found in details.items()
    )
    return Table(columns, rows)


def time_table(benches: Mapping[str, Mapping[str, Any]]) -> Table:
    """Tabulate median and range, in milliseconds, of all works of the record's ``benches``."""
    columns = (Column("bench"), Column("work"), Column("ms", "right"), Column("range", "right"))
    rows = tuple(
        (bench, work, f"{ms['median']:.4g}", f"{ms['low']:.4g} to {ms['high']:.4g}")
        for bench, found in benches.items()
        for work, ms in found.get("ms", {}).items()
    )
    return Table(columns, rows)


def growth_figure(axes: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw cost against each thing that may grow, on logarithmic axes with the fitted line.

    `axes` hold, by name, ``sizes``, ``ms`` (a list of rounds per size) and ``exponent``; the figure
    is one ``<svg>`` element.
    """
    lines = -(-len(axes) // 3)
    with drawing(content_id(repr(axes)), (8.4, 2.6 * lines)) as figure:
        places = panels(figure, len(axes), 3)
        for place, (name, found) in zip(places, axes.items(), strict=True):
            _panel(place, name, found)
        told = "; ".join(
            f"{name}: exponent {found['exponent']:.2f}" for name, found in axes.items()
        )
        return to_svg(figure, "How cost grows", told)


def _panel(place: Any, name: str, found: Mapping[str, Any]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    sizes, rounds, exponent = found["sizes"], found["ms"], found["exponent"]
    middle = [median(ms) for ms in rounds]
    below = [m - min(ms) for m, ms in zip(middle, rounds, strict=True)]
    above = [max(ms) - m for m, ms in zip(middle, rounds, strict=True)]
    place.errorbar(sizes, middle, (below, above), fmt="o", color="#0072b2", markersize=4)
    centre, level = _log_mean(sizes), _log_mean(middle)
    fitted = [level * (size / centre) ** exponent for size in sizes]
    place.plot(sizes, fitted, color=INK, alpha=0.5, linewidth=1)
    place.set_xscale("log")
    place.set_yscale("log")
    place.set_xticks(sizes, [str(size) for size in sizes])
    place.minorticks_off()
    low, high = min(map(min, rounds)), max(map(max, rounds))
    reach = max(1.3, (12 * low / high) ** 0.5)  # a decade at least: small growth is to look small
    place.set_ylim(low / reach, high * reach)
    place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    place.yaxis.set_major_formatter(ScalarFormatter())
    place.yaxis.set_minor_formatter(NullFormatter())
    place.set_title(f"{name} (power {exponent:.2f})", fontsize=8.5)
    place.set_ylabel("ms")


def _log_mean(values: list[float]) -> float:
    from math import exp, log

    return exp(sum(map(log, values)) / len(values))
