"""What a comparison says, in sentences: which ways were told apart, which to choose, and what would help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_equiv._checks import check_number
from lightning_equiv.audit.words import enumerated, rounded
from lightning_equiv.compare.statistics import Mode, Preference, Table, compared, is_relative, seeds_needed

_MOST_SEEDS = 100
_SAME_COST = 1.05  # a way that costs this much more is not called dearer: timings are not more exact
_ALONE = 0.05  # a p-value, without the correction for many pairs, below which a way seems worse
_TOO_FEW = ("The ways share no seed", "One seed tells nothing apart", "Two seeds tell nothing apart")


def advice(
    table: Table,
    costs: Mapping[str, float],
    *,
    mode: Mode,
    reference: str = "plain",
    figure: str,
    problems: Mapping[str, str] | None = None,
) -> list[str]:
    """Sentences on a comparison that say no more than its intervals do.

    First each way against the reference; then the best by mean, and what was not told apart from it; then what to
    choose, where nothing speaks for another way, and else what would help to decide; last the ways that had problems.
    Ranges are Student's intervals at the level of Holm's step, as `compared` has them.

    Args:
        table: of judged figures, of the runs that ended ok.
        costs: way -> its cost as a multiple of the reference's; a way without one is not compared by cost.
        mode: whether small ("min") or large ("max") figures are better.
        reference: the way that the others are compared with; where it is not in the table nothing is said of it.
        figure: name of what is judged.
        problems: way -> what happened to its runs, such as "diverged in 2 of 5 runs".

    Examples:
        >>> table = {"plain": {0: 0.82, 1: 0.95, 2: 0.78, 3: 0.9}, "remul": {0: 0.41, 1: 0.47, 2: 0.4, 3: 0.46}}
        >>> for sentence in advice(table, {"plain": 1, "remul": 1.8}, mode="min", figure="test_mse"):
        ...     print(sentence)
        remul is better than plain by 48 to 51 %, at 1.8 times the cost.
        Choose remul: it is better than every other way that was measured.
    """
    for way, cost in costs.items():
        check_number(f"the cost of {way!r}", cost, above=0)
    problems = problems or {}
    relative = is_relative(table, mode)
    same = {message: [way for way in problems if problems[way] == message] for message in problems.values()}
    reports = [f"{enumerated(ways)} {message.rstrip('.')}." for message, ways in same.items()]
    ways = [way for way, figures in table.items() if figures]
    if len(ways) < 2:
        return [f"Only {ways[0]} has results." if ways else "No way has results.", *reports]
    pairs = compared(table, mode=mode)
    if not pairs:
        shared = max(len(table[a].keys() & table[b].keys()) for a in ways for b in ways if a != b)
        return [f"{_TOO_FEW[shared]}: run all ways with the same three seeds or more.", *reports]
    comparison = _Comparison(table, ways, pairs, costs, mode, relative, figure, problems)
    against = comparison.against(reference) if reference in ways else []
    return [*against, *comparison.choice(reference), *reports]


@dataclass(frozen=True)
class _Comparison:
    """A comparison with at least one pair of ways that share three seeds; fields as in `advice`."""

    table: Table
    ways: Sequence[str]
    pairs: Sequence[Preference]
    costs: Mapping[str, float]
    mode: Mode
    relative: bool
    figure: str
    problems: Mapping[str, str]

    def against(self, reference: str) -> list[str]:
        """Each way against the reference."""
        said, alike, few = [], [], []
        for way in self.ways:
            if way == reference:
                continue
            pair = self.pair(way, reference)
            if pair is None:
                few.append(way)
            elif pair.told:
                word = "better" if pair.better == way else "worse"
                cost = f", at {self.cost(way, reference)}" if self.priced(way, reference) else ""
                said.append(f"{way} is {word} than {reference} by {self.amount(pair, way)}{cost}.")
            else:
                alike.append(f"{way} ({self.cost(way, reference)})" if self.priced(way, reference) else way)
        if alike:
            said.append(f"{enumerated(alike)} {_were(alike)} not told apart from {reference}.")
        return [*said, *_too_few(few, reference)]

    def choice(self, reference: str) -> list[str]:
        """The best by mean, what was not told apart from it, and which to choose or what would help."""
        beaten = {pair.worse for pair in self.pairs if pair.told}
        tested = [way for way in self.ways if any(way in (p.better, p.worse) for p in self.pairs)]
        ranked = self.ranked(tested)
        best = next((way for way in ranked if way not in beaten), None)
        if best is None:
            return ["Each way is worse than another one, on other seeds: run all ways with the same seeds."]
        rest = [way for way in ranked if way != best]
        alike = [way for way in rest if (pair := self.pair(way, best)) is not None and not pair.told]
        rivals = [way for way in alike if way not in beaten]
        few = [way for way in self.ways if way != best and self.pair(way, best) is None]
        compare = "that was measured" if not few else "that it can be compared with"
        known = [way for way in few if way == reference or self.pair(way, reference) is None]
        doubt = _too_few([way for way in few if reference not in self.ways or way not in known], best)
        if not alike:
            return [*doubt, self.chosen(best, f"it is better than every other way {compare}")]
        said_before = best == reference or alike == [reference]
        names = "" if said_before else f"; {enumerated(alike)} {_were(alike)} not told apart from it"
        among = "" if best == ranked[0] else "Of the ways that no other is better than, "
        said = [f"{among}{best} has the {self.mean_words()} of {self.figure}{names}.", *doubt]
        if not rivals:
            return [*said, self.chosen(best, "of every other way there is a better one")]
        if not self.priced(best, *rivals):
            return [*said, self.help(best, rivals[0])]
        # few seeds tell little apart: a way that seems worse is not advised for its cost
        near = [way for way in rivals if (pair := self.pair(way, best)) is not None and pair.p > _ALONE]
        cheapest = min((best, *near), key=lambda way: self.costs[way])
        if self.costs[best] <= _SAME_COST * self.costs[cheapest]:
            if any(self.costs[best] > _SAME_COST * self.costs[way] for way in rivals):
                return [*said, self.chosen(best, "no way was shown to be better, and those that cost less seem worse")]
            cost = "it is the cheapest of those" if cheapest == best else "none of those is cheaper by more than 5 %"
            return [*said, self.chosen(best, f"no way was shown to be better, and {cost}")]
        pair = self.pair(best, cheapest)
        assert pair is not None
        cost, loss = self.cost(cheapest, best), _at_most(self.gain(pair, best)[1], pair.relative)
        trade = f"it takes {cost} of {best}, which may be better by up to {loss}"
        return [*said, self.chosen(cheapest, trade, where=" where cost counts"), self.help(best, cheapest)]

    def pair(self, one: str, other: str) -> Preference | None:
        """What was found of two ways; None where they share too few seeds."""
        return next((p for p in self.pairs if {p.better, p.worse} == {one, other}), None)

    def gain(self, pair: Preference, way: str) -> tuple[float, float]:
        """From how much to how much `way` is better than the other one of a pair, whose figures are the measure."""
        low, high = pair.low, pair.high
        if way != pair.better:
            low, high = (_inverse(high), _inverse(low)) if pair.relative else (-high, -low)
        return (low, high) if self.mode == "max" else (-high, -low)

    def amount(self, pair: Preference, way: str) -> str:
        """By how much `way` is better, or worse, than the other one of a pair that was told apart."""
        low, high = sorted(abs(bound) for bound in self.gain(pair, way))
        return _range(low, high, pair.relative)

    def priced(self, *ways: str) -> bool:
        """Whether the costs of all of these are known."""
        return all(way in self.costs for way in ways)

    def cost(self, way: str, other: str) -> str:
        """The cost of a way as a multiple of another one's."""
        ratio = rounded(self.costs[way] / self.costs[other])
        return "the same cost" if ratio == "1" else f"{ratio} times the cost"

    def mean_words(self) -> str:
        """Which mean it is that is best."""
        if self.mode == "max":
            return "highest mean"
        return "lowest geometric mean" if self.relative else "lowest mean"

    def ranked(self, ways: Sequence[str]) -> list[str]:
        """From the best mean to the worst, over the seeds that all of these have, or else each over its own.

        Of equal means the cheaper comes first.
        """
        common = frozenset.intersection(*(frozenset(self.table[way]) for way in ways))
        sign = 1 if self.mode == "min" else -1

        def place(way: str) -> tuple[float, float]:
            values = [self.table[way][seed] for seed in sorted(common or self.table[way])]
            mean = math.fsum(math.log(v) if self.relative else v for v in values) / len(values)
            return sign * mean, self.costs.get(way, math.inf)

        return sorted(ways, key=place)

    def chosen(self, way: str, why: str, *, where: str = "") -> str:
        """The recommendation, held back from a way whose runs had problems."""
        if way in self.problems:
            return f"{way} would be the choice{where}: {why}. But not all of its runs ended well, see below."
        return f"Choose {way}{where}: {why}."

    def help(self, one: str, other: str) -> str:
        """How many seeds would tell two ways apart."""
        pair = self.pair(one, other)
        assert pair is not None
        if pair.low == pair.high == 0:
            return f"{one} and {other} gave the same figures: more seeds will not tell them apart."
        needed = seeds_needed(self.table, pair, most=_MOST_SEEDS)
        number = f"About {needed} seeds in the place of {pair.seeds}" if needed else f"More than {_MOST_SEEDS} seeds"
        return f"{number} would tell {one} and {other} apart, if difference and spread are what they are here."


