"""What several seeds tell apart: scipy's tests, slow loops, and planted cases."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from lightning_equiv.compare.statistics import (
    compared,
    is_relative,
    paired_difference,
    preferences,
    seeds_needed,
)


def table_of(figures):
    """(ways, seeds) as a table; NaN is a run that is not there."""
    return {
        f"way {i}": {s: v for s, v in enumerate(row) if not math.isnan(v)}
        for i, row in enumerate(np.asarray(figures).tolist())
    }


def draw(seed=0):
    return np.random.default_rng(seed)


NOISE = {
    "log-normal": lambda rng, size: 0.3 * rng.normal(size=size),
    "heavy-tailed": lambda rng, size: 0.3 * rng.standard_t(3, size=size),
    "skewed": lambda rng, size: 0.3 * rng.exponential(size=size),
}


# -- one pair, against scipy and brute force


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("seeds", [2, 5, 9])
def test_a_difference_is_scipys_paired_t_test(relative, seeds):
    a, b = np.exp(draw().normal(size=(2, seeds)))
    found = paired_difference(table_of([a, b]), "way 0", "way 1", relative=relative)
    twin = scipy.stats.ttest_rel(np.log(a), np.log(b)) if relative else scipy.stats.ttest_rel(a, b)
    value = scipy.stats.gmean(a) / scipy.stats.gmean(b) - 1 if relative else a.mean() - b.mean()
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.p == pytest.approx(twin.pvalue, rel=1e-9)
    assert found.seeds == seeds


def brute_force(d, shares):
    """Percentiles of the means of all n^n resamples."""
    chosen = np.array(list(itertools.product(range(len(d)), repeat=len(d))))
    means = np.asarray(d)[chosen].mean(axis=1)
    return [float(np.quantile(means, share, method="inverted_cdf")) for share in shares]


def expanded(seeds, level):
    t = scipy.stats.t(seeds - 1).ppf((1 - level) / 2)
    return scipy.stats.norm.cdf(math.sqrt(seeds / (seeds - 1)) * t)


@pytest.mark.parametrize("level", [0.6, 0.95])
@pytest.mark.parametrize("seeds", [2, 3, 5, 6])
def test_up_to_six_seeds_the_interval_is_that_of_all_resamples(seeds, level):
    d = draw(seeds).normal(size=seeds)
    found = paired_difference(table_of([d, 0 * d]), "way 0", "way 1", relative=False, level=level)
    share = expanded(seeds, level)
    assert found.low == pytest.approx(brute_force(d, [share])[0], abs=1e-12)
    assert found.high == pytest.approx(-brute_force(-d, [share])[0], abs=1e-12)


def test_of_seven_seeds_the_interval_is_that_of_all_resamples_within_the_noise_of_ten_thousand():
    d = draw(1).normal(size=7)
    found = paired_difference(table_of([d, 0 * d]), "way 0", "way 1", relative=False)
    share = expanded(7, 0.95)
    noise = 4 * math.sqrt(share / 10_000)
    below, above = brute_force(d, [share - noise, share + noise])
    assert below <= found.low <= above
    below, above = brute_force(-d, [share - noise, share + noise])
    assert below <= -found.high <= above


def test_a_relative_interval_is_that_of_the_log_ratios():
    x = draw().normal(size=(2, 5))
    logs = paired_difference(table_of(x), "way 0", "way 1", relative=False)
    found = paired_difference(table_of(np.exp(x)), "way 0", "way 1", relative=True)
    assert found[2:5] == pytest.approx(np.expm1(logs[2:5]))
    assert found.p == pytest.approx(logs.p)


@pytest.mark.parametrize(("seeds", "tables", "stated"), [(3, 2000, 0.76), (5, 2000, 0.92), (10, 1000, 0.94)])
def test_the_interval_covers_the_mean_as_often_as_its_docstring_says(seeds, tables, stated):
    hits = 0
    for x in draw(3).normal(size=(tables, 2, seeds)):
        found = paired_difference(table_of(x), "way 0", "way 1", relative=False)
        hits += found.low <= 0 <= found.high
    assert hits / tables == pytest.approx(stated, abs=0.005 + 3 * math.sqrt(stated * (1 - stated) / tables))


def test_the_interval_draws_from_its_own_generator():
    np.random.seed(0)  # noqa: NPY002 what a user's program may have seeded
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    table = table_of(draw().normal(size=(2, 8)))
    first, second = (paired_difference(table, "way 0", "way 1", relative=False) for _ in range(2))
    assert first == second
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_only_shared_seeds_count():
    found = paired_difference(
        {"a": {0: 1.0, 1: 3.0, 7: 100.0}, "b": {1: 2.0, 0: 0.5, 8: 1e9}}, "a", "b", relative=False
    )
    assert (found.value, found.low, found.high, found.seeds) == (0.75, 0.5, 1.0, 2)


def test_one_seed_has_no_interval_and_none_has_no_difference():
    table = {"a": {0: 2.0}, "b": {0: 1.0}, "c": {1: 1.0}}
    one, none = (paired_difference(table, "a", other, relative=True) for other in "bc")
    assert one.value == pytest.approx(1.0)
    assert [math.isnan(x) for x in (one.low, one.high, one.p)] == [True] * 3
    assert [math.isnan(x) for x in (none.value, none.low, none.high, none.p)] == [True] * 4
    assert (one.seeds, none.seeds) == (1, 0)


# -- without spread


def test_equal_ways_are_never_told_apart():
    figures = [[0.1, 0.2, 0.7, 1.1, 0.3]] * 3
    assert preferences(table_of(figures), mode="min") == []
    found = paired_difference(table_of(figures), "way 0", "way 1", relative=True)
    assert found[2:6] == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(("seeds", "told"), [(2, False), (3, True)])
def test_a_constant_difference_is_told_apart_from_three_seeds_on(seeds, told):
    steps = 2.0 ** np.arange(seeds)
    table = table_of([steps, steps - 0.5])  # exact in binary
    found = paired_difference(table, "way 1", "way 0", relative=False)
    assert found[2:6] == (-0.5, -0.5, -0.5, 0.0)
    tenths = paired_difference(table_of([[0.1] * seeds, [0.0] * seeds]), "way 0", "way 1", relative=False)
    assert tenths.p == 0.0  # though their mean is not 0.1 to the last digit
    assert [p[:6] for p in preferences(table, mode="max")] == [("way 0", "way 1", 0.5, 0.5, 0.5, 0.0)] * told


def test_a_constant_ratio_is_told_apart_though_it_is_not_constant_to_the_last_digit():
    x = draw().uniform(size=5)
    (found,) = preferences(table_of([x, 0.9 * x]), mode="min")
    assert found[:2] == ("way 1", "way 0")
    assert found[2:5] == pytest.approx((-0.1, -0.1, -0.1))


# -- many pairs


def holm(figures, mode, level):
    """Which pairs of ways are told apart, by adjusted p-values: (k-th smallest) x (m - k), never falling."""
    ways = range(len(figures))
    use = np.log if mode == "min" else lambda v: v
    p = {}
    for i, j in itertools.combinations(ways, 2):
        both = ~np.isnan(figures[i]) & ~np.isnan(figures[j])
        if both.sum() >= 3:
            p[i, j] = scipy.stats.ttest_rel(use(figures[i][both]), use(figures[j][both])).pvalue
    adjusted = {}
    for pair, value in p.items():
        adjusted[pair] = 0.0
        for other in p.values():
            if other <= value:
                at_least = sum(q >= other for q in p.values())  # m - k, where no two are equal
                adjusted[pair] = max(adjusted[pair], other * at_least)
    return {pair for pair, value in adjusted.items() if value <= 1 - level}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_pairs_are_told_apart_as_holms_adjusted_p_values_do(mode):
    counts = set()
    for seed in range(40):
        rng = draw(seed)
        figures = np.exp(0.5 * rng.normal(size=6) + 0.3 * rng.normal(size=(5, 6)) + 0.4 * np.arange(5)[:, None])
        figures[rng.uniform(size=figures.shape) < 0.15] = np.nan
        found = preferences(table_of(figures), mode=mode, level=0.9)
        pairs = {tuple(sorted((int(p.better[4:]), int(p.worse[4:])))) for p in found}
        assert pairs == holm(figures, mode, 0.9)
        counts.add(len(pairs))
        for p in found:
            better, worse = figures[int(p.better[4:])], figures[int(p.worse[4:])]
            both = ~np.isnan(better) & ~np.isnan(worse)
            assert p.seeds == both.sum()
            use = np.log if mode == "min" else lambda v: v
            difference = (use(better[both]) - use(worse[both])).mean()
            assert difference < 0 if mode == "min" else difference > 0
    assert len(counts) > 4  # not all or nothing


def test_the_interval_of_a_pair_is_students_at_the_level_of_holms_step():
    x = draw(5).normal(size=(3, 6)) + np.array([[0.0], [0.5], [8.0]])
    found = compared(table_of(np.exp(x)), mode="min")
    assert [p.told for p in found] == [True, True, False]
    for p, divisor in zip(found, (3, 2, 1), strict=True):
        assert p.level == pytest.approx(1 - 0.05 / divisor)
        a, b = x[int(p.better[4:])], x[int(p.worse[4:])]
        twin = scipy.stats.ttest_rel(a, b).confidence_interval(p.level)
        assert (p.value, p.low, p.high) == pytest.approx(np.expm1([(a - b).mean(), *twin]).tolist())


def test_what_ends_holms_steps_gives_the_level_of_all_that_follow():
    x = draw(2).normal(size=(4, 5))
    assert [(p.told, p.level) for p in compared(table_of(x), mode="max")] == [(False, pytest.approx(1 - 0.05 / 6))] * 6


def test_pairs_of_two_seeds_are_not_counted():
    a, b, c = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5, 2: 3.4}, {0: 9.0, 1: 99.0, 5: 9.0}
    found = compared({"a": a, "b": b, "c": c}, mode="max")
    assert [(p.better, p.worse, p.level) for p in found] == [("b", "a", pytest.approx(0.95))]


# -- planted cases

TWICE = 3  # standard deviations of a simulated rate that are allowed


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("seeds", [5, 10])
@pytest.mark.parametrize(("ways", "tables"), [(2, 3000), (6, 400)])
def test_ways_equal_in_law_are_told_apart_in_one_table_of_twenty_at_most(ways, tables, seeds, noise):
    """Any pair of the table; without a correction it would be two tables of five with six ways."""
    rng = draw()
    wrong = 0
    for _ in range(tables):
        figures = np.exp(NOISE[noise](rng, (ways, seeds)) + rng.normal(size=seeds))
        wrong += bool(preferences(table_of(figures), mode="min"))
    assert wrong / tables <= 0.05 + TWICE * math.sqrt(0.05 * 0.95 / tables)
    if noise == "log-normal":  # the law that the t test is exact for
        assert wrong > 0


def power(seeds, effect, level=0.95):
    """Of the two-sided t test, `effect` the mean of the differences in units of their standard deviation."""
    critical = scipy.stats.t(seeds - 1).ppf((1 + level) / 2)
    law = scipy.stats.nct(seeds - 1, effect * math.sqrt(seeds))
    return law.sf(critical) + law.cdf(-critical)


@pytest.mark.parametrize(("seeds", "shared", "expected"), [(5, 0, 0.66), (9, 0, 0.95), (6, 1, 0.97)])
def test_two_spreads_are_seen_as_often_as_the_t_test_can(seeds, shared, expected):
    """`shared`: the variance that a seed has in common, of that which each way has of its own."""
    rng, found, tables = draw(), 0, 1000
    spread = math.sqrt(1 + shared)
    for _ in range(tables):
        x = rng.normal(size=(2, seeds)) + math.sqrt(shared) * rng.normal(size=seeds)
        x[1] -= 2 * spread
        found += [p.better for p in preferences(table_of(np.exp(0.1 * x)), mode="min")] == ["way 1"]
    assert power(seeds, 2 * spread / math.sqrt(2)) == pytest.approx(expected, abs=0.01)
    assert found / tables == pytest.approx(expected, abs=0.01 + TWICE * math.sqrt(expected * (1 - expected) / tables))


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_two_observed_spreads_are_always_seen_with_five_seeds(correlation):
    for seed in range(50):
        x = draw(seed).normal(size=(5, 2))
        q, _ = np.linalg.qr(np.column_stack([np.ones(5), x]))
        a, b = 2 * q[:, 1], 2 * q[:, 2]  # mean 0, standard deviation 1, uncorrelated
        b = correlation * a + math.sqrt(1 - correlation**2) * b
        assert np.std(b, ddof=1) == pytest.approx(1.0)
        (found,) = preferences(table_of(np.exp(0.1 * np.array([a, b - 2]))), mode="min")
        assert found.better == "way 1"
        t = 2 * math.sqrt(5) / math.sqrt(2 - 2 * correlation)
        assert found.p == pytest.approx(2 * scipy.stats.t(4).sf(t))


def with_effect(effect, seeds):
    """Two ways whose differences have this mean in units of their standard deviation."""
    d = draw(4).normal(size=seeds)
    d = (d - d.mean()) / d.std(ddof=1) + effect
    x = draw(5).normal(size=seeds)
    return table_of([x + d, x])


@pytest.mark.parametrize(("effect", "seeds"), [(1.0, 3), (0.5, 5), (0.29, 5)])
def test_the_seeds_that_are_needed_are_the_fewest_with_enough_power(effect, seeds):
    table = with_effect(effect, seeds)
    (pair,) = compared(table, mode="max")
    needed = seeds_needed(table, pair)
    assert not pair.told
    assert power(needed, effect) >= 0.8 > power(needed - 1, effect)


def test_more_seeds_than_are_considered_are_none():
    table = with_effect(0.27, 5)
    (pair,) = compared(table, mode="max")
    assert power(100, 0.27) < 0.8
    assert seeds_needed(table, pair) is None
    assert (seeds_needed(table, pair, most=110), seeds_needed(table, pair, most=109)) == (110, None)
    same = {"a": table["way 0"], "b": table["way 0"]}
    assert seeds_needed(same, compared(same, mode="max")[0]) is None


# -- what is compared how


def test_only_positive_errors_are_compared_by_ratios():
    positive, zero = {"a": {0: 1.0}, "b": {0: 2.0}}, {"a": {0: 1.0}, "b": {0: 0.0}}
    assert is_relative(positive, "min")
    assert not is_relative(positive, "max")
    assert not is_relative(zero, "min")


def test_bad_input_is_told():
    table = {"plain": {0: 1.0}, "remul": {0: -1.0}}
    with pytest.raises(ValueError, match="expected a way of the table, one of 'plain', 'remul'; got 'recm'"):
        paired_difference(table, "recm", "plain", relative=False)
    with pytest.raises(ValueError, match="expected positive figures of 'remul' and 'plain'; write relative=False"):
        paired_difference(table, "remul", "plain", relative=True)
    with pytest.raises(ValueError, match="expected mode to be 'min' or 'max', what is better of the figure, got 'low'"):
        preferences(table, mode="low")
    with pytest.raises(ValueError, match="expected finite figures, got nan of 'ace', seed 3: leave that run out"):
        preferences({**table, "ace": {3: math.nan}}, mode="min")
    with pytest.raises(ValueError, match="expected level to be a finite number above 0 and below 1, got 95"):
        preferences(table, mode="min", level=95)
