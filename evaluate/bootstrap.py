"""Confidence intervals by the bootstrap: queries drawn again, with replacement, by a fixed seed.

intervals(measured.per_query)        # {"mAP": [0.968, 0.981], ...}

Percentile intervals (Efron, Tibshirani: An Introduction to the Bootstrap, 1993, section 13.3).
They say how far a number would move with other queries of the same kind, not with another
gallery or another training.
"""

import numpy as np

from cmcr.evaluate.metrics import MEANS, PerQuery

LEVEL = 0.95
RESAMPLES = 1000

_SEED = 0


def intervals(found: PerQuery) -> dict[str, list[float]]:
    """The 95 % interval of each mean and of `median_rank`, from 1,000 resamples of the queries."""
    order = np.argsort(found.first_rank)
    ranks, scores = found.first_rank[order], found.scores[order]  # (queries,), (queries, means)
    size = len(ranks)
    middle = ((size + 1) // 2, size // 2 + 1)
    rng = np.random.default_rng(_SEED)
    drawn = np.empty((RESAMPLES, len(MEANS) + 1))
    for resample in drawn:
        times = np.bincount(rng.integers(size, size=size), minlength=size)  # (queries,)
        resample[:-1] = times @ scores / size
        resample[-1] = ranks[np.searchsorted(times.cumsum(), middle)].mean()
    low, high = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)  # (metrics,)
    names = (*MEANS, "median_rank")
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(names)}
