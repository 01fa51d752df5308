"""How two sets lie to each other: distance, cosines of what matches, and of what does not.

cosines = related_cosines(queries, gallery, matches)      # unit vectors; (drawn, 16)
false_positive_rate(cosines, unrelated)                   # of the median pair
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.embeddings.search.chance import false_positives
from cmcr.evaluate.ranking.matches import Matches
from cmcr.typed import typed

DRAWN = 4096  # items
_MATCHES = 16  # drawn for each of them
_BLOCK_PAIRS = 1 << 24
_SEED = 0


def draw(size: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Numbers of at most 4,096 of `size` items, ascending; the same each time."""
    rng = rng or np.random.default_rng(_SEED)
    return np.sort(rng.permutation(size)[:DRAWN])


@typed
def related_cosines(
    queries: Float[Tensor, "queries dim"], gallery: Float[Tensor, "gallery dim"], matches: Matches
) -> Float[Tensor, " pairs"]:
    """The cosines of unit vectors `queries` with matches of theirs, 16 drawn for each query.

    Of 4,096 queries where more have a match, drawn with a fixed seed as well. Empty where none has.
    """
    rng = np.random.default_rng(_SEED)
    answerable = np.flatnonzero(matches.counts())
    drawn = answerable[draw(len(answerable), rng)]  # (drawn,)
    cosines = [torch.empty(0)]
    for rows in np.array_split(drawn, 1 + len(drawn) * len(gallery) // _BLOCK_PAIRS):
        matching = matches.of(rows)  # (rows, gallery)
        nth = rng.random((len(rows), _MATCHES)) * np.diff(matching.indptr)[:, None]  # (rows, 16)
        items = matching.indices[matching.indptr[:-1, None] + nth.astype(np.int64)]  # (rows, 16)
        cosines.append(torch.einsum("qd,qmd->qm", queries[rows], gallery[items]).ravel())
    return torch.cat(cosines)


@typed
def distance(one: Float[Tensor, "items dim"], other: Float[Tensor, "others dim"]) -> float:
    """How far the means of two sets of unit vectors lie apart."""
    return float(torch.linalg.vector_norm(one.mean(dim=0) - other.mean(dim=0)))


def false_positive_rate(related: np.ndarray, unrelated: np.ndarray) -> float:
    """The share of `unrelated` scores, ascending, that are as high as the median `related` one.

    In the terms of detection it is the false positive rate at a recall of one half. It is counted
    as `false_positives` does for a search, so that it is never below one in their number.
    """
    return float(false_positives(np.median(related, keepdims=True), unrelated)[0])