def _were(ways: Sequence[str]) -> str:
    return "was" if len(ways) == 1 else "were"


def _too_few(ways: Sequence[str], other: str) -> list[str]:
    """One sentence on ways that share too few seeds with another one, or none."""
    shares = "shares" if len(ways) == 1 else "share"
    return [f"{enumerated(ways)} {shares} fewer than three seeds with {other}: too few to compare."] if ways else []


def _inverse(fraction: float) -> float:
    """Of (a - b) / b the same with a and b exchanged.

    Examples:
        >>> _inverse(-0.5), _inverse(1.0), _inverse(-1.0)
        (1.0, -0.5, inf)
    """
    return 1 / (1 + fraction) - 1 if fraction > -1 else math.inf


def _range(low: float, high: float, relative: bool) -> str:
    """From how much to how much, 0 <= low <= high, with as many digits as tell the two apart.

    Examples:
        >>> _range(0.712, 0.803, True), _range(0.003, 0.09, True), _range(0.9921, 0.9984, True), _range(0.5, 0.5, True)
        ('71 to 80 %', '0.3 to 9 %', '99.2 to 99.8 %', '50 %')
        >>> (
        ...     _range(2.1, 14.3, True),
        ...     _range(2.1, math.inf, True),
        ...     _range(0.0213, 0.0352, False),
        ...     _range(1e-7, 3e-7, False),
        ... )
        ('a factor of 3.1 to 15', 'a factor of 3.1 or more', '0.021 to 0.035', '1e-07 to 3e-07')
    """
    if math.isinf(high):
        return f"a factor of {rounded(min(1 + low, 1e15))} or more"  # beyond it a fraction is -1 to the last digit
    if relative and high >= 10:
        return f"a factor of {rounded(1 + low)} to {rounded(1 + high)}"
    low, high = (100 * low, 100 * high) if relative else (low, high)
    mark = " %" if relative else ""
    if high - low <= 1e-6 * high:
        return f"{high:.3g}{mark}"
    if high < 1e-3:
        return f"{low:.2g} to {high:.2g}{mark}"
    exponent = math.floor(math.log10(high - low))
    decimals = max(0, (1 if high - low < 2 * 10**exponent else 0) - exponent)
    first = f"{low:.{decimals}f}"
    return f"{first if float(first) else f'{low:.1g}'} to {high:.{decimals}f}{mark}"


def _at_most(high: float, relative: bool) -> str:
    """How much at most.

    Examples:
        >>> _at_most(0.1234, True), _at_most(0.9999, True), _at_most(0.01234, False)
        ('12 %', '100 %', '0.012')
    """
    return f"{rounded(100 * high)} %" if relative else rounded(high)
