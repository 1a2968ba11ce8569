"""Gain against evidence quality: questions whose passages hold an answer, and the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from raggd.evaluation.statistics import Difference
from raggd.methods.spec import HEADLINE, method_label
from raggd.report.contrasts import METRICS, Contrast, contrast_of
from raggd.report.grid import Block
from raggd.report.study_tables import contrast_text, significant
from raggd.report.tables import Column, Table

PAIRS = (
    ("base", "vanilla-rag"),
    *((name, "base") for name in HEADLINE if name not in {"base", "vanilla-rag"}),
)
FEWEST = 20
"""Questions below which resampling says too little to be called significant."""
EVIDENCE = {True: "an answer in the passages", False: "no answer in the passages"}


@dataclass(frozen=True, slots=True)
class EvidenceGain:
    """One pair of methods on the questions of one kind of evidence, all benchmarks together."""

    answerable: bool
    contrast: Contrast

    @property
    def difference(self) -> Difference:
        """The gain, in percent or nats."""
        return self.contrast.difference


def only(block: Block, answerable: bool) -> Block:
    """Return a block with the questions of one kind of evidence.

    Questions of unknown kind, and benchmarks left without questions, are dropped.
    """
    answers = {
        method: {
            name: kept
            for name, given in by_benchmark.items()
            if (kept := tuple((s, a) for s, a in given if a.answerable is answerable))
        }
        for method, by_benchmark in block.answers.items()
    }
    shown = tuple(name for name in block.benchmarks if any(name in x for x in answers.values()))
    return replace(block, answers=answers, benchmarks=shown)


def evidence_gains(blocks: Sequence[Block], resamples: int) -> list[EvidenceGain]:
    """Return what pairs of methods gain, apart for both kinds of evidence.

    It is the mean over questions, since some benchmarks have few of one kind.
    """
    found = []
    for block in blocks:
        for pair in PAIRS:
            if not set(pair) <= set(block.methods):
                continue
            for answerable in EVIDENCE:
                part = only(block, answerable)
                for metric in METRICS:
                    contrast = contrast_of(part, pair, metric, resamples)
                    if contrast:
                        found.append(EvidenceGain(answerable, contrast))
    return found


def _significant(found: Sequence[Contrast]) -> set[Contrast]:
    families: dict[tuple[str, str], list[Contrast]] = {}
    for c in found:
        families.setdefault((c.scope, c.metric), []).append(c)
    return {c for family in families.values() for c in significant(family) if c.n >= FEWEST}


def evidence_table(found: Sequence[EvidenceGain]) -> Table:
    """Return gains by evidence; bold is significant, corrected by Holm over the rows of a scope."""
    columns = [Column("Scope"), Column("Comparison"), Column("Passages hold"), Column("n", "right")]
    columns += [Column(name, "right") for name in ("EM", "F1", "Answer loss")]
    groups: dict[tuple[str, str, str, bool], dict[str, Contrast]] = {}
    for gain in found:
        c = gain.contrast
        groups.setdefault((c.scope, c.method, c.other, gain.answerable), {})[c.metric] = c
    rows: list[tuple[str, ...]] = []
    bold: set[tuple[int, int]] = set()
    sure = _significant([gain.contrast for gain in found])
    for (scope, method, other, answerable), by_metric in groups.items():
        n = next(iter(by_metric.values())).n
        label = f"{method_label(method)} minus {method_label(other)}"
        cells = [scope, label, "an answer" if answerable else "none", str(n)]
        for metric in METRICS:
            shown = by_metric.get(metric)
            if shown in sure:
                bold.add((len(rows), len(cells)))
            cells.append(contrast_text(shown))
        rows.append(tuple(cells))
    caption = (
        "Gains by evidence, mean over questions. Bold: p < 0.05, corrected by Holm over the rows "
        f"of a scope, from {FEWEST} questions on."
    )
    return Table(tuple(columns), tuple(rows), caption=caption, bold=frozenset(bold))
