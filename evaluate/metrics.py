"""Retrieval metrics from embeddings and matches, exact, in blocks of queries.

    measured = retrieval_metrics(queries, gallery, matches)   # unit vectors, evaluate/relevance.py
    measured.metrics["mAP"], measured.precision               # numbers; precision over recall
    chance_metrics(matches.counts(), matches.gallery)         # expected under a random ranking

Everything follows from the ranks of a query's matches. The i-th best match has rank
i + (non-matches that score no less): a tie is decided against us. Scores closer than `TIE` are
a tie, since float32 scores of equal vectors differ in the last bits from one column to the next.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from cmcr.errors import CmcrError
from cmcr.evaluate.relevance import Matches
from cmcr.typed import typed

METRICS_VERSION = 1
CUTOFFS = (1, 5, 10)
RECALL_LEVELS = (np.arange(100) + 0.5) / 100
TIE = 1e-6

_BLOCK_SCORES = 1 << 24

Metrics = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """The metrics of one ranking, and its mean precision at each of `RECALL_LEVELS`.

    The precision at recall r is the one at match ⌈r·R⌉ of a query's R, not interpolated, so the
    area under the curve is the mAP.
    """

    metrics: Metrics
    precision: Float[np.ndarray, " levels"]


class _PerQuery(NamedTuple):
    """What is kept of each query."""

    first_rank: np.ndarray  # (queries,)
    hit: np.ndarray  # (queries, cutoffs)
    recall: np.ndarray  # (queries, cutoffs)
    average_precision: np.ndarray  # (queries,)
    precision: np.ndarray  # (queries, levels)


@typed
def retrieval_metrics(
    queries: Float[Tensor, "queries dim"], gallery: Float[Tensor, "gallery dim"], matches: Matches
) -> Measured:
    """How well unit vectors `queries` find their matches in `gallery` by cosine.

    - `hit_rate@k`: a match is among the first k (what CLIP papers call R@k).
    - `recall@k`: share of the matches among the first k.
    - `mAP`: precision at the rank of each match, mean over the matches, then over the queries
      (Manning, Raghavan, Schütze: Introduction to Information Retrieval, section 8.4).
    - `median_rank`: median over the queries of the rank of the first match, from 1.

    Queries with no match in the gallery are left out and counted as `queries_without_match`.
    Memory holds one block of scores, never all. Raises CmcrError when no query has a match or a
    value is not finite.
    """
    if not (torch.isfinite(queries).all() and torch.isfinite(gallery).all()):
        raise CmcrError(
            "projected embeddings hold NaN or infinity",
            cure="train the connection again, with a smaller learning rate if it diverged",
        )
    blocks = [_per_query(ranks) for ranks in _blocks_of_ranks(queries, gallery, matches)]
    if not blocks:
        raise _no_matches()
    found = _PerQuery(*(np.concatenate(arrays) for arrays in zip(*blocks, strict=True)))
    metrics = {
        **_at_cutoffs("hit_rate", found.hit.mean(axis=0)),
        **_at_cutoffs("recall", found.recall.mean(axis=0)),
        "mAP": float(found.average_precision.mean()),
        "median_rank": float(np.median(found.first_rank)),
        "gallery_size": matches.gallery,
        "queries_without_match": matches.queries - len(found.first_rank),
    }
    return Measured(metrics, found.precision.mean(axis=0))


@typed
def chance_metrics(counts: Int[np.ndarray, " queries"], gallery: int) -> Metrics:
    """The metrics expected when every order of the gallery is equally likely, exactly.

    `counts` are the matches of each query among the N gallery items. For a query with R:

    - `hit_rate@k` = 1 - C(N - R, k) / C(N, k), `recall@k` = k / N;
    - `mAP` = (H_N + (R - 1) / (N - 1) · (N - H_N)) / N, where H_N = 1 + 1/2 + … + 1/N: rank i is
      a match with probability R / N and has then 1 + (i - 1)(R - 1) / (N - 1) matches up to it;
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
    harmonic = (1 / ranks).sum()
    others = (some - 1) / max(gallery - 1, 1)  # (kinds,)
    return {
        **_at_cutoffs("hit_rate", [met[min(k, gallery) - 1] for k in CUTOFFS]),
        **_at_cutoffs("recall", [min(k, gallery) / gallery for k in CUTOFFS]),
        "mAP": float(weight @ (harmonic + others * (gallery - harmonic)) / gallery),
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


def _blocks_of_ranks(queries: Tensor, gallery: Tensor, matches: Matches) -> Iterator[np.ndarray]:
    """`match_ranks` of the queries that have a match, a block of queries at a time."""
    rows = max(1, _BLOCK_SCORES // max(1, len(gallery)))
    for start in range(0, len(queries), rows):
        matching = matches.block(start, start + rows)  # (block, gallery)
        some = np.flatnonzero(np.diff(matching.indptr))
        if len(some):
            scores = queries[start + some] @ gallery.T  # (some, gallery)
            yield match_ranks(scores, matching[some])


@typed
def match_ranks(
    scores: Float[Tensor, "queries gallery"], matching: csr_matrix
) -> Int[np.ndarray, "queries most"]:
    """The ranks of each query's matches, ascending from 1, zeros after the last.

    `matching` is a sparse (queries, gallery) matrix and `most` the largest number of matches of
    a query. Overwrites the scores of the matches.
    """
    counts = np.diff(matching.indptr)  # (queries,)
    row = np.repeat(np.arange(len(counts)), counts)  # (matches,)
    place = np.arange(len(row)) - np.repeat(matching.indptr[:-1], counts)  # (matches,)
    own = torch.full((len(counts), int(counts.max())), -torch.inf)  # (queries, most)
    own[row, place] = scores[row, matching.indices]
    scores[row, matching.indices] = -torch.inf
    own = own.sort(dim=1).values  # (queries, most), the best match last
    # How many of its query's matches each non-match is ranked before.
    before = torch.searchsorted(own - TIE, scores, right=True, out_int32=True)  # (queries, gallery)
    histogram = np.stack([np.bincount(line, minlength=own.shape[1] + 1) for line in before.numpy()])
    ahead = histogram[:, :0:-1].cumsum(axis=1)  # (queries, most) non-matches before the i-th best
    nth = np.arange(1, own.shape[1] + 1)  # (most,)
    return np.where(nth <= counts[:, None], nth + ahead, 0)


def _per_query(ranks: np.ndarray) -> _PerQuery:
    counts = (ranks > 0).sum(axis=1)  # (queries,)
    within = (ranks[:, :, None] <= np.array(CUTOFFS)) & (ranks > 0)[:, :, None]
    found = within.sum(axis=1)  # (queries, cutoffs)
    nth = np.arange(1, ranks.shape[1] + 1)
    precision = np.where(ranks > 0, nth / np.maximum(ranks, 1), 0)  # (queries, most)
    at_level = np.ceil(RECALL_LEVELS * counts[:, None]).astype(int) - 1  # (queries, levels)
    return _PerQuery(
        first_rank=ranks[:, 0],
        hit=found > 0,
        recall=found / counts[:, None],
        average_precision=precision.sum(axis=1) / counts,
        precision=np.take_along_axis(precision, at_level, axis=1),
    )


def _at_cutoffs(name: str, values: Iterable[float]) -> Metrics:
    return {f"{name}@{k}": float(value) for k, value in zip(CUTOFFS, values, strict=True)}


def _no_matches() -> CmcrError:
    return CmcrError(
        "no query has a match in the gallery",
        cure="items match by a shared `group` or, without one, by a shared `label`: "
        "use the same names in both datasets",
    )
