"""The ranks of every query's matches, exact, in blocks of queries: never all scores at once.

    for rows, ranks in blocks_of_ranks(queries, gallery, matches): ...   # (some,), (some, most)

The i-th best match has rank i + (non-matches that score no less): a tie is decided against us.
Scores closer than `TIE` are a tie, since float32 scores of equal vectors differ in the last bits
from one column to the next. No ranking is made for that: what is counted is how many scores, of
all and of the matches alone, reach that of a match. A few matches are compared with all scores,
for many the scores are counted by buckets first.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from cmcr.evaluate.relevance import Matches
from cmcr.typed import typed

TIE = 1e-6

_BLOCK_SCORES = 1 << 24  # a block has at least so many scores,
_FEW = 16
_COLUMNS = 4096
_BUCKETS = 1 << 16


def blocks_of_ranks(
    queries: Tensor, gallery: Tensor, matches: Matches
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The numbers of queries that have a match, (some,), and their `match_ranks`, (some, most).

    `queries` (Q, D) and `gallery` (N, D) are float32. A block of scores takes at most half the
    memory that the gallery does, or 64 MB where that is more.
    """
    size = len(gallery)
    rows = max(1, gallery.shape[1] // 2, _BLOCK_SCORES // size)
    buffer = torch.empty(min(rows, len(queries)) * size)
    for start in range(0, len(queries), rows):
        matching = matches.block(start, start + rows)  # (block, gallery)
        some = np.flatnonzero(np.diff(matching.indptr))
        if len(some):
            scores = buffer[: len(some) * size].view(len(some), size)  # (some, gallery)
            torch.mm(queries[start + some], gallery.T, out=scores)
            yield start + some, match_ranks(scores, matching[some])


@typed
def match_ranks(
    scores: Float[Tensor, "queries gallery"], matching: csr_matrix
) -> Int[np.ndarray, "queries most"]:
    """The ranks of each query's matches, ascending from 1, zeros after the last.

    `matching` is a sparse (queries, gallery) matrix with a match in each row, and `most` the
    largest number of matches of a query.
    """
    counts = np.diff(matching.indptr)  # (queries,)
    row = np.repeat(np.arange(len(counts)), counts)  # (matches,)
    place = np.arange(len(row)) - np.repeat(matching.indptr[:-1], counts)  # (matches,)
    own = torch.full((len(counts), int(counts.max())), -torch.inf)  # (queries, most)
    own[row, place] = scores[row, matching.indices]
    own = own.sort(dim=1).values  # (queries, most), the best match last
    least = own - TIE
    count = _count_compared if own.shape[1] <= _FEW else _count_in_buckets
    ahead = count(scores, least) - _count_in_sorted(own, least)  # (queries, most)
    nth = np.arange(1, own.shape[1] + 1)  # (most,)
    return np.where(nth <= counts[:, None], nth + ahead.numpy()[:, ::-1], 0)


def _count_compared(scores: Tensor, least: Tensor) -> Tensor:
    """How many scores of a query reach each of its `least`, (queries, most), by comparing all."""
    counts = torch.zeros(least.shape)  # (queries, most)
    # Ones and zeros as float32: torch adds them up many times faster than booleans.
    reached = torch.empty(len(scores), _COLUMNS)
    for start in range(0, scores.shape[1], _COLUMNS):
        part = scores[:, start : start + _COLUMNS]  # (queries, ≤ columns)
        for nth in range(least.shape[1]):
            ones = reached[:, : part.shape[1]]
            torch.ge(part, least[:, nth, None], out=ones)
            counts[:, nth] += ones.sum(dim=1)
    return counts.long()


def _count_in_buckets(scores: Tensor, least: Tensor) -> Tensor:
    """The same where there are many: scores are counted by buckets.

    Only those that share a bucket with one of `least` are sorted and looked at one by one.
    """
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        counts = list(threads.map(_count_row, scores.numpy(), least.numpy()))
    return torch.from_numpy(np.stack(counts))  # (queries, most)


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

    bucket_of, wanted = bucket(scores), bucket(least)  # (gallery,), (most,)
    shared = np.zeros(_BUCKETS, bool)
    shared[wanted] = True
    shared[0] = False  # only where there is no match
    close = np.sort(scores[shared[bucket_of]])
    histogram = np.bincount(bucket_of, minlength=_BUCKETS)  # (buckets,)
    histogram[shared] = 0
    higher = histogram[::-1].cumsum()[::-1]  # (buckets,)
    counts: np.ndarray = higher[wanted] + len(close) - np.searchsorted(close, least)
    return counts


def _count_in_sorted(ascending: Tensor, least: Tensor) -> Tensor:
    return ascending.shape[1] - torch.searchsorted(ascending, least)  # (queries, most)
