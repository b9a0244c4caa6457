"""`python -m benchmarks.error_rates`: how often gates decide wrongly, and how often rightly.

At the bound itself neither PASS nor FAIL is right, and each should come up at most as often as the
level says. For documents that are right or wrong that is summed up over all paired tables, at the
worst of all values that nobody asked about. Other data are drawn with a known drop; at a better
one, PASS should come up as often as the power that the sample size promises. Prints two Markdown
tables; then how often any of five gates passes wrongly that are all at their bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.draws import (
    Draw,
    above_chance,
    losses,
    next_tokens,
    rare_rises,
    rarely_lost,
    right_or_wrong,
    skewed_losses,
    ten_samples,
)
from benchmarks.tables import worst_absolute, worst_relative
from pipeline.evaluation.bounded import BoundedDrop, bounded_drop
from pipeline.evaluation.paired import Interval, Paired, interval_of_drop

LEVELS = (0.05, 0.01)
DRAWS = 10_000
FIVE = 0.05 / 5
Generator = np.random.Generator
Shown = list[tuple[bool, bool]]  # by level: below the bound, above it
Measure = Callable[[Generator, float, float], Shown]  # of draws with a drop, against a bound


def main() -> None:
    """Sum up and draw, and print one row for each kind of gate, sample size and level."""
    print("| right or wrong | documents | drop = bound | level | shown below | shown above |")
    print("|---|---|---|---|---|---|")
    for n, bounds in ((20, (0.02, 0.1, 0.3)), (100, (0.02, 0.05, 0.1, 0.3)), (500, (0.02, 0.1))):
        for bound in bounds:
            for level in LEVELS:
                _print_exact("absolute", n, bound, level, worst_absolute(n, bound, level))
    for n in (20, 100):
        for bound, chance in ((0.1, 0.0), (0.1, 0.25), (0.5, 0.0), (0.5, 0.2)):
            for level in LEVELS:
                scale = f"above chance {chance}" if chance else "relative"
                _print_exact(scale, n, bound, level, worst_relative(n, bound, level, chance))
    print()

    columns = "drawn | documents | drop = bound | level | shown below | shown above | better drop"
    print(f"| {columns} | PASS |")
    print("|---|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for case in CASES:
        for n in case.sizes:
            _print_drawn(case, n, generator)
    print()
    wrong = _any_of_five(np.random.default_rng(1))
    print(f"Any of five gates at {FIVE:.0%} passes wrongly: {wrong:.1%}")


def _print_exact(
    scale: str, n: int, bound: float, level: float, rates: tuple[float, float]
) -> None:
    below, above = rates
    print(f"| {scale} | {n} | {bound:g} | {level:.0%} | {below:.2%} | {above:.2%} |", flush=True)


def _print_drawn(case: Case, n: int, generator: Generator) -> None:
    measure = case.measure(n)
    at, good = (
        np.array([measure(generator, drop, case.bound) for _ in range(DRAWS)]).mean(axis=0)
        for drop in (case.bound, case.better)
    )
    for level, (below, above), (kept, forgotten) in zip(LEVELS, at, good, strict=True):
        passed = forgotten if case.better > case.bound else kept
        print(
            f"| {case.name} | {n} | {case.bound:g} | {level:.0%} | {below:.1%} | {above:.1%} "
            f"| {case.better:g} | {passed:.0%} |",
            flush=True,
        )


def _any_of_five(generator: Generator) -> float:
    """How often any gate passes that is at its bound, of five like those of the default recipe."""
    below, above, level = 0, 1, LEVELS.index(FIVE)
    gates = (
        (one_task(next_tokens)(40), 0.5, above),
        (one_task(above_chance(0.76, 0.2), chance=0.2)(500), 0.5, above),
        (one_task(next_tokens)(150), 0.1, below),
        (one_task(next_tokens)(400), 0.1, below),
        (one_task(right_or_wrong(0.63, 0.02), relative=False)(1037), 0.05, below),
    )
    wrong = 0
    for _ in range(DRAWS):
        shown = ((measure(generator, bound, bound), passing) for measure, bound, passing in gates)
        wrong += any(found[level][passing] for found, passing in shown)
    return wrong / DRAWS


def one_task(
    draw: Callable[[int], Draw],
    *,
    relative: bool = True,
    chance: float | None = None,
    higher_is_better: bool = True,
) -> Callable[[int], Measure]:
    """Draw documents of one task, and test their drop."""

    def shown(paired: Paired, bound: float) -> Shown:
        if paired.is_bounded:
            return _by_p_value(_bounded(paired, relative, chance), bound)
        return _by_interval(
            [
                interval_of_drop(
                    paired,
                    level=level,
                    higher_is_better=higher_is_better,
                    relative=relative,
                    chance=chance,
                )
                for level in LEVELS
            ],
            bound,
        )

    return lambda n: lambda generator, drop, bound: shown(draw(n)(generator, drop), bound)


def _bounded(paired: Paired, relative: bool, chance: float | None) -> BoundedDrop:
    slope, constant = (1.0, -(chance or 0.0)) if relative else (0.0, 1.0)
    base_N, pruned_N = paired.base_N2[:, 0], paired.pruned_N2[:, 0]
    return bounded_drop(base_N, pruned_N, sign=1.0, slope=slope, constant=constant)


def _by_p_value(drop: BoundedDrop, bound: float) -> Shown:
    """What the interval of such documents shows, in a tenth of its time."""
    below, above = drop.p_below(bound), drop.p_above(bound)
    return [(below <= level, above <= level) for level in LEVELS]


def _by_interval(found: Sequence[Interval], bound: float) -> Shown:
    return [(interval.high < bound, interval.low > bound) for interval in found]


def selectivity(n: int) -> Measure:
    """By how much one task's relative drop exceeds another's of four times as many documents."""

    def measure(generator: Generator, difference: float, bound: float) -> Shown:
        retain = 0.07
        both = next_tokens(n)(generator, retain + difference), next_tokens(4 * n)(generator, retain)
        found = []
        for level in LEVELS:
            forgotten, kept = (
                interval_of_drop(paired, level=level, higher_is_better=True, relative=True)
                for paired in both
            )
            found.append(forgotten.minus(kept))
        return _by_interval(found, bound)

    return measure


class Case(NamedTuple):
    """A kind of gate, whose documents are drawn."""

    name: str
    measure: Callable[[int], Measure]
    bound: float
    better: float
    sizes: tuple[int, ...]


CASES = (
    Case("acc, absolute", one_task(right_or_wrong(0.63, 0.02), relative=False), 0.05, 0.02,
         (100, 500, 1000)),
    Case("acc, above chance", one_task(above_chance(0.76, 0.2), chance=0.2), 0.5, 0.7,
         (50, 100, 500)),
    Case("pass@1 of ten, absolute, few lost entirely", one_task(rarely_lost, relative=False),
         0.05, 0.01, (20, 100, 500)),
    Case("pass@1 of ten, relative", one_task(ten_samples), 0.1, 0.02, (20, 100, 500)),
    Case("top-1, relative, forget", one_task(next_tokens), 0.5, 0.58, (20, 40, 140)),
    Case("top-1, relative, retain", one_task(next_tokens), 0.1, 0.07, (40, 150, 500)),
    Case("loss, relative, forget", one_task(losses, higher_is_better=False), 0.5, 0.65,
         (20, 40, 140)),
    Case("loss, relative, retain", one_task(losses, higher_is_better=False), 0.1, 0.08,
         (20, 40, 150)),
    Case("loss, relative, few rise", one_task(rare_rises, higher_is_better=False), 0.1, 0.05,
         (20, 100, 200)),
    Case("top-1, relative, selectivity", selectivity, 0.4, 0.5, (20, 40, 140)),
    Case("loss, relative, lognormal rise", one_task(skewed_losses, higher_is_better=False),
         0.1, 0.06, (40, 150, 500)),
)  # fmt: skip

if __name__ == "__main__":
    main()
