"""Bootstrap, Holm and sample size: hand oracles, simulated coverage, invariances."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raggd.evaluation import statistics
from raggd.evaluation.statistics import Interval, Sample, holm, questions_needed
from raggd.records import RaggdError
from sampled import bootstrap_interval, paired_bootstrap

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]), min_size=2, max_size=20)


def significant(interval: Interval) -> bool:
    """Whether it excludes zero, by more than rounding."""
    return interval.low > 1e-12 or interval.high < -1e-12


def exact_means(values: list[float]) -> np.ndarray:
    """All n^n equally likely bootstrap means."""
    return np.array([np.mean(sample) for sample in product(values, repeat=len(values))])


# --- against exact enumeration and formulas ---------------------------------------------------


@pytest.mark.parametrize("values", [[0, 1, 1, 0, 1], [0.1, 0.2, 0.7, 0.9, 0.3]])
def test_limits_are_the_quantiles_of_the_exact_bootstrap_distribution(values) -> None:
    exact = exact_means(values)
    got = bootstrap_interval(values, resamples=40_000)
    low, high = np.quantile(exact, [0.025, 0.975])
    assert got.mean == pytest.approx(np.mean(values))
    assert got.low == pytest.approx(low, abs=0.02)
    assert got.high == pytest.approx(high, abs=0.02)


def test_p_value_is_that_of_the_exact_bootstrap_distribution() -> None:
    differences = [1.0, 1.0, 0.0, -1.0, 1.0]
    exact = exact_means(differences)
    expected = 2 * min(np.mean(exact <= 1e-12), np.mean(exact >= -1e-12))
    assert 0.1 < expected < 0.9  # else the check says little
    got = paired_bootstrap(differences, [0.0] * 5, resamples=40_000)
    assert got.p_value == pytest.approx(expected, abs=0.02)


def test_groups_are_resampled_within() -> None:
    values = [0, 0, 0, 1, 1, 1]
    groups = ["a"] * 3 + ["b"] * 3
    free = bootstrap_interval(values)
    within = bootstrap_interval(values, groups=groups)
    assert (free.low, free.high) != (within.low, within.high)  # they differ ...
    assert (within.low, within.high) == (0.5, 0.5)  # ... and within a group nothing varies


def test_macro_average_weighs_benchmarks_alike() -> None:
    values = [1, 1, 1, 0] * 20 + [0, 0, 0, 0, 0, 1] * 20
    groups = ["a"] * 80 + ["b"] * 120
    assert bootstrap_interval(values, groups=groups).mean == pytest.approx(0.4)
    macro = bootstrap_interval(values, groups=groups, macro=True, resamples=40_000)
    assert macro.mean == pytest.approx((3 / 4 + 1 / 6) / 2)
    # Spread of the macro mean: sum of the groups' p q / n over 2 squared.
    std = math.sqrt((3 / 16 / 80 + 5 / 36 / 120) / 4)
    assert (macro.high - macro.low) / 2 == pytest.approx(1.96 * std, rel=0.04)


def test_order_and_names_of_groups_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.random(30), rng.random(50)
    one = bootstrap_interval([*a, *b], groups=["a"] * 30 + ["b"] * 50, macro=True)
    two = bootstrap_interval([*b, *a], groups=["b"] * 50 + ["a"] * 30, macro=True)
    assert (one.low, one.high) == (two.low, two.high)
    assert one.mean == pytest.approx(two.mean)


def test_chunks_do_not_change_the_distribution(monkeypatch) -> None:
    values = np.random.default_rng(0).random(40)
    whole = bootstrap_interval(values)
    monkeypatch.setattr(statistics, "_DRAWS_IN_MEMORY", 100)  # two rows at a time
    chunked = bootstrap_interval(values)
    assert (chunked.low, chunked.high) == pytest.approx((whole.low, whole.high), abs=0.01)


# --- coverage by simulation ---------------------------------------------------------------------


def coverage(draw, truth: float, repetitions: int = 300) -> float:
    held = 0
    for seed in range(repetitions):
        values, clusters = draw(np.random.default_rng(seed))
        interval = bootstrap_interval(values, clusters=clusters, resamples=400, seed=seed)
        held += interval.low <= truth <= interval.high
    return held / repetitions


def test_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    assert 0.91 <= coverage(lambda rng: (rng.random(100) < 0.3, None), 0.3) <= 0.985
    assert 0.91 <= coverage(lambda rng: (rng.exponential(size=120), None), 1.0) <= 0.985


def test_support_draws_that_matter_need_clusters() -> None:
    draws, questions = 12, 10

    def scores(rng: np.random.Generator, spread: float) -> np.ndarray:
        effect = rng.normal(0, spread, draws)[:, None]
        return (effect + rng.normal(size=(draws, questions))).ravel()

    labels = np.repeat(np.arange(draws), questions).tolist()
    ignored = coverage(lambda rng: (scores(rng, 1.0), None), 0.0)
    counted = coverage(lambda rng: (scores(rng, 1.0), labels), 0.0)
    assert ignored < 0.75 < 0.88 <= counted <= 0.985
    # Without an effect of the draw, clusters cost little: not the factor 1.41 of resampling twice.
    assert 0.91 <= coverage(lambda rng: (scores(rng, 0.0), labels), 0.0) <= 0.985
    plain = np.random.default_rng(1).normal(size=120)
    narrow, wide = bootstrap_interval(plain), bootstrap_interval(plain, clusters=labels)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) < 1.3


def test_spread_between_clusters_is_unbiased() -> None:
    # All variance between 6 draws: the standard error is std(ddof=1) / sqrt(6).
    levels = np.array([0.1, 0.5, 0.3, 0.9, 0.4, 0.8])
    labels = [f"draw {index}" for index in np.repeat(np.arange(6), 5)]
    draws = statistics.clustered_means(
        np.repeat(levels, 5)[:, None],
        np.repeat(np.eye(6), 5, axis=0),
        40_000,
        np.random.default_rng(0),
    )
    assert draws.std() == pytest.approx(levels.std(ddof=1) / math.sqrt(6), rel=0.02)
    interval = bootstrap_interval(np.repeat(levels, 5), clusters=labels)
    assert interval.low < levels.mean() < interval.high


def test_draws_of_two_seeds_cross() -> None:
    draws, each = 8, 2  # every draw of one seed meets every draw of the other
    first = np.repeat(np.arange(draws), draws * each)
    second = np.tile(np.repeat(np.arange(draws), each), draws)
    labels = [(f"a{i}", f"b{j}") for i, j in zip(first, second, strict=True)]
    joined = [f"{i} {j}" for i, j in labels]

    def scores(rng: np.random.Generator, spread: float) -> np.ndarray:
        effects = rng.normal(0, spread, (2, draws))
        mixed = (effects[0, first] + effects[1, second]) / 2
        return mixed + rng.normal(0, 0.5, len(first))

    together = coverage(lambda rng: (scores(rng, 1.0), joined), 0.0)
    apart = coverage(lambda rng: (scores(rng, 1.0), labels), 0.0)
    assert together < 0.75 < 0.88 <= apart <= 0.985
    assert 0.91 <= coverage(lambda rng: (scores(rng, 0.0), labels), 0.0) <= 0.99


def test_a_draw_named_twice_is_one_draw() -> None:
    values = np.random.default_rng(4).random(30)
    once = bootstrap_interval(values, clusters=[f"d{i % 5}" for i in range(30)])
    twice = bootstrap_interval(values, clusters=[(f"d{i % 5}",) * 2 for i in range(30)])
    assert once == twice


def test_a_ratio_differs_from_one_where_the_paired_test_finds_a_difference() -> None:
    labels = np.repeat(np.arange(6), 10).tolist()
    agreed = found = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        common = 1 + rng.normal(0, 0.25, 6)[labels]  # both follow the draw, one with more noise
        noise = rng.normal(0, [[0.3], [1.2]], (2, 60))
        both = np.stack([common + noise[0], common + 0.3 + noise[1]], 1)
        sample = Sample(("a", "b"), both, clusters=labels, resamples=400)
        ratio = sample.intervals(over="a")["b"]
        pair = paired_bootstrap(both[:, 1], both[:, 0], clusters=labels, resamples=400)
        agreed += (ratio.low > 1 or ratio.high < 1) == significant(pair)
        found += significant(pair)
    assert 15 < found < 45
    assert agreed >= 56


@pytest.mark.parametrize("clustered", [False, True])
def test_many_pairs_at_once_are_each_pair_alone(clustered: bool) -> None:
    rng = np.random.default_rng(3)
    scores = rng.random((40, 4))
    groups = ["a"] * 25 + ["b"] * 15
    draws = [f"{g}{i % 5}" for i, g in enumerate(groups)] if clustered else None
    options = {"groups": groups, "clusters": draws, "macro": True, "resamples": 500}
    sample = Sample("abcd", scores, **options)
    together = sample.differences([("a", "b"), ("c", "a"), ("d", "b")])
    for (a, b), found in together.items():
        alone = paired_bootstrap(sample.column(a), sample.column(b), **options)
        for name in ("mean", "low", "high", "p_value"):
            assert getattr(found, name) == pytest.approx(getattr(alone, name), abs=1e-12)
    assert len({found.mean for found in together.values()}) == 3
    assert sample.differences([]) == {}
    with pytest.raises(RaggdError, match="one column per method"):
        Sample("a", scores[:, 0])


def test_one_cluster_or_one_question_each_is_the_plain_bootstrap() -> None:
    values = np.random.default_rng(2).random(15)
    plain = bootstrap_interval(values)
    assert bootstrap_interval(values, clusters=["s"] * 15) == plain
    assert bootstrap_interval(values, clusters=[f"{i:02}" for i in range(15)]) == plain


def test_false_alarms_and_power() -> None:
    alarms = found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        a, b = rng.normal(size=80), rng.normal(size=80)
        alarms += significant(paired_bootstrap(a, b, resamples=400, seed=seed))
        found += significant(paired_bootstrap(a + 1.0, b, resamples=400, seed=seed))
    assert 2 <= alarms <= 24  # 10 expected
    assert found >= 198


# --- properties ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(SCORES, st.floats(0.1, 50), st.floats(-5, 5))
def test_moves_and_stretches_with_the_scores(values, factor, shift) -> None:
    plain = bootstrap_interval(values, resamples=200)
    moved = bootstrap_interval(np.array(values) * factor + shift, resamples=200)
    for name in ("mean", "low", "high"):
        expected = getattr(plain, name) * factor + shift
        assert getattr(moved, name) == pytest.approx(expected, abs=1e-9)
    assert plain.low <= plain.high
    assert min(values) - 1e-12 <= plain.low
    assert plain.high <= max(values) + 1e-12
    assert plain.scaled(100).high == pytest.approx(plain.high * 100)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 1.0])] * 2), min_size=2, max_size=15))
@example([(0.0, 0.3), (0.0, 1.0), (0.3, 0.0), (0.0, 1.0), (0.3, 0.5)])  # a limit of -1e-16
def test_swapping_the_methods_flips_the_sign(pairs) -> None:
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    one, two = paired_bootstrap(a, b, resamples=300), paired_bootstrap(b, a, resamples=300)
    assert one.mean == pytest.approx(-two.mean)
    assert one.low == pytest.approx(-two.high)
    assert one.high == pytest.approx(-two.low)
    assert one.p_value == two.p_value
    if significant(one):
        assert one.p_value <= 0.06


def test_difference_of_equal_methods_is_nothing() -> None:
    scores = np.random.default_rng(0).random(50)
    got = paired_bootstrap(scores, scores)
    assert (got.mean, got.low, got.high, got.p_value, significant(got)) == (0, 0, 0, 1, False)
    better = paired_bootstrap(scores + 0.1, scores)
    assert better.mean == pytest.approx(0.1)
    assert significant(better)
    assert better.p_value == pytest.approx(2 / 10_001)
    assert better.scaled(100).p_value == better.p_value


def test_pairing_is_used() -> None:
    # The methods agree question by question but for a small gain: only a paired test sees it.
    rng = np.random.default_rng(5)
    hard = rng.random(200)
    gain = 0.02 * (rng.random(200) < 0.5)
    assert significant(paired_bootstrap(hard + gain, hard))
    assert not significant(paired_bootstrap(hard + gain, rng.permutation(hard)))


def test_seed_decides() -> None:
    values = np.random.default_rng(0).random(30)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_too_little_to_tell_is_infinite_not_zero() -> None:
    one = bootstrap_interval([1.0])
    assert (one.mean, one.low, one.high) == (1.0, -math.inf, math.inf)
    pair = paired_bootstrap([1.0], [0.0])
    assert (pair.p_value, significant(pair)) == (1.0, False)
    macro = bootstrap_interval([1, 0, 1], groups=["a", "a", "b"], macro=True)
    assert math.isinf(macro.high)
    assert math.isfinite(bootstrap_interval([1, 0, 1], groups=["a", "a", "b"]).high)


def test_groups_of_one_question_are_drawn_together() -> None:
    values = np.random.default_rng(1).random(12)
    alone = bootstrap_interval(values, groups=list(range(12)))
    assert alone == bootstrap_interval(values)
    assert alone.low < alone.mean < alone.high


def test_no_limit_is_beyond_what_a_score_can_be() -> None:
    assert Interval(50, -3, 104).within(0, 100) == Interval(50, 0, 100)
    endless = Interval(50, -math.inf, math.inf)
    assert endless.within(0, 100) == endless, "nothing is known of it"


@pytest.mark.parametrize("values", [[], [0.0, math.nan], [0.0, math.inf]])
def test_scores_that_are_no_numbers_are_refused(values: list[float]) -> None:
    with pytest.raises(RaggdError, match="table of finite scores"):
        bootstrap_interval(values)
    with pytest.raises(RaggdError, match="table of finite scores"):
        paired_bootstrap(values, [0.0] * len(values))


# --- Holm and sample size -----------------------------------------------------------------------


def test_holm_by_hand() -> None:
    wanted = {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(wanted)
    assert holm({"a": 0.5, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_lies_between_none_and_bonferroni(values, random) -> None:
    numbered = dict(enumerate(values))
    adjusted = holm(numbered)
    assert list(adjusted) == list(numbered)
    for before, after in zip(values, adjusted.values(), strict=True):
        assert before <= after <= min(1.0, len(values) * before)
    assert min(adjusted.values()) == min(1.0, len(values) * min(values))
    order = list(range(len(values)))
    random.shuffle(order)
    assert holm({i: values[i] for i in order}) == adjusted


def test_questions_needed_gives_the_power_it_promises() -> None:
    # (1.959964 + 0.841621)^2 * (0.5 / 0.1)^2 = 196.2
    n = questions_needed(0.1, 0.5)
    assert n == 197
    assert questions_needed(-0.1, 0.5) == n
    assert questions_needed(0.05, 0.5) == pytest.approx(4 * n, abs=4)
    means = np.random.default_rng(0).normal(0.1, 0.5, size=(4000, n)).mean(axis=1)
    assert np.mean(means > 1.96 * 0.5 / math.sqrt(n)) == pytest.approx(0.8, abs=0.02)
    assert questions_needed(1.0, 0.0) == 2
