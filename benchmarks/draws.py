"""Data with a known drop: what a gate would see of two models, for `benchmarks.error_rates`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pipeline.evaluation.paired import Numbers, Paired

Generator = np.random.Generator
Draw = Callable[[Generator, float], Paired]  # of a number of documents, by their true drop


def right_or_wrong(base: float, better: float) -> Callable[[int], Draw]:
    """Documents that are right or wrong; `better` is the share that only the pruned model gets."""

    def of_size(n: int) -> Draw:
        def draw(generator: Generator, drop: float) -> Paired:
            worse = better + drop
            chances = [base - worse, worse, better, 1 - base - better]
            counts = generator.multinomial(n, chances)
            cells = np.repeat([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], counts, axis=0)
            return _means(*cells.T)

        return draw

    return of_size


def above_chance(base: float, chance: float) -> Callable[[int], Draw]:
    """The same, with the drop as a share of the base's distance to chance."""

    def of_size(n: int) -> Draw:
        inner = right_or_wrong(base, 0.01)(n)
        return lambda generator, drop: inner(generator, drop * (base - chance))

    return of_size


def rarely_lost(n: int) -> Draw:
    """Ten samples a document; a few documents are solved by all and lost entirely."""

    def draw(generator: Generator, drop: float) -> Paired:
        lost = generator.random(n) < drop
        base = np.where(lost, 1.0, generator.binomial(10, 0.3, n) / 10)
        return _means(base, np.where(lost, 0.0, base))

    return draw


def ten_samples(n: int) -> Draw:
    """Ten samples a document, of unlike difficulty, each solved a little less often."""

    def draw(generator: Generator, drop: float) -> Paired:
        skill = generator.beta(2, 2, n)
        base, pruned = (generator.binomial(10, share) / 10 for share in (skill, skill * (1 - drop)))
        return _means(base, pruned)

    return draw


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


def skewed_losses(n: int) -> Draw:
    """Losses that rise by a lognormal share: on one document in a thousand, 13 times the mean."""

    def draw(generator: Generator, rise: float) -> Paired:
        length = generator.integers(20, 400, n)
        base = generator.gamma(25, 0.12, n) * length
        pruned = base * (1 + rise * generator.lognormal(-0.5, 1.0, n))
        return Paired(*(np.stack([each, length], 1).astype(float) for each in (base, pruned)))

    return draw


def rare_rises(n: int) -> Draw:
    """Losses that stay the same, to the digit, on all documents but about a tenth of them."""

    def draw(generator: Generator, rise: float) -> Paired:
        length = generator.integers(20, 400, n)
        base = generator.gamma(25, 0.12, n) * length
        risen = generator.random(n) < 0.1
        factor = 1 + np.where(risen, 10 * rise * generator.gamma(4, 0.25, n), 0.0)
        return Paired(*(np.stack([each, length], 1) for each in (base, base * factor)))

    return draw


def _means(base_N: Numbers, pruned_N: Numbers) -> Paired:
    ones_N = np.ones(len(base_N))
    return Paired(np.stack([base_N, ones_N], 1), np.stack([pruned_N, ones_N], 1))
