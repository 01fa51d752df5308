"""Retrieval metrics from embeddings and matches, exact, in blocks of queries.

    measured = retrieval_metrics(queries, gallery, matches)   # unit vectors; matches.py
    measured.metrics["mAP"], measured.precision               # numbers; precision over recall
    measured.per_query                                        # what the numbers are means of
    chance_metrics(matches.counts(), matches.gallery)         # expected under a random ranking

Everything follows from the ranks of a query's matches (evaluate/ranking/ranks.py).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cmcr.errors import CmcrError
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.ranks import blocks_of_ranks
from cmcr.evaluate.results import Metrics
from cmcr.large.arrays import room_for
from cmcr.typed import typed

METRICS_VERSION = 5
CUTOFFS = (1, 5, 10)
MAP_CUTOFF = 10  # of nDCG too
MEANS = (
    *(f"hit_rate@{k}" for k in CUTOFFS),
    *(f"recall@{k}" for k in CUTOFFS),
    f"mAP@{MAP_CUTOFF}",
    "mAP",
    f"nDCG@{MAP_CUTOFF}",
)
DISCOUNTS = np.concatenate([[0], 1 / np.log2(np.arange(2, MAP_CUTOFF + 2)), [0]])  # by rank
IDEAL = DISCOUNTS[:-1].cumsum()  # DCG of a query with 0 … 10 matches that come first
RECALL_LEVELS = (np.arange(100) + 0.5) / 100


@dataclass(frozen=True)
class PerQuery:
    """What is known of each query that has a match."""

    rows: np.ndarray  # (found,) the number of the query
    first_rank: np.ndarray  # (found,) the rank of its first match, from 1
    scores: np.ndarray  # (found, means) a column for each of `MEANS`

    def take(self, which: np.ndarray | slice) -> "PerQuery":
        """Those that a mask, an array of places or a slice picks."""
        return PerQuery(self.rows[which], self.first_rank[which], self.scores[which])

    def summary(self) -> Metrics:
        """The mean of each column, and the `median_rank`."""
        means = dict(zip(MEANS, self.scores.mean(axis=0).tolist(), strict=True))
        return means | {"median_rank": float(np.median(self.first_rank))}


@dataclass(frozen=True)
class Measured:
    """The metrics of one ranking, and its mean precision at each of `RECALL_LEVELS`.

    The precision at recall r is the one at match ⌈r·R⌉ of a query's R, not interpolated, so the
    area under the curve is the mAP.
    """

    metrics: Metrics
    precision: Float[np.ndarray, " levels"]
    per_query: PerQuery


@typed
def retrieval_metrics(
    queries: Float[Tensor, "queries dim"], gallery: Float[Tensor, "gallery dim"], matches: Matches
) -> Measured:
    """How well unit vectors `queries` find their matches in `gallery` by cosine.

    - `hit_rate@k`: a match is among the first k (what CLIP papers call R@k).
    - `recall@k`: share of the matches among the first k.
    - `mAP`: precision at the rank of each match, mean over the matches, then over the queries
      (Manning, Raghavan, Schütze: Introduction to Information Retrieval, section 8.4).
    - `mAP@10`: the same from the matches among the first 10, their precisions summed and divided by
      min(R, 10) for R matches, so that it can reach 1. Tables of language-based audio retrieval
      report it: DCASE 2022's task 6b (one match a query), LAION's CLAP (five captions a sound,
      evaluate_clotho_audiocaps in training/train.py).
    - `nDCG@10`: Σ 1/log₂(1 + rank) of the matches among the first 10, divided by what it would be
      if they came first (Järvelin, Kekäläinen 2002, all gains 1), as mteb and trec_eval have it.
    - `median_rank`: median over the queries of the rank of the first match, from 1.

    Queries with no match in the gallery are left out and counted as `queries_without_match`.
    Memory holds one block of scores, never all; what is known of many queries lies in a file
    (`room_for`). Raises CmcrError when no query has a match or a
    value is not finite.
    """
    if not torch.isfinite(queries.sum() + gallery.sum()):
        raise CmcrError(
            "projected embeddings hold NaN or infinity",
            fix="train the connection again, with a smaller learning rate if it diverged",
        )
    answerable = matches.answerable  # (found,)
    if not len(answerable):
        raise _no_matches()
    found = PerQuery(
        answerable,
        room_for(answerable.shape, np.int64),
        room_for((len(answerable), len(MEANS)), np.float64),
    )
    precision = np.zeros(len(RECALL_LEVELS))
    for rows, ranks in blocks_of_ranks(queries, gallery, matches):
        places = np.searchsorted(answerable, rows)  # (some,)
        found.first_rank[places] = ranks[:, 0]
        found.scores[places], curve = _scores(ranks)  # (some, means), (levels,)
        precision += curve
    metrics = found.summary() | {
        "gallery_size": matches.gallery,
        "queries_without_match": matches.queries - len(found.rows),
    }
    return Measured(metrics, precision / len(found.rows), found)


@typed
def chance_metrics(counts: Int[np.ndarray, " queries"], gallery: int) -> Metrics:
    """The metrics expected when every order of the gallery is equally likely, exactly.

    `counts` are the matches of each query among the N gallery items. For a query with R:

    - `hit_rate@k` = 1 - C(N - R, k) / C(N, k), `recall@k` = k / N;
    - `mAP` = (H_N + (R - 1) / (N - 1) · (N - H_N)) / N, where H_N = 1 + 1/2 + … + 1/N: rank i is
      a match with probability R / N and has then 1 + (i - 1)(R - 1) / (N - 1) matches up to it;
      `mAP@10` likewise, from the first 10 ranks and by min(R, 10) instead of R;
    - `nDCG@10` = R / N · Σ 1/log₂(1 + i) of the first 10 ranks, divided by that of the first
      min(R, 10);
    - `median_rank`: the least rank by which half of all queries are expected to have met a match.

    Raises CmcrError when no query has a match.
    """
    some, weight = np.unique(counts[counts > 0], return_counts=True)  # (kinds,), (kinds,)
    if not len(some):
        raise _no_matches()
    weight = weight / weight.sum()
    met = sum(
        share * _met_by_rank(matches, gallery) for matches, share in zip(some, weight, strict=True)
    )  # (gallery,)
    ranks = np.arange(1, gallery + 1)
    first = min(MAP_CUTOFF, gallery)
    harmonic, of_first = (1 / ranks).sum(), (1 / ranks[:first]).sum()
    others = (some - 1) / max(gallery - 1, 1)  # (kinds,)
    at_first = some / np.minimum(some, MAP_CUTOFF) * (of_first + others * (first - of_first))
    gained = some * IDEAL[first] / IDEAL[np.minimum(some, MAP_CUTOFF)]  # (kinds,)
    return {
        **_at_cutoffs("hit_rate", [met[min(k, gallery) - 1] for k in CUTOFFS]),
        **_at_cutoffs("recall", [min(k, gallery) / gallery for k in CUTOFFS]),
        f"mAP@{MAP_CUTOFF}": float(weight @ at_first / gallery),
        "mAP": float(weight @ (harmonic + others * (gallery - harmonic)) / gallery),
        f"nDCG@{MAP_CUTOFF}": float(weight @ gained / gallery),
        "median_rank": float(ranks[np.argmax(met >= 0.5 - 1e-12)]),
        "gallery_size": gallery,
        "queries_without_match": int((counts == 0).sum()),
    }


def _met_by_rank(matches: int, gallery: int) -> np.ndarray:
    """The probability that one of `matches` is among the first i of a random order, i = 1 … N."""
    before = np.arange(gallery)
    missed = np.maximum(gallery - matches - before, 0) / (gallery - before)  # (gallery,)
    met: np.ndarray = 1 - missed.cumprod()  # (gallery,)
    return met


def _scores(ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A query's columns of `MEANS`, (queries, means), and its precisions summed, (levels,)."""
    counts = (ranks > 0).sum(axis=1)  # (queries,)
    found = np.stack(
        [((ranks > 0) & (ranks <= k)).sum(axis=1) for k in CUTOFFS], axis=1
    )  # (queries, cutoffs)
    nth = np.arange(1, ranks.shape[1] + 1)
    precision = np.where(ranks > 0, nth / np.maximum(ranks, 1), 0)  # (queries, most)
    average = precision.sum(axis=1) / counts  # (queries,)
    among_first = np.where(ranks <= MAP_CUTOFF, precision, 0).sum(axis=1)
    average_of_first = among_first / np.minimum(counts, MAP_CUTOFF)  # (queries,)
    discounted = DISCOUNTS[np.minimum(ranks, MAP_CUTOFF + 1)].sum(axis=1)  # (queries,)
    gain = discounted / IDEAL[np.minimum(counts, MAP_CUTOFF)]
    at_level = np.ceil(RECALL_LEVELS * counts[:, None]).astype(int) - 1  # (queries, levels)
    return (
        np.column_stack([found > 0, found / counts[:, None], average_of_first, average, gain]),
        np.take_along_axis(precision, at_level, axis=1).sum(axis=0),
    )


