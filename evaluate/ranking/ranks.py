"""The ranks of every query's matches, exact, in blocks: never all scores at once.

    for rows, ranks in blocks_of_ranks(queries, gallery, matches): ...   # (some,), (some, most)

The i-th best match has rank i + (non-matches that score no less): a tie is decided against us.
Scores closer than `TIE` are a tie, since float32 scores of equal vectors differ in the last bits
from one column to the next. No ranking is made for that: what is counted is how many scores reach
that of a match. A few matches are compared with all scores while a block of them lies in the
cache; for many the scores are counted by buckets first.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from cmcr.evaluate.ranking.matches import Matches
from cmcr.typed import typed

TIE = 1e-6

_FEW = 16
_ROWS, _COLUMNS = 4096, 1024  # of a block of scores, for queries with few matches
_BLOCK_SCORES, _MOST_SCORES = 1 << 24, 1 << 26  # of a block, for queries with many
_BUCKETS = 1 << 16
_AT_ONCE = 1 << 18  # scores of a query that are put into buckets


def blocks_of_ranks(
    queries: Tensor, gallery: Tensor, matches: Matches
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers of queries that have a match, (some,), and their ranks, (some, most).

    Ranks ascend from 1, with zeros after a query's last; `most` is the largest number of matches
    of a query in the block. Queries with few matches come first. `queries` (Q, D) and `gallery`
    (N, D) are float32. Scores of queries with many take at most half the memory that the gallery
    does, or 64 MB where that is more; never more than 256 MB, or the scores of one query.
    """
    counts = matches.counts()  # (queries,)
    few = np.flatnonzero((counts > 0) & (counts <= _FEW))
    many = np.flatnonzero(counts > _FEW)
    for piece in _pieces(len(few), _ROWS):
        rows = few[piece]
        yield rows, ranks_by_comparing(queries[rows], gallery, matches.of(rows))
    whole = max(gallery.shape[1] // 2, _BLOCK_SCORES // len(gallery))
    whole = max(1, min(whole, _MOST_SCORES // len(gallery)))
    buffer = np.empty((min(whole, len(many)), len(gallery)), np.float32)
    for piece in _pieces(len(many), whole):
        rows = many[piece]
        scores = _product(queries[rows].numpy(), gallery.numpy(), buffer)  # (some, gallery)
        yield rows, ranks_by_buckets(torch.from_numpy(scores), matches.of(rows))


def _pieces(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@typed
def ranks_by_comparing(
    queries: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    matching: csr_matrix,
) -> Int[np.ndarray, "queries most"]:
    """The ranks of each query's matches, ascending from 1, zeros after the last.

    `matching` is a sparse (queries, gallery) matrix with a match in each row, and `most` the
    largest number of matches of a query. Every score is compared with that of every match.
    """
    row, place = _places(matching)  # (matches,) each
    x, items = queries.numpy(), gallery.numpy()
    own = np.full((len(x), place.max() + 1), -np.inf, np.float32)  # (queries, most)
    for nth in range(own.shape[1]):
        this = place == nth
        own[row[this], nth] = (x[row[this]] * items[matching.indices[this]]).sum(axis=1)
    least = -np.sort(-own, axis=1) - np.float32(TIE)  # the best match first
    by_column = np.argsort(matching.indices)
    row, column = row[by_column], matching.indices[by_column]
    ahead = np.zeros(own.shape, np.int64)
    scores = np.empty((len(x), _COLUMNS), np.float32)
    reached = np.zeros(scores.shape, bool)

    def count(rows: slice, width: int) -> None:
        for nth in range(own.shape[1]):
            np.greater_equal(
                scores[rows, :width], least[rows, nth, None], out=reached[rows, :width]
            )
            ahead[rows, nth] += _count_true(reached[rows])

    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        shares = _pieces(len(x), -(-len(x) // torch.get_num_threads()))
        for columns in _pieces(len(items), _COLUMNS):
            part = _product(x, items[columns], scores)  # (queries, ≤ columns)
            matched = slice(*np.searchsorted(column, (columns.start, columns.stop)))
            part[row[matched], column[matched] - columns.start] = -np.inf
            if part.shape[1] < _COLUMNS:
                reached[:, part.shape[1] :] = False
            list(threads.map(partial(count, width=part.shape[1]), shares))
    return _ranks(ahead, matching)


def _count_true(mask: np.ndarray) -> np.ndarray:
    """`mask.sum(axis=1)`, eight columns at a time: none of eight bytes counts beyond 255."""
    words = mask.view(np.uint64).sum(axis=1)
    counts: np.ndarray = words.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64)
    return counts


@typed
def ranks_by_buckets(
    scores: Float[Tensor, "queries gallery"], matching: csr_matrix
) -> Int[np.ndarray, "queries most"]:
    """The same from the scores, which are counted by buckets.

    Only those that share a bucket with a match are sorted and looked at one by one.
    """
    row, place = _places(matching)  # (matches,) each
    own = torch.full((len(scores), int(place.max()) + 1), -torch.inf)  # (queries, most)
    own[row, place] = scores[row, matching.indices]
    own = own.sort(dim=1).values  # (queries, most), the best match last
    least = own - TIE
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        reaching = np.stack(list(threads.map(_count_row, scores.numpy(), least.numpy())))
    matches = own.shape[1] - torch.searchsorted(own, least)  # (queries, most)
    return _ranks((reaching - matches.numpy())[:, ::-1], matching)


def _product(queries: np.ndarray, items: np.ndarray, out: np.ndarray) -> np.ndarray:
    """The scores of all pairs, in the first rows and columns of `out`.

    By numpy: on an AMD EPYC its OpenBLAS was a third faster than torch's MKL.
    """
    return np.matmul(queries, items.T, out=out[: len(queries), : len(items)])


def _places(matching: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """The query of each match, and the how-manieth of that query's it is."""
    counts = np.diff(matching.indptr)  # (queries,)
    row = np.repeat(np.arange(len(counts)), counts)  # (matches,)
    return row, np.arange(len(row)) - np.repeat(matching.indptr[:-1], counts)


def _ranks(ahead: np.ndarray, matching: csr_matrix) -> np.ndarray:
    """From the non-matches ahead of each query's matches, the best match first."""
    nth = np.arange(1, ahead.shape[1] + 1)  # (most,)
    return np.where(nth <= np.diff(matching.indptr)[:, None], nth + ahead, 0)


def _count_row(scores: np.ndarray, least: np.ndarray) -> np.ndarray:
    lowest = least[np.isfinite(least)].min()
    scale = np.float32(_BUCKETS - 2) / (max(scores.max(), lowest + TIE) - lowest)

    def bucket(values: np.ndarray) -> np.ndarray:  # rises with the value, 0 well below `lowest`
        place = values - lowest
        place *= scale
        place += 1
        np.maximum(place, 0, out=place)
        number: np.ndarray = place.astype(np.intp)
        return number

    wanted = bucket(least)  # (most,)
    shared = np.zeros(_BUCKETS, bool)
    shared[wanted] = True
    shared[0] = False  # only where there is no match
    histogram = np.zeros(_BUCKETS, np.int64)
    near = []
    for piece in _pieces(len(scores), _AT_ONCE):
        bucket_of = bucket(scores[piece])  # (≤ _AT_ONCE,)
        histogram += np.bincount(bucket_of, minlength=_BUCKETS)
        near.append(scores[piece][shared[bucket_of]])
    close = np.sort(np.concatenate(near))
    histogram[shared] = 0
    higher = histogram[::-1].cumsum()[::-1]  # (buckets,)
    counts: np.ndarray = higher[wanted] + len(close) - np.searchsorted(close, least)
    return counts
