"""`python -m benchmarks.error_rates`: how often gates decide wrongly, and how often rightly.

Data are drawn with a known drop. At the bound itself neither PASS nor FAIL is right, and each
should come up in about one draw of twenty (the level); at a better drop, PASS should come up as
often as the power that the sample size promises. Prints a Markdown table; then how often any of
five gates passes wrongly when all of them are at their bound and share the level.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.evaluation.paired import Interval, Paired, interval_of_drop

LEVEL = 0.05
DRAWS = 20_000
Generator = np.random.Generator
Draw = Callable[[Generator, float], Paired]
Measure = Callable[[Generator, float], Interval]


def main() -> None:
    """Draw, and print one row for each kind of gate and sample size."""
    print("| metric | documents | drop = bound | shown below | shown above | better drop | PASS |")
    print("|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    for metric, measure, at_bound, better, sizes in CASES:
        for n in sizes:
            at = [measure(n)(generator, at_bound) for _ in range(DRAWS)]
            below = sum(found.high < at_bound for found in at) / DRAWS
            above = sum(found.low > at_bound for found in at) / DRAWS
            good = [measure(n)(generator, better) for _ in range(DRAWS)]
            forget = better > at_bound
            passed = sum(
                found.low > at_bound if forget else found.high < at_bound for found in good
            )
            print(
                f"| {metric} | {n} | {at_bound:g} | {below:.1%} | {above:.1%} | {better:g} "
                f"| {passed / DRAWS:.0%} |"
            )

    print()
    print(f"Any of five gates at {LEVEL / 5:.0%} passes wrongly: {_any_of_five(generator):.1%}")


def _any_of_five(generator: Generator) -> float:
    """How often any gate passes that is at its bound, of five like those of the default recipe."""
    gates = [
        (next_tokens(40), 0.5, True, 0.0),
        (above_chance(0.76, 0.2)(500), 0.5, True, 0.2),
        (next_tokens(150), 0.1, True, 0.0),
        (next_tokens(400), 0.1, True, 0.0),
        (right_or_wrong(0.63, 0.02)(1037), 0.05, False, 0.0),
    ]
    wrong = 0
    for _ in range(DRAWS):
        for draw, bound, relative, chance in gates:
            found = interval_of_drop(
                draw(generator, bound),
                level=LEVEL / len(gates),
                higher_is_better=True,
                relative=relative,
                chance=chance,
            )
            if found.low > bound if bound == 0.5 else found.high < bound:
                wrong += 1
                break
    return wrong / DRAWS


def right_or_wrong(base: float, better: float) -> Callable[[int], Draw]:
    """Documents that are right or wrong; `better` is the share that only the pruned model gets."""

    def of_size(n: int) -> Draw:
        def draw(generator: Generator, drop: float) -> Paired:
            worse = better + drop
            chances = [base - worse, worse, better, 1 - base - better]
            cells = np.repeat(
                [[1, 1], [1, 0], [0, 1], [0, 0]], generator.multinomial(n, chances), 0
            )
            ones = np.ones(n)
            return Paired(*(np.stack([side, ones], 1) for side in cells.T.astype(float)))

        return draw

    return of_size


def above_chance(base: float, chance: float) -> Callable[[int], Draw]:
    """The same, with the drop as a share of the base's distance to chance."""

    def of_size(n: int) -> Draw:
        inner = right_or_wrong(base, 0.01)(n)
        return lambda generator, drop: inner(generator, drop * (base - chance))

    return of_size


def next_tokens(n: int) -> Draw:
    """Next-token top-1: documents of unlike length, skill and drop."""

    def draw(generator: Generator, drop: float) -> Paired:
        length = generator.integers(20, 400, n)
        skill = generator.beta(9, 21, n)
        kept = generator.beta((1 - drop) * 40, drop * 40, n)
        hits = generator.binomial(length, skill), generator.binomial(length, skill * kept)
        return Paired(*(np.stack([each, length], 1).astype(float) for each in hits))

    return draw


def losses(n: int) -> Draw:
    """Next-token losses: documents of unlike length and difficulty, whose loss rises unevenly."""

    def draw(generator: Generator, rise: float) -> Paired:
        length = generator.integers(20, 400, n)
        base = generator.gamma(25, 0.12, n) * length
        pruned = base * (1 + rise * generator.gamma(4, 0.25, n))
        return Paired(*(np.stack([each, length], 1).astype(float) for each in (base, pruned)))

    return draw


def selectivity(n: int) -> Measure:
    """By how much one task's relative drop exceeds another's of four times as many documents."""
    find = _finder(True, 0.0)

    def draw(generator: Generator, difference: float) -> Interval:
        retain = 0.07
        forget = find(next_tokens(n)(generator, retain + difference))
        return forget.minus(find(next_tokens(4 * n)(generator, retain)))

    return draw


def _finder(
    relative: bool, chance: float, higher_is_better: bool = True
) -> Callable[[Paired], Interval]:
    return lambda paired: interval_of_drop(
        paired, level=LEVEL, higher_is_better=higher_is_better, relative=relative, chance=chance
    )


def _one_task(
    draw: Callable[[int], Draw],
    relative: bool = True,
    chance: float = 0.0,
    higher_is_better: bool = True,
) -> Callable[[int], Measure]:
    find = _finder(relative, chance, higher_is_better)
    return lambda n: lambda generator, drop: find(draw(n)(generator, drop))


CASES: tuple[tuple[str, Callable[[int], Measure], float, float, tuple[int, ...]], ...] = (
    ("acc, absolute", _one_task(right_or_wrong(0.63, 0.02), False), 0.05, 0.02, (100, 500, 1000)),
    ("acc, above chance", _one_task(above_chance(0.76, 0.2), True, 0.2), 0.5, 0.7, (50, 100, 500)),
    ("top-1, relative, forget", _one_task(next_tokens), 0.5, 0.58, (20, 40, 140)),
    ("top-1, relative, retain", _one_task(next_tokens), 0.1, 0.07, (40, 150, 500)),
    ("loss, relative, forget", _one_task(losses, True, 0.0, False), 0.5, 0.65, (20, 40, 140)),
    ("loss, relative, retain", _one_task(losses, True, 0.0, False), 0.1, 0.08, (20, 40, 150)),
    ("top-1, relative, selectivity", selectivity, 0.4, 0.5, (20, 40, 140)),
)

if __name__ == "__main__":
    main()
