"""Items of two spaces of which nobody knows which is which: matched by their Gram matrices.

    rows = far_out(blocks)             # those of a large pool to be matched
    found = match(first, second)       # (n1, D1), (n2, D2)
    found.sure                         # else the spaces are not to be connected
    found.first, found.second          # (pairs,) numbers of rows that are one item

Items that are like each other in one space are so in the other. A space's rows are centred, taken
to their RANK first principal axes, and half whitened; K is their Gram matrix. From one item that
lies far out a beam search puts DEPTH items beside items of the other space, so that Σ (K₁ - K₂)² is
least. These few pairs give a map by their cross-covariance. Annealing does the rest: the map gives
cosines, these a doubly stochastic matrix (Sinkhorn), sharper each time, and that a map; it ends
with the best permutation (cf. Grave et al. 2018, arXiv 1805.11222, and the linear step of FAQ,
Vogelstein et al. 2015). How good it is its agreement says: the correlation of what stands off the
diagonals of both Gram matrices of unit vectors.

A search always finds something. So the same search is made for pools that share nothing and yet are
as these are: the halves of either pool, drawn at random, one beside the other. It is sure where the
best agreement is EXCESS of the way from what these give to 1, and where annealing again, each time
from DEPTH of the found pairs, drawn at random, ends with the same pairs in AGREED of AGAIN cases.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import embedding_bag, normalize

from cmcr.progress import progress

ANCHORS = 1_000  # of `far_out`
FEWEST = 50  # rows below which a half says nothing
RANK, WHITENING = 100, 0.5
DEPTH, BEAM = 14, 4_000  # items of a beam search, and what it keeps
STARTS, CHANCE_STARTS = 120, 4  # of a search, and of one between halves
COLD, WARM, STEPS = 10.0, 2.0, 8  # inverse temperatures, in standard deviations of the cosines
EXCESS, AGREED, AGAIN = 0.2, 3, 4
SAME = 0.5  # of the pairs, where annealing again ends with the same


class Match(NamedTuple):
    """What the search found."""

    first: np.ndarray  # (pairs,) rows
    second: np.ndarray  # (pairs,) rows, each the partner of the one at its place
    agreement: float  # of both Gram matrices, 1 at most
    chance: float  # the most that pools gave which share nothing
    starts: int  # that were tried
    agreed: int  # times of AGAIN that annealing from some of these pairs ended with them

    @property
    def excess(self) -> float:
        """How far the agreement is from chance to 1."""
        return (self.agreement - self.chance) / max(1 - self.chance, 1e-6)

    @property
    def sure(self) -> bool:
        """Whether these pairs are to be trusted."""
        return self.excess > EXCESS and self.agreed >= AGREED


class _Pool(NamedTuple):
    """Rows of one space on its principal axes, (n, rank): of mean square 1, and of length 1."""

    rows: Tensor
    units: Tensor


@torch.no_grad()
def match(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Match:
    """The pairs among (n1, D1) and (n2, D2) rows.

    Needs FEWEST rows of either, and time that grows with their cube: `far_out` chooses some.
    Deterministic for a seed and a number of threads.
    """
    random = np.random.default_rng(seed)
    chance = max(_by_chance(rows, random) for rows in (first, second))
    if len(first) > len(second):
        found = _search(_pool(second), _pool(first), chance, random)
        return found._replace(first=found.second, second=found.first)
    return _search(_pool(first), _pool(second), chance, random)


def far_out(blocks: Callable[[], Iterable[np.ndarray]]) -> np.ndarray:
    """The numbers of the ANCHORS rows that lie farthest out, ascending; of fewer rows all.

    `blocks` begins anew each time it is called; one block of (n, D) rows is held at a time.
    """
    count, total, second = 0, torch.zeros(()), torch.zeros(())
    for x in _units(blocks()):
        count, total, second = count + len(x), total + x.sum(dim=0), second + x.T @ x
    if count <= ANCHORS:
        return np.arange(count)
    mean = total / count
    axes = _half_whitening(second - count * torch.outer(mean, mean), count)
    lengths = torch.cat([((x - mean) @ axes).square().sum(dim=1) for x in _units(blocks())])
    return np.sort(lengths.topk(ANCHORS).indices.numpy())


def _units(blocks: Iterable[np.ndarray]) -> Iterator[Tensor]:
    for block in blocks:
        yield normalize(torch.from_numpy(block.astype(np.float64)), dim=1)


def _by_chance(rows: np.ndarray, random: np.random.Generator) -> float:
    """The best agreement between random halves of `rows`."""
    order, half = random.permutation(len(rows)), len(rows) // 2
    one, two = _pool(rows[order[:half]]), _pool(rows[order[half : 2 * half]])
    return max(agreement for agreement, _ in _starts(one, two, CHANCE_STARTS))


def _search(one: _Pool, two: _Pool, chance: float, random: np.random.Generator) -> Match:
    """The best of several starts; no more of them than it takes to be sure."""
    found: Match | None = None
    with progress("match", STARTS, "starts") as advance:
        for number, (agreement, there) in enumerate(_starts(one, two, STARTS), 1):
            if found is None or agreement > found.agreement:
                found = Match(np.arange(len(there)), there, agreement, chance, number, 0)
                if found.excess > EXCESS:
                    found = found._replace(agreed=_again(one, two, there, random))
            if found.sure:
                return found
            advance(1)
    assert found is not None
    return found._replace(starts=STARTS)


def _again(one: _Pool, two: _Pool, there: np.ndarray, random: np.random.Generator) -> int:
    """How often some of the pairs, the row of `two` for each of `one`, lead to all of them."""
    agreed = 0
    for _ in range(AGAIN):
        some = random.permutation(len(there))[:DEPTH]
        items, partners = torch.from_numpy(some), torch.from_numpy(there[some])
        ended = anneal(one.units, two.units, items, partners)
        agreed += float((ended == there).mean()) > SAME
    return agreed


def _starts(one: _Pool, two: _Pool, count: int) -> Iterator[tuple[float, np.ndarray]]:
    """Agreement, and the row of `two` for each of `one`, of several starts, from either in turn."""
    grams = one.rows @ one.rows.T, two.rows @ two.rows.T
    firsts = [gram.diagonal().argsort(descending=True).tolist() for gram in grams]
    depth = min(DEPTH, len(one.rows))
    for number in range(count):
        side = number % 2
        items = torch.tensor(tied(grams[side], firsts[side][number // 2], depth))
        partners = beam(grams[side], grams[1 - side], items.tolist())[0]
        pairs = (partners, items) if side else (items, partners)
        there = anneal(one.units, two.units, *pairs)
        yield agreement(one.units, two.units, there), there


def _pool(rows: np.ndarray) -> _Pool:
    x = normalize(torch.from_numpy(rows.astype(np.float32)), dim=1)
    x = x - x.mean(dim=0)
    z = x @ _half_whitening(x.T @ x, len(x))
    z = z / z.square().sum(dim=1).mean().sqrt()
    return _Pool(z, normalize(z, dim=1))


def _half_whitening(second: Tensor, count: int) -> Tensor:
    """(D, rank), onto the principal axes, of `count` centred rows with these second moments."""
    values, axes = torch.linalg.eigh(second)  # ascending
    rank = min(RANK, count - 1, len(values))
    values, axes = values[-rank:].clamp(min=1e-9 * float(values[-1])), axes[:, -rank:]
    onto: Tensor = axes * values ** (-WHITENING / 2)
    return onto


def tied(gram: Tensor, begin: int, count: int) -> list[int]:
    """`count` rows of a Gram matrix, (n, n): `begin`, then always the one most tied to those."""
    items, ties = [begin], gram[begin].square()
    while len(items) < count:
        ties[items] = -1
        items.append(int(ties.argmax()))
        ties = ties + gram[items[-1]].square()
    return items


def beam(gram1: Tensor, gram2: Tensor, items: list[int]) -> Tensor:
    """Rows of `gram2` beside `items` of `gram1`, (≤ BEAM, items), by Σ (K₁ - K₂)², least first."""
    size, own = len(gram2), gram2.diagonal()
    square = gram2.square()
    found = torch.arange(size)[:, None]
    cost = (gram1[items[0], items[0]] - own).square()  # (beam,)
    for place, item in enumerate(items[1:], 1):
        ties = gram1[items[:place], item]  # (place,)
        crossed = embedding_bag(found, gram2, mode="sum",
                                per_sample_weights=ties.repeat(len(found), 1))  # fmt: skip
        whole = embedding_bag(found, square, mode="sum") - 2 * crossed + ties.square().sum()
        more = 2 * whole + (gram1[item, item] - own).square() + cost[:, None]  # (beam, n2)
        more.scatter_(1, found, torch.inf)
        cost, where = _least(more.flatten(), BEAM)
        found = torch.cat([found[where // size], (where % size)[:, None]], dim=1)
    return found


def _least(costs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least of `costs`, `count` at most, in order, and their places."""
    every = max(len(costs) // (16 * count), 1)
    few = costs[::every]  # of which most above the bound are above it in all
    bound = few.kthvalue(min(2 * count // every + 8, len(few))).values
    there = torch.nonzero(costs <= bound).flatten()
    values, order = costs[there].sort()
    kept = values.isfinite().nonzero().flatten()[:count]
    return values[kept], there[order[kept]]


def anneal(one: Tensor, two: Tensor, items: Tensor, partners: Tensor) -> np.ndarray:
    """The row of `two`, (n2, rank), for each of `one`, (n1, rank), from a few pairs."""
    turn = _softened(one[items].T @ two[partners])
    for sharpness in np.geomspace(WARM, COLD, STEPS):
        scores = one @ turn @ two.T
        scores = scores / scores.std()
        turn = _softened(one.T @ doubly_stochastic(scores, float(sharpness)) @ two)
    return np.asarray(linear_sum_assignment(scores.numpy(), maximize=True)[1])


def _softened(cross: Tensor) -> Tensor:
    """U f Vᵀ with f = (s/s₀)^½: directions count by how sure they are, not by how large."""
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    turn: Tensor = (u * (s / s[0]).sqrt()) @ vh
    return turn


def doubly_stochastic(scores: Tensor, sharpness: float, rounds: int = 10) -> Tensor:
    """exp(sharpness · scores), (n1, n2), scaled until rows and columns sum alike (Sinkhorn)."""
    p = torch.exp(sharpness * (scores - scores.amax(dim=1, keepdim=True)))
    right = p.new_ones(p.shape[1])
    for _ in range(rounds):
        left = 1 / (p @ right).clamp(min=1e-30)
        right = p.shape[0] / p.shape[1] / (p.T @ left).clamp(min=1e-30)
    return left[:, None] * p * right


def agreement(one: Tensor, two: Tensor, there: np.ndarray) -> float:
    """Pearson's correlation of cosines within `one` and within the rows `there` of `two`."""
    chosen = two[torch.from_numpy(there)]
    off = ~torch.eye(len(one), dtype=torch.bool)
    both = torch.stack([(x @ x.T)[off] for x in (one, chosen)])
    return float(torch.corrcoef(both)[0, 1])
