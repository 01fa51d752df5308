"""Which pairs a method sees and which are held out: what says the same is on one side.

    fit, held = split(pairs, 0.1, seed=0)        # numbers of pairs, each in order
    folds(pairs, seed=0, device="cpu")           # such, for cross-validation

For `split` pairs say the same whose embeddings are equal, for `folds` those that `same` finds.
Where so many do that nothing else is left, or fewer than FEWEST things are nearly all that is said,
each is held out as if it said something of its own: what searches later will say one of them too.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.methods.closed_forms import mean_embedding
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.connect.training.validation import FEWEST, SAME, centred, groups, said, same
from cmcr.devices import float32
from cmcr.large.arrays import flatnonzero, numbers, room_for, shuffled

LEAST, MOST = 32, 2048  # pairs that are held out
FOLDS = 5
LEAST_FOLDED, FOLDED = 10, 4_096  # up to so many pairs each is held out once; of more some are
BLOCK_ROWS = 8_192
COUNTED_ROWS = 1 << 20  # whose groups are looked at at a time

Cut = tuple[np.ndarray, np.ndarray]  # the numbers of the pairs to fit on, and of those held out


def split(pairs: Pairs, share: float, seed: int) -> Cut:
    """The numbers of the pairs to fit on and of those held out, each in order.

    With 4 × LEAST pairs or fewer a quarter is the most that is held out.
    """
    count = len(pairs)
    if not share:
        return numbers(count), numbers(0)
    held = min(max(round(share * count), LEAST), MOST, count // 4)
    order = shuffled(count, np.random.default_rng(seed))
    return _cut(order, _equal(pairs), held)


def folds(pairs: Pairs, seed: int, device: str) -> list[Cut]:
    """None where there are too few pairs; one, of MOST that are held out, where there are many."""
    random, count = np.random.default_rng(seed), len(pairs)
    if count < LEAST_FOLDED:
        return []
    if count > FOLDED:
        order = shuffled(count, random)
        return [_cut(order, _alike(pairs, order[:MOST], device), MOST)]
    one, two = (float32(rows[:], "cpu") for rows in (pairs.first, pairs.second))
    group = groups(same((one, two), count).numpy())
    group = random.permutation(group.max() + 1)[group]
    if said(group) < FEWEST or np.bincount(group).max() > count / 2:
        group = random.permutation(count)
    fold = group % FOLDS
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in np.unique(fold)]


def _cut(order: np.ndarray, group: np.ndarray, held: int) -> Cut:
    """`held` rows at most are held out, whole groups in the order that their first row is in."""
    head = held + 1
    while True:  # until the groups of the first `head` rows are enough
        head = min(4 * head, len(order))
        drawn, first = np.unique(group[order[:head]], return_index=True)
        drawn = drawn[np.argsort(first)]
        sizes = _sizes(group, drawn)
        drawn, sizes = drawn[sizes <= held], sizes[sizes <= held]
        if sizes.sum() > held or head == len(order):
            break
    chosen = drawn[np.cumsum(sizes) <= held]
    back = np.zeros(len(order), bool)
    if len(chosen):
        for rows in _blocks(len(group)):
            back[rows] = np.isin(group[rows], chosen)
    else:
        back[order[:held]] = True
    return flatnonzero(~back), flatnonzero(back)


def _sizes(group: np.ndarray, of: np.ndarray) -> np.ndarray:
    """How many rows each group in `of` has, (of,)."""
    order = np.argsort(of)
    sizes = np.zeros(len(of), np.int64)
    for rows in _blocks(len(group)):
        place = np.searchsorted(of, group[rows], sorter=order).clip(max=len(of) - 1)
        found = order[place]
        sizes += np.bincount(found[of[found] == group[rows]], minlength=len(of))
    return sizes


def _blocks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, COUNTED_ROWS):
        yield slice(start, min(start + COUNTED_ROWS, rows))


def _equal(pairs: Pairs) -> np.ndarray:
    """The same number for pairs whose stored embeddings are equal, bit by bit, (pairs,)."""
    keys = room_for((len(pairs),), np.uint64)
    for number, rows in enumerate((pairs.first, pairs.second)):
        random = np.random.default_rng(number)
        factors = random.integers(0, 2**64, rows.shape[1], np.uint64)
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            bits = block.view(f"u{block.itemsize}").astype(np.uint64)
            keys[start : start + len(block)] += bits @ factors  # a hash: sums wrap around
    return keys


def _alike(pairs: Pairs, chosen: np.ndarray, device: str) -> np.ndarray:
    """The same number for pairs that say what the same one of `chosen` says, (pairs,).

    Others have one of their own.
    """
    both = [_Alike(rows, chosen, device) for rows in (pairs.first, pairs.second)]
    label = numbers(len(pairs))
    label += len(chosen)
    for start in range(0, len(pairs), BLOCK_ROWS):
        rows = np.arange(start, min(start + BLOCK_ROWS, len(pairs)))
        found = both[0].found(rows)  # (rows, chosen)
        some = found.any(dim=1).cpu().numpy()
        found = found[torch.from_numpy(some)] & both[1].found(rows[some])
        matched, rows = found.any(dim=1).cpu().numpy(), rows[some]
        label[rows[matched]] = found.int().argmax(dim=1).cpu().numpy()[matched]
    label[chosen] = np.minimum(label[chosen], np.arange(len(chosen)))
    root = label[chosen]  # the first of `chosen` that says what this one does, itself or earlier
    for place in range(len(root)):
        root[place] = root[root[place]]
    for block in _blocks(len(label)):
        some = label[block]  # a view
        known = some < len(chosen)
        some[known] = root[some[known]]
    return label


class _Alike:
    """Which of the `chosen` rows of one space others lie near to."""

    def __init__(self, rows: Rows, chosen: np.ndarray, device: str) -> None:
        self.rows, self.device = rows, device
        self.mean = mean_embedding(rows.batches(), rows.shape[1]).float().to(device)
        self.chosen = self._centred(chosen)

    def found(self, rows: np.ndarray) -> Tensor:
        """(rows, chosen)"""
        return self._centred(rows) @ self.chosen.T > SAME

    def _centred(self, rows: np.ndarray) -> Tensor:
        return centred(float32(self.rows[rows], self.device), self.mean)
