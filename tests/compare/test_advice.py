"""The sentences that a comparison says, word for word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from lightning_equiv.compare.advice import advice
from lightning_equiv.compare.statistics import compared

PLAIN = [1.00, 1.21, 0.93, 1.10, 1.05]
REMUL = [0.25, 0.27, 0.22, 0.26, 0.28]
RECM = [0.26, 0.28, 0.22, 0.27, 0.265]  # hardly worse than REMUL
ACE = [0.95, 1.25, 0.97, 1.02, 1.07]  # as plain
STRICT = [3.0, 3.4, 2.7, 3.5, 3.1]


def table_of(**ways):
    return {way: {seed: v for seed, v in enumerate(values) if v is not None} for way, values in ways.items()}


def said(table, costs=None, *, mode="min", figure="mse", **rest):
    return advice(table, costs or {}, mode=mode, figure=figure, **rest)


def test_every_way_is_held_against_the_reference():
    table = table_of(plain=PLAIN, remul=REMUL, strict=STRICT, ace=ACE, recm=PLAIN)
    costs = {"plain": 1, "remul": 1.8, "strict": 1.02, "ace": 123.4}
    assert said(table, costs)[:3] == [
        "remul is better than plain by 72 to 79 %, at 1.8 times the cost.",
        "strict is worse than plain by 165 to 232 %, at the same cost.",
        "ace (120 times the cost) and recm were not told apart from plain.",
    ]


def interval(way, other, divisor=1):
    """Scipy's, of the ratio of two ways, less 1, at the level of a step of Holm's correction."""
    test = scipy.stats.ttest_rel(np.log(way), np.log(other))
    return np.expm1(list(test.confidence_interval(1 - 0.05 / divisor)))


def test_the_range_is_scipys_interval_at_the_level_of_holms_step():
    remul, strict = interval(REMUL, PLAIN, 1), interval(STRICT, PLAIN, 2)  # the clearest of three is remul and strict
    assert said(table_of(plain=PLAIN, remul=REMUL, strict=STRICT))[:2] == [
        f"remul is better than plain by {-100 * remul[1]:.0f} to {-100 * remul[0]:.0f} %.",
        f"strict is worse than plain by {100 * strict[0]:.0f} to {100 * strict[1]:.0f} %.",
    ]


def test_the_way_that_is_better_than_all_is_chosen():
    table = table_of(plain=PLAIN, remul=REMUL, strict=STRICT)
    choice = "Choose remul: it is better than every other way that was measured."
    assert said(table)[-1] == choice
    assert said(table, {"plain": 1, "remul": 9, "strict": 1})[-1] == choice


def test_of_ways_that_are_not_told_apart_the_cheapest_is_chosen_where_its_mean_is_best_too():
    table = table_of(plain=PLAIN, remul=REMUL, recm=RECM)
    mean = "remul has the lowest geometric mean of mse; recm was not told apart from it."
    better = "Choose remul: no way was shown to be better, and "
    dear = {"plain": 1, "remul": 1.8, "recm": 2.4}
    assert said(table, dear)[2:] == [mean, f"{better}it is the cheapest of those."]
    near = {"plain": 1, "remul": 1.8, "recm": 1.75}
    assert said(table, near)[2:] == [mean, f"{better}none of those is cheaper by more than 5 %."]


def test_where_the_cheapest_has_not_the_best_mean_it_says_what_that_may_lose():
    table = table_of(plain=PLAIN, remul=REMUL, recm=RECM)
    assert -interval(REMUL, RECM)[0] == pytest.approx(0.0603, abs=1e-4)
    assert "Choose recm where cost counts: it takes 0.91 times" in said(table, {"remul": 1.1, "recm": 1})[-2]
    assert said(table, {"remul": 1.8, "recm": 1.2})[-2:] == [
        "Choose recm where cost counts: it takes 0.67 times the cost of remul, which may be better by up to 6 %.",
        "About 98 seeds in the place of 5 would tell remul and recm apart, if difference and spread are what they are "
        "here.",
    ]


def test_without_costs_it_says_how_many_seeds_would_help():
    assert said(table_of(plain=[1.0, 1.2, 0.9], ace=[0.9, 1.15, 0.9])) == [
        "ace was not told apart from plain.",
        "ace has the lowest geometric mean of mse.",
        "About 12 seeds in the place of 3 would tell ace and plain apart, if difference and spread are what they are "
        "here.",
    ]
    assert said(table_of(plain=PLAIN, ace=[1.05, 1.10, 0.93, 1.21, 1.001]))[-1] == (
        "More than 100 seeds would tell plain and ace apart, if difference and spread are what they are here."
    )
    assert said(table_of(plain=PLAIN, ace=PLAIN))[-1] == (
        "plain and ace gave the same figures: more seeds will not tell them apart."
    )


def test_a_way_without_a_cost_leaves_the_cheapest_open():
    found = said(table_of(plain=PLAIN, remul=REMUL, recm=RECM), {"plain": 1, "remul": 1.8})
    assert found[:2] == [
        "remul is better than plain by 73 to 78 %, at 1.8 times the cost.",
        "recm is better than plain by 73 to 77 %.",
    ]
    assert found[-1].startswith("About 98 seeds in the place of 5 would tell remul and recm apart")


def test_of_equal_figures_the_cheaper_way_is_chosen():
    found = said(table_of(plain=PLAIN, ace=PLAIN), {"plain": 1, "ace": 0.5})
    assert found[-1] == "Choose ace: no way was shown to be better, and it is the cheapest of those."


def test_figures_that_are_best_large_are_compared_by_differences():
    table = table_of(plain=[0.70, 0.72, 0.69, 0.71], remul=[0.80, 0.83, 0.78, 0.82], ace=[0.69, 0.72, 0.70, 0.70])
    assert said(table, mode="max", figure="accuracy") == [
        "remul is better than plain by 0.08 to 0.13.",
        "ace was not told apart from plain.",
        "Choose remul: it is better than every other way that was measured.",
    ]
    table.pop("remul")
    assert said(table, mode="max", figure="accuracy")[1] == "plain has the highest mean of accuracy."


def test_without_the_reference_only_the_best_is_compared_with():
    table = table_of(remul=REMUL, recm=RECM, ace=[*ACE[:2], None, None, None])
    assert said(table, {"remul": 1, "recm": 2, "ace": 1}) == [
        "remul has the lowest geometric mean of mse; recm was not told apart from it.",
        "ace shares fewer than three seeds with remul: too few to compare.",
        "Choose remul: no way was shown to be better, and it is the cheapest of those.",
    ]


def test_a_way_with_problems_is_not_recommended():
    table = table_of(plain=PLAIN, remul=[*REMUL[:4], None])
    problems = {"remul": "failed in 1 of 5 runs: out of memory", "ace": "diverged in 5 of 5 runs."}
    problems["gan"] = problems["ace"]
    assert said(table, problems=problems) == [
        "remul is better than plain by 75 to 78 %.",
        "remul would be the choice: it is better than every other way that was measured. But not all of its runs ended "
        "well, see below.",
        "remul failed in 1 of 5 runs: out of memory.",
        "ace and gan diverged in 5 of 5 runs.",
    ]


@pytest.mark.parametrize(
    ("figures", "word"),
    [
        ({"plain": [1.0, 2.0], "remul": [0.1, 0.2]}, "Two seeds tell nothing apart"),
        ({"plain": [1.0, 2.0], "remul": [0.1]}, "One seed tells nothing apart"),
        ({"plain": [1.0, None], "remul": [None, 0.1]}, "The ways share no seed"),
    ],
)
def test_fewer_than_three_seeds_tell_nothing_apart(figures, word):
    found = said(table_of(**figures), problems={"ace": "failed in 2 of 2 runs"})
    assert found == [f"{word}: run all ways with the same three seeds or more.", "ace failed in 2 of 2 runs."]


def test_one_way_is_no_comparison():
    problems = {"ace": "failed in 5 of 5 runs"}
    assert said(table_of(plain=PLAIN, ace=[]), problems=problems) == [
        "Only plain has results.",
        "ace failed in 5 of 5 runs.",
    ]
    assert said({}) == ["No way has results."]


def test_a_way_with_two_seeds_is_named_once():
    table = table_of(plain=PLAIN, remul=REMUL, ace=ACE[:2])
    assert said(table) == [
        "remul is better than plain by 74 to 78 %.",
        "ace shares fewer than three seeds with plain: too few to compare.",
        "Choose remul: it is better than every other way that it can be compared with.",
    ]


def test_a_way_that_is_worse_than_a_third_is_no_rival():
    """A cheap way is not told apart from the best, but from the second."""
    base = np.array([1.0, 1.2, 0.9, 1.1, 1.05, 0.97])
    noisy = np.array([-0.35, 0.3, 0.1, -0.3, 0.25, -0.4])
    table = table_of(best=base * np.exp(noisy - 0.05), second=base, third=base * [1.1, 1.11, 1.1, 1.09, 1.1, 1.1])
    found = said(table, {"best": 2, "second": 3, "third": 1}, reference="best")
    assert found == [
        "second (1.5 times the cost) and third (0.5 times the cost) were not told apart from best.",
        "best has the lowest geometric mean of mse.",
        "Choose best: no way was shown to be better, and it is the cheapest of those.",
    ]
    assert said({way: table[way] for way in ("second", "third")})[-1].startswith("Choose second: it is better")


def test_ways_that_beat_each_other_in_a_circle_on_other_seeds():
    low, high = [1.0, 1.1, 1.2], [2.0, 2.1, 2.2]
    gap = [None] * 3
    found = said(table_of(a=[*low, *gap, *high], b=[*high, *low, *gap], c=[*gap, *high, *low]))
    assert found == ["Each way is worse than another one, on other seeds: run all ways with the same seeds."]


def test_the_best_mean_may_belong_to_a_way_that_another_one_beats():
    """Over the seeds that all share a way is best; over those that it shares with another one it is worse."""
    a = [0.5, 0.5, 0.5, *(9.0, 9.1, 9.2, 9.3, 9.1, 9.2, 9.0, 9.1)]
    b = [1.0, 1.1, 1.0, *(0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)]
    c = [1.1, 1.0, 1.1, *[None] * 8]
    b_has, c_was = "b has the lowest geometric mean of mse", "c was not told apart from it"
    assert said(table_of(a=a, b=b, c=c))[0] == f"Of the ways that no other is better than, {b_has}; {c_was}."


def test_a_factor_is_named_where_percentages_are_not_read():
    table = table_of(plain=[1.0, 1.1, 1.2, 1.0], ace=[20.0, 30.0, 25.0, 21.0])
    assert said(table)[0] == "ace is worse than plain by a factor of 18 to 28."


def test_bad_input_is_told():
    table = table_of(plain=PLAIN, remul=REMUL)
    with pytest.raises(ValueError, match="expected the cost of 'remul' to be a finite number above 0, got 0"):
        said(table, {"remul": 0})
    with pytest.raises(ValueError, match="expected mode to be 'min' or 'max'"):
        said(table, mode="lowest")
    with pytest.raises(ValueError, match="expected finite figures, got nan of 'plain', seed 0"):
        said(table_of(plain=[math.nan]))


def test_a_cheaper_way_that_seems_worse_is_not_advised():
    """Three seeds and three ways: Holm tells none apart, and yet one is far behind."""
    table = {
        "strict": {0: 70.0, 1: 76.0, 2: 73.0},
        "cheap": {0: 27.0, 1: 45.0, 2: 48.0},
        "near": {0: 71.0, 1: 74.0, 2: 72.5},
    }
    costs = {"strict": 1.0, "cheap": 0.5, "near": 1.2}
    assert not [pair for pair in compared(table, mode="max") if pair.told]
    (*_, last) = advice(table, costs, mode="max", reference="strict", figure="accuracy")
    assert last == "Choose strict: no way was shown to be better, and those that cost less seem worse."