def _at_cutoffs(name: str, values: Iterable[float]) -> Metrics:
    return {f"{name}@{k}": float(value) for k, value in zip(CUTOFFS, values, strict=True)}


def _no_matches() -> CmcrError:
    return CmcrError(
        "no query has a match in the gallery",
        fix="items match by a shared `group` or, without one, by a shared `label`: "
        "use the same names in both datasets",
    )


LEVEL = 0.95
RESAMPLES = 1000
RESAMPLED = 10_000  # queries; of more the resamples have a closed form

_SEED = 0
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


def intervals(found: PerQuery) -> dict[str, list[float]]:
    """The 95 % interval of each mean and of `median_rank`, by the bootstrap over the queries.

    Of at most 10,000 queries they are quantiles of 1,000 resamples. Of more they are the quantiles
    of all resamples, of which none is drawn (`mean_interval`, `median_interval`).
    """
    names = (*MEANS, "median_rank")
    resampled = len(found.rows) <= RESAMPLED
    low, high = _quantiles_of_resamples(found) if resampled else _quantiles_of_all(found)
    return {name: [float(low[at]), float(high[at])] for at, name in enumerate(names)}


def _quantiles_of_resamples(found: PerQuery) -> np.ndarray:
    """Both ends of each interval, (2, means + 1)."""
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
    ends: np.ndarray = np.quantile(drawn, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return ends


def _quantiles_of_all(found: PerQuery) -> np.ndarray:
    means = [mean_interval(column) for column in found.scores.T]
    return np.array([*means, median_interval(found.first_rank)]).T


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """Where 95 % of the means of resamples of n values lie, (queries,) → both ends.

    For values of mean m, standard deviation s and skewness γ the quantiles of a resample's mean are
    m + s / √n (z + γ (z² - 1) / (6 √n)), but for terms of the order s / √n³ (Cornish and Fisher;
    Hall: The Bootstrap and Edgeworth Expansion, 1992). No mean lies beyond the values themselves.
    """
    mean = values.mean()
    off = values - mean
    squares = off * off
    variance = squares.mean()
    if not variance:
        return float(mean), float(mean)
    error = np.sqrt(variance / len(values))
    skew = (squares * off).mean() / variance**1.5 / np.sqrt(len(values))
    ends = mean + error * (np.array([-_Z, _Z]) + skew * (_Z**2 - 1) / 6)
    low, high = ends.clip(values.min(), values.max())
    return float(low), float(high)


def median_interval(values: np.ndarray) -> tuple[float, float]:
    """The same of the median, for many values.

    How many of a resample's n values are at most the k-th smallest is binomial, of n with k / n
    each. The median is at most that one where they are half of them, which is as likely as an end
    asks for at k = n / 2 ± z √n / 2, the binomial of so many taken to be normal.
    """
    size = len(values)
    places = np.ceil(size / 2 + np.array([-_Z, _Z]) * np.sqrt(size) / 2).astype(int) - 1
    low, high = np.partition(values, places)[places]
    return float(low), float(high)
