"""From run records to the numbers that tables and figures show: one row per method.

Scores are in percent. Every method must have answered the same questions: a table whose rows
stand on different questions compares nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from raggd.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_interval,
    holm,
    paired_bootstrap,
)
from raggd.methods.spec import SPECS
from raggd.records import Prediction, RaggdError, RunRecord, unknown_name


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One method over all benchmarks.

    Attributes:
        method: its name.
        n: questions.
        benchmarks: their names, sorted.
        em: exact match in percent, mean over all questions.
        f1: token F1 in percent, mean over all questions.
        macro_em: exact match in percent, mean of the benchmarks' means.
        macro_f1: the same for F1.
        adapt_ms: milliseconds of one adaptation; 0 for a method without, None if not measured.
        answer_ms: milliseconds to answer one question; None if not measured.
        relative_cost: `adapt_ms` as a share of the reference method's; None without one.
    """

    method: str
    n: int
    benchmarks: tuple[str, ...]
    em: Interval
    f1: Interval
    macro_em: Interval
    macro_f1: Interval
    adapt_ms: float | None
    answer_ms: float | None
    relative_cost: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """`method` minus `other` on the same questions, in points of percent.

    `em_p` and `f1_p` are two-sided p-values, corrected by Holm over all pairs compared together.
    """

    method: str
    other: str
    em: Difference
    f1: Difference
    em_p: float
    f1_p: float


