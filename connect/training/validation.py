"""How well a connection carries across the bridge, measured without one paired item.

    held = hold(bridge, count, memory)     # the first `count` bridge items are held out
    validate(project, held).scores         # {"hit_rate@1": …, "mrr": …, "log_likelihood": …}

What searches is what will search: memory rows, each called by the bridge item that is nearest to it
within its own space, and in the other space it has to find the item of that name. Methods are told
apart by the log-likelihood of that, at the best of a few temperatures: it ranks them as a test
does where first places do not (docs/methods.md). Items that say the same count as one. Held-out
items are few: a difference that they cannot show (`clearly_worse`) decides nothing, and fewer than
FEWEST that say something of their own can show none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.special import ndtr, stdtrit
from torch import Tensor

DECIDES = "log_likelihood"  # which number of `validate` does
CLEAR = 2  # standard errors of a normal distribution; more where few groups tell the error
FEWEST = 20  # groups of items
NEARLY_ALL = 0.9  # of the items: what the rest says is strays
TEMPERATURES = (0.01, 0.03, 0.1, 0.3)
SAME = 0.8  # of two items with higher cosines in both spaces, centred, neither is a mistake
WORST = -100.0  # the log-likelihood of what is not a number, or rounds to nothing

# side (0 or 1), rows, whether they are of the memory's modality → in the joint space, unit norm
Project = Callable[[int, Tensor, bool], Tensor]


class Queries(NamedTuple):
    """Rows of one space, and the held-out item that each is to find in the other."""

    rows: Tensor  # (q, D)
    items: Tensor  # (q,), numbers below n
    memory: bool  # of the memory's modality, or the bridge items themselves


@dataclass(frozen=True)
class Held:
    """Bridge items kept back, and others to search among: n of n + others."""

    bridge: tuple[Tensor, Tensor]  # (n + others, D) each, the held-out ones first
    queries: tuple[Queries, Queries]
    same: Tensor  # (n, n + others), which of them say what an item says; it does itself

    @cached_property
    def groups(self) -> Tensor:
        """The group of each held-out item, (n,): items that say the same are in one.

        Where fewer than FEWEST hold nearly all, each item counts on its own.
        """
        found = groups(self.same[:, : len(self.same)].cpu().numpy())
        if said(found) < FEWEST:
            found = np.arange(len(found))
        return torch.from_numpy(found).to(self.same.device)


class Validated(NamedTuple):
    """What the held-out items say."""

    scores: dict[str, float]  # of all, every group of items that say the same counting as one
    each: Tensor  # (groups,) the mean log-likelihood of each group, whose mean is `DECIDES`
    items: Tensor  # (n,) the same of each held-out item


def hold(
    bridge: tuple[Tensor, Tensor], count: int, memory: tuple[Tensor | None, Tensor | None]
) -> Held:
    """`Held` of bridge items whose first `count` are kept back, and of (m, D) memory rows."""
    one, two = (_queries(x, count, rows) for x, rows in zip(bridge, memory, strict=True))
    return Held(bridge, (one, two), same(bridge, count))


def same(bridge: tuple[Tensor, Tensor], count: int) -> Tensor:
    """Which items say what each of the first `count` says, in both spaces, (count, items)."""
    found = torch.ones(count, len(bridge[0]), dtype=torch.bool, device=bridge[0].device)
    for x in bridge:
        z = centred(x)
        found &= z[:count] @ z.T > SAME
    found.fill_diagonal_(True)
    return found


def groups(same: np.ndarray) -> np.ndarray:
    """The number of the group of each item, (n,), of `same`, (n, n): also by way of others."""
    found: np.ndarray = connected_components(csr_array(same), directed=False)[1].astype(np.int64)
    return found


def said(groups: np.ndarray) -> int:
    """How many groups hold nearly all items, of the group of each, (n,): how much is said at all.

    Ten numbers in a thousand phrases are ten things, however many phrases are odd ones out.
    """
    sizes = np.sort(np.bincount(groups))[::-1]
    return int(np.searchsorted(sizes.cumsum(), NEARLY_ALL * len(groups))) + 1


def _queries(bridge: Tensor, count: int, memory: Tensor | None) -> Queries:
    """The memory rows whose nearest bridge item is held out; for an item without, its nearest."""
    if memory is None:
        return Queries(bridge[:count], torch.arange(count, device=bridge.device), memory=False)
    cosines = centred(memory) @ centred(bridge).T  # (m, n + others)
    named = cosines.argmax(dim=1)
    rows = torch.nonzero(named < count).flatten()
    found = torch.zeros(count, dtype=torch.bool, device=bridge.device)
    found[named[rows]] = True
    without = torch.nonzero(~found).flatten()
    rows = torch.cat([rows, cosines[:, without].argmax(dim=0)])
    return Queries(memory[rows], torch.cat([named[named < count], without]), memory=True)


def centred(x: Tensor, mean: Tensor | None = None) -> Tensor:
    """Unit vectors of the differences from `mean`, by default that of the unit vectors of `x`."""
    units = F.normalize(x, dim=1)
    return F.normalize(units - (units.mean(dim=0) if mean is None else mean), dim=1)


@torch.no_grad()
def validate(project: Project, held: Held) -> Validated:
    """Share of first places, mean reciprocal rank and log-likelihood, the mean of both ways.

    Where a space has no memory its bridge items themselves search. Ties count against the
    connection, and so does what is not a number.
    """
    found = []
    for side, queries in enumerate(held.queries):
        gallery = project(1 - side, held.bridge[1 - side], False)
        cosines = project(side, queries.rows, queries.memory) @ gallery.T  # (q, n + others)
        right = held.same[queries.items]
        best = cosines.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        rank = 1 + (~(cosines < best - 1e-6) & ~right).sum(dim=1)  # (q,)
        each = torch.stack([(rank == 1).double(), rank.double().reciprocal(),
                            _log_likelihood(cosines, right)])  # fmt: skip
        found.append(_means(each, queries.items))  # (3, n)
    by_item = torch.stack(found).mean(dim=0)  # (3, n)
    by_group = _means(by_item, held.groups)  # (3, groups)
    names = ("hit_rate@1", "mrr", DECIDES)
    scores = dict(zip(names, by_group.mean(dim=1).tolist(), strict=True))
    return Validated(scores, by_group[2], by_item[2])


def _log_likelihood(cosines: Tensor, right: Tensor) -> Tensor:
    """log Σ_right softmax(cosines/T) of each row, (q,), at the T that is best for their mean."""
    below = cosines - cosines.amax(dim=1, keepdim=True)
    tried = []
    for temperature in TEMPERATURES:
        shares = (below / temperature).exp_()  # (q, n + others)
        likelihood = ((shares * right).sum(dim=1) / shares.sum(dim=1)).double().log()
        tried.append(likelihood.nan_to_num(nan=WORST).clamp(min=WORST))
    return max(tried, key=lambda one: float(one.mean()))


def _means(each: Tensor, of: Tensor) -> Tensor:
    """The means of the columns of (k, q) that belong to one number in `of`, (k, numbers)."""
    counts = of.bincount()
    return each.new_zeros(len(each), len(counts)).index_add_(1, of, each) / counts


def behind(one: Tensor, other: Tensor) -> float:
    """By how many standard errors of the paired difference the groups do worse; 99 at most.

    With fewer than FEWEST groups it is nothing.
    """
    change = other - one  # (groups,)
    if len(change) < FEWEST or not change.any():
        return 0.0
    return _errors(change, correction=1)


def clearly_worse(one: Tensor, other: Tensor, errors: float = CLEAR) -> bool:
    """Whether the groups do worse by more than `errors` standard errors of Student's t."""
    freedom = max(len(one) - 1, 1)
    return behind(one, other) > float(stdtrit(freedom, ndtr(errors)))


def falls(one: Tensor, other: Tensor) -> bool:
    """Whether an epoch's items do worse than another's of the same run, each counting on its own.

    That tells apart what near-duplicates cannot: here no method is taken for another.
    """
    return _errors(other - one, correction=0) > CLEAR


def _errors(change: Tensor, correction: int) -> float:
    error = change.std(correction=correction) / len(change) ** 0.5
    return min(float(change.mean() / error.clamp(min=1e-12)), 99.0)
