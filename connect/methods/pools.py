"""Pools: bridge items of both spaces of which nobody knows which is which; pairs are found there.

    problem = with_pools(pose(store, config))   # its data is enlarged by what was found, or not
    problem.data.found                          # pairs that are fitted beside the known ones
    problem.data.pooled                         # for the record
    problem = blind(pose(store, config))        # no pair is known, and all of them are found

From the known pairs `cca` is fitted, both pools are projected, and mutual nearest neighbours are
taken as pairs beside the known ones; that is done ROUNDS times. Neighbours are corrected for
hubness on both sides (arXiv 2410.24114): a row's score is 2 q·g - r(g), where r(g) is the mean of
the largest cosines from g to rows of the other pool.

Pools with little in common do harm. So each part of the known pairs is held out once, pairs are
sought without it, and what is found is kept only where it makes the held-out pairs clearly more
likely (`clearly_worse`) than two other things do: no found pairs at all, and decoys, which are the
found pairs with each second item exchanged for the one most like it in its own pool. Without items
in common, mutual neighbours are alike and wrong, which smooths a fit of few pairs and may pass the
first test; but then decoys do as well as they.

Where no pair is known, those that `cmcr.connect.matching` is sure of take their place, for the
first round alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.connect.connection.projectors import Projector
from cmcr.connect.connection.record import Record
from cmcr.connect.matching.kept import kept
from cmcr.connect.matching.unordered import EXCESS, FEWEST, Match, far_out
from cmcr.connect.matching.unordered import match as find_pairs
from cmcr.connect.methods.closed_forms import mean_embedding
from cmcr.connect.methods.problem import Data, Problem
from cmcr.connect.methods.solve import cross_validated, in_folds, start
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.connect.training.validation import DECIDES, clearly_worse
from cmcr.devices import float32
from cmcr.embeddings import Modality
from cmcr.embeddings.index import search
from cmcr.embeddings.search.hubness import correction, with_correction, with_one
from cmcr.errors import MismatchError

ROUNDS = 6
SOUGHT = 4_096  # rows of the smaller pool that look for their partner in all of the other, at most
BLOCK_ROWS = 65_536  # of a pool that are in memory at a time
FAR_ROWS = 16_384  # while those that lie farthest out are chosen, in float64

Project = Callable[[np.ndarray], Tensor]  # (n, D) of a space → (n, joint), unit norm


def with_pools(problem: Problem) -> Problem:
    """`problem`, with the pairs that its pools give to every method, where they pass the guard.

    With so few known pairs that they can show nothing, nothing is kept. Raises MismatchError for a
    pool that has no rows but those of known pairs.
    """
    if not problem.config.pool:
        return problem
    closed, pools = problem.variant(method="cca", centre=False), unknown(problem.data)
    enlarged = enlarge(problem, pools)
    folds = enlarged.data.whole.folds
    decoys = [one.with_found(_decoys(one.found, pools[1])) for one in folds if one.found]
    tried = {
        "without": cross_validated(closed.on(problem.data.whole)),
        "decoys": in_folds(closed, decoys),
        "with": in_folds(closed, folds),
    }
    said = {name: one.scores[DECIDES] for name, one in tried.items() if one}
    *others, best = (one.items if one else None for one in tried.values())  # (known pairs,) each
    kept = best is not None and all(
        other is not None and len(other) == len(best) and clearly_worse(other, best)
        for other in others
    )
    problem.data.pooled.update(said, kept=kept)  # all parts of the data share it
    return enlarged if kept else problem


def blind(problem: Problem) -> Problem:
    """`problem`, of which no pair is known, with pairs that are found in its pools.

    Raises MismatchError where the search for them is not sure, or a pool has fewer than 50 rows.
    """
    data = problem.data
    first, second = (_all(space) for space in data.spaces)
    for space, rows in zip(data.spaces, (first, second), strict=True):
        if len(rows) < FEWEST:
            raise MismatchError(
                f"the pool of {space.name} has {len(rows)} rows, and from fewer than {FEWEST} "
                "nobody can tell which item is which",
                fix="name a dataset with more items, or one whose ids both spaces have: --train",
            )
    match = kept(
        data.store,
        {
            "pools": [[one.fingerprint for one in space.pool] for space in data.spaces],
            "seed": problem.config.seed,
        },
        partial(_matched, first, second, problem.config.seed),
    )
    if not match.sure:
        again = f", but some of the pairs lead to all of them in {match.agreed} of 4 cases alone"
        raise MismatchError(
            f"nothing is connected, for it is not clear which item is which: both Gram matrices "
            f"agree by {match.agreement:.2f}, those of pools with nothing in common by "
            f"{match.chance:.2f}, after {match.starts} starts{again * (match.excess > EXCESS)}",
            where=" and ".join(str(one.key) for space in data.spaces for one in space.pool),
            fix="name pools that hold the same items, such as all of one catalogue; or some pairs "
            "that are known, with --train",
        )
    pairs = Pairs(first.subset(match.first), second.subset(match.second))
    closed = problem.variant(method="cca", centre=False)
    for _ in range(ROUNDS):
        one, two = start(closed.on(data.of(pairs).whole))
        via = problem.config.via
        both = mutual(first, second, (_into(one, via), _into(two, via)))
        pairs = Pairs(first.subset(both[0]), second.subset(both[1]))
    left = len(first) - len(pairs), len(second) - len(pairs)
    data.pooled.update(found=len(pairs), agreement=match.agreement, chance=match.chance,
                       starts=match.starts, agreed=match.agreed)  # fmt: skip
    return problem.on(data.of(dataclasses.replace(pairs, unmatched=left)))


def _matched(first: Rows, second: Rows, seed: int) -> Match:
    """Pairs of the rows of either pool that lie farthest out."""
    one, two = (far_out(partial(rows.batches, FAR_ROWS)) for rows in (first, second))
    match = find_pairs(first[one], second[two], seed)
    return match._replace(first=one[match.first], second=two[match.second])


def _all(space: SpaceData) -> Rows:
    return Rows([part for dataset in space.pool for part in dataset.parts()])


def as_before(problem: Problem, record: Record) -> Problem:
    """`problem` with its pools where the connection of `record` was made with them."""
    if record.blind:
        return blind(problem)
    return enlarge(problem, unknown(problem.data)) if record.pools.get("kept") else problem


def enlarge(problem: Problem, pools: tuple[Rows, Rows]) -> Problem:
    """`problem`, with the pairs that its pools give beside the known ones."""
    closed = problem.variant(method="cca", centre=False)
    return problem.on(problem.data.seeking(partial(_seek, closed, *pools)))


def unknown(data: Data) -> tuple[Rows, Rows]:
    """The rows of the pools of both spaces, less those of the known pairs."""
    found = []
    for space, known in zip(data.spaces, (data.pairs.first, data.pairs.second), strict=True):
        rows = _all(space)
        rows = rows.subset(np.flatnonzero(~np.isin(_digests(rows), _digests(known))))
        if not len(rows):
            raise MismatchError(
                f"the pool of {space.name} has no rows but those of known pairs",
                fix="name a dataset with more items, or leave --pool out",
            )
        found.append(rows)
    first, second = found
    return first, second


def _digests(rows: Rows) -> np.ndarray:
    """A hash of each row as it is in float16, (rows,): equal ones have the same."""
    factors = np.random.default_rng(0).integers(0, 2**64, rows.shape[1], np.uint64)
    found = [block.astype(np.float16).view(np.uint16).astype(np.uint64) @ factors
             for block in rows.batches(BLOCK_ROWS)]  # fmt: skip
    return np.concatenate([np.empty(0, np.uint64), *found])


def _seek(closed: Problem, first: Rows, second: Rows, data: Data) -> Pairs:
    """Pairs in the pools, from those that `data` may see."""
    via = closed.config.via
    found = data.pairs.subset(np.arange(0))
    for _ in range(ROUNDS):
        one, two = start(closed.on(data.with_found(found)))
        rows = mutual(first, second, (_into(one, via), _into(two, via)))
        found = Pairs(first.subset(rows[0]), second.subset(rows[1]))
    return found


def _decoys(found: Pairs, second: Rows) -> Pairs:
    """`found`, its second items exchanged for those most like them in their pool, by cosine."""
    mean = mean_embedding(second.batches(), second.shape[1]).float()
    own = np.searchsorted(second.rows, found.second.rows)  # (found,) their numbers in the pool
    asking = _centred(second[own], mean)
    best, number = np.full(len(own), -np.inf, np.float32), own.copy()
    for begin in range(0, len(second), BLOCK_ROWS):
        block = _centred(second[begin : begin + BLOCK_ROWS], mean)
        scores, rows = search(asking, block, min(2, len(block)))  # (found, 2)
        scores = np.where(begin + rows == own[:, None], -np.inf, scores)
        column = scores.argmax(axis=1)[:, None]
        score, row = (np.take_along_axis(x, column, axis=1)[:, 0] for x in (scores, rows))
        better = score > best
        best[better], number[better] = score[better], begin + row[better]
    return Pairs(found.first, second.subset(number))


def _centred(rows: np.ndarray, mean: Tensor) -> np.ndarray:
    centred: np.ndarray = normalize(normalize(float32(rows, "cpu"), dim=1) - mean, dim=1).numpy()
    return centred


def _into(projector: Projector, via: Modality) -> Project:
    def project(rows: np.ndarray) -> Tensor:
        return projector.project(float32(rows, "cpu"), via)

    return project


@torch.no_grad()
def mutual(
    first: Rows, second: Rows, project: tuple[Project, Project]
) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of rows that are each other's nearest, (found,) each, hubness corrected.

    SOUGHT rows of the smaller pool, drawn over all of it, look for theirs.
    """
    if len(first) > len(second):
        two, one = mutual(second, first, (project[1], project[0]))
        return one, two
    asked, bank = _drawn(len(first)), _drawn(len(second))
    asking, other = project[0](first[asked]), project[1](second[bank])
    there = _nearest(asking, asking, second, project[1])  # (asked,)
    named, which = np.unique(there, return_inverse=True)
    back = _nearest(project[1](second[named]), other, first, project[0])[which]
    both = back == asked
    return asked[both], there[both]


def _drawn(count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(count).permutation(count)[:SOUGHT])


def _nearest(queries: Tensor, bank: Tensor, gallery: Rows, project: Project) -> np.ndarray:
    """The number of the gallery item with the largest 2 q·g - r(g) for each query, (queries,)."""
    asking = with_one(queries).numpy()
    best, number = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)
    for begin in range(0, len(gallery), BLOCK_ROWS):
        items = project(gallery[begin : begin + BLOCK_ROWS])
        corrected = with_correction(items, correction(items, [bank]))
        scores, rows = search(asking, corrected.numpy(), 1)  # (queries, 1)
        better = scores[:, 0] > best
        best[better], number[better] = scores[better, 0], begin + rows[better, 0]
    return number