_Key = tuple[str, str, str]  # benchmark, split, question id


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores of one method, averaged per question over seeds, sorted by question."""

    keys: list[_Key]
    em: list[float]
    f1: list[float]
    supports: list[tuple[str, ...]]

    @property
    def benchmarks(self) -> list[str]:
        return [key[0] for key in self.keys]


def _check_setting(records: Sequence[RunRecord]) -> None:
    if not records:
        raise RaggdError("there are no run records to summarise: evaluate first.")
    for name in ("backbone", "retriever"):
        values = sorted({str(getattr(record, name)) for record in records})
        if len(values) > 1:
            raise RaggdError(
                f"the records mix {len(values)} {name}s ({', '.join(values)}): summarise one at a "
                "time."
            )


def _by_method(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    _check_setting(records)
    present = dict.fromkeys(record.method for record in records)
    order = [name for name in SPECS if name in present]
    order += [name for name in present if name not in SPECS]
    return {name: [record for record in records if record.method == name] for name in order}


def _collect(method: str, records: Sequence[RunRecord]) -> _Scores:
    found: dict[_Key, dict[int, Prediction]] = {}
    for record in records:
        for prediction in record.predictions:
            key = (record.benchmark, record.split, prediction.question_id)
            if record.seed in found.setdefault(key, {}):
                raise RaggdError(
                    f"question '{key[2]}' of {key[0]} was answered twice by '{method}' with seed "
                    f"{record.seed}: a record is given twice, or two runs overlap."
                )
            found[key][record.seed] = prediction
    if not found:
        raise RaggdError(f"the records of '{method}' hold no predictions: the run is empty.")
    keys = sorted(found)
    answers = [[found[key][seed] for seed in sorted(found[key])] for key in keys]
    return _Scores(
        keys,
        [sum(p.em for p in given) / len(given) for given in answers],
        [sum(p.f1 for p in given) / len(given) for given in answers],
        [tuple(p.support_id for p in given) for given in answers],
    )


def _check_same_questions(scores: dict[str, _Scores]) -> None:
    (first, expected), *others = scores.items()
    for name, given in others:
        if given.keys != expected.keys:
            alone = sorted(set(given.keys) ^ set(expected.keys))
            raise RaggdError(
                f"'{first}' answered {len(expected.keys)} questions and '{name}' "
                f"{len(given.keys)}, not the same ones (e.g. {alone[0][0]} '{alone[0][2]}'): "
                "finish the run, or choose records of the same questions."
            )


def _mean_cost(records: Sequence[RunRecord], name: str) -> float | None:
    """Return the mean over questions; None if a record did not measure it."""
    if any(name not in record.cost for record in records):
        return None
    weights = [len(record.predictions) for record in records]
    costs = [record.cost[name] for record in records]
    return sum(w * cost for w, cost in zip(weights, costs, strict=True)) / sum(weights)


def _intervals(
    scores: _Scores, level: float, resamples: int
) -> tuple[Interval, Interval, Interval, Interval]:
    em, f1, macro_em, macro_f1 = (
        bootstrap_interval(
            values, groups=scores.benchmarks, macro=macro, level=level, resamples=resamples
        ).scaled(100)
        for macro in (False, True)
        for values in (scores.em, scores.f1)
    )
    return em, f1, macro_em, macro_f1


def summary_rows(
    records: Sequence[RunRecord],
    *,
    reference: str = "tt-sgd",
    level: float = 0.95,
    resamples: int = 10_000,
) -> list[SummaryRow]:
    """Summarise run records, one row per method.

    A question answered under several seeds counts once, with its mean score.

    Args:
        records: of one backbone and one retriever, any number of methods, benchmarks and seeds.
        reference: the method to whose adaptation cost the others' is related.
        level: of the intervals; questions are resampled within their benchmark.
        resamples: bootstrap samples.

    Returns:
        The rows, in the order of `SPECS`.

    Raises:
        RaggdError: there are no records, they mix backbones or retrievers, a question was answered
            twice, or the methods answered different questions.
    """
    grouped = _by_method(records)
    scores = {name: _collect(name, grouped[name]) for name in grouped}
    _check_same_questions(scores)
    adapt = {name: _mean_cost(grouped[name], "adapt_ms") for name in grouped}
    unit = adapt.get(reference)
    rows = []
    for name, given in scores.items():
        em, f1, macro_em, macro_f1 = _intervals(given, level, resamples)
        cost = adapt[name]
        rows.append(
            SummaryRow(
                method=name,
                n=len(given.keys),
                benchmarks=tuple(sorted(set(given.benchmarks))),
                em=em,
                f1=f1,
                macro_em=macro_em,
                macro_f1=macro_f1,
                adapt_ms=cost,
                answer_ms=_mean_cost(grouped[name], "answer_ms"),
                relative_cost=cost / unit if cost is not None and unit else None,
            )
        )
    return rows


def compare(
    records: Sequence[RunRecord],
    pairs: Sequence[tuple[str, str]],
    *,
    macro: bool = False,
    by_support: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
) -> list[Comparison]:
    """Compare pairs of methods question by question.

    Args:
        records: as for `summary_rows`.
        pairs: (method, other) names; the difference is method minus other.
        macro: average the benchmarks' differences instead of all questions.
        by_support: count the spread between the support draws of `method` as uncertainty too.
        level: of the intervals.
        resamples: bootstrap samples.

    Returns:
        One comparison per pair, with p-values corrected over the pairs.

    Raises:
        RaggdError: as for `summary_rows`, or a pair names a method without records.
    """
    grouped = _by_method(records)
    for name in (name for pair in pairs for name in pair):
        if name not in grouped:
            raise RaggdError(str(unknown_name("method in the records", name, list(grouped))))
    scores = {name: _collect(name, grouped[name]) for name in grouped}
    _check_same_questions(scores)

    def difference(one: str, two: str, metric: str) -> Difference:
        first, second = scores[one], scores[two]
        return paired_bootstrap(
            getattr(first, metric),
            getattr(second, metric),
            groups=first.benchmarks,
            clusters=first.supports if by_support else None,
            macro=macro,
            level=level,
            resamples=resamples,
        ).scaled(100)

    em = [difference(*pair, "em") for pair in pairs]
    f1 = [difference(*pair, "f1") for pair in pairs]
    em_p, f1_p = holm([d.p_value for d in em]), holm([d.p_value for d in f1])
    return [Comparison(*pair, em[i], f1[i], em_p[i], f1_p[i]) for i, pair in enumerate(pairs)]
