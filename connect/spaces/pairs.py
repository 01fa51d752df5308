"""The bridge items that both spaces embedded, joined by id, and rows read when they are needed.

pairs = join(first, second)          # rows of the same id, in both spaces
pairs.first[10:20]                   # (10, D1), read from the shards
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cmcr.connect.spaces.datasets import SpaceData
from cmcr.embeddings import Dataset
from cmcr.errors import MismatchError, StoreError
from cmcr.large.arrays import flatnonzero, numbers, room_for, taken
from cmcr.large.tables import most_repeated, partners


class Rows:
    """Chosen rows of memory-mapped blocks, in any order, read when they are asked for."""

    def __init__(self, blocks: Sequence[np.ndarray], rows: np.ndarray | None = None) -> None:
        """`blocks` are (n, D) each; `rows` number them from the first one's start, all if None."""
        self.blocks = list(blocks)
        self.starts = np.cumsum([0, *map(len, blocks)])
        self.rows = numbers(int(self.starts[-1])) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, D)."""
        return len(self.rows), self.blocks[0].shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes that all of them take in memory."""
        return len(self.rows) * self.shape[1] * self.blocks[0].itemsize

    def __getitem__(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Rows of these, (chosen, D), in the stored precision; no copy where they lie together."""
        rows = self.rows[chosen]
        if len(rows) and (np.diff(rows) == 1).all():
            one = int(np.searchsorted(self.starts, rows[0], side="right")) - 1
            if rows[-1] < self.starts[one + 1]:
                first = int(rows[0] - self.starts[one])
                together = self.blocks[one][first : first + len(rows)]
                together.flags.writeable = False
                return together
        block = np.searchsorted(self.starts, rows, side="right") - 1  # (chosen,)
        result = np.empty((len(rows), self.shape[1]), self.blocks[0].dtype)
        for number in np.unique(block):
            there = block == number
            result[there] = self.blocks[number][rows[there] - self.starts[number]]
        return result

    def batches(self, rows: int = 65_536) -> Iterator[np.ndarray]:
        """All in their order, at most `rows` at a time."""
        for start in range(0, len(self), rows):
            yield self[start : start + rows]

    def subset(self, chosen: slice | np.ndarray) -> "Rows":
        """Rows of these as `Rows`, nothing read."""
        if isinstance(chosen, slice):
            return Rows(self.blocks, self.rows[chosen])
        return Rows(self.blocks, taken(self.rows, chosen))

    def joined(self, other: "Rows") -> "Rows":
        """These and then `other`, nothing read."""
        rows = _together([self.rows, other.rows + self.starts[-1]])
        return Rows([*self.blocks, *other.blocks], rows)


@dataclass(frozen=True)
class Pairs:
    """Bridge items that both spaces embedded: row i of `first` and of `second` is one item."""

    first: Rows  # (pairs, D1)
    second: Rows  # (pairs, D2)
    unmatched: tuple[int, int] = (0, 0)  # rows of each space whose id the other does not have

    def __len__(self) -> int:
        return len(self.first)

    def subset(self, chosen: slice | np.ndarray) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.first.subset(chosen), self.second.subset(chosen), self.unmatched)

    def joined(self, other: "Pairs") -> "Pairs":
        """These and then `other`."""
        first, second = self.first.joined(other.first), self.second.joined(other.second)
        return Pairs(first, second, self.unmatched)


def join(first: SpaceData, second: SpaceData) -> Pairs:
    """The bridge items with one id in both spaces, dataset by dataset, in the order of `first`.

    Raises MismatchError when fewer than two are common, StoreError for an id that occurs twice.
    """
    blocks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    unmatched = [0, 0]
    for one, two in zip(first.bridge, second.bridge, strict=True):
        common = _common_rows(one, two)
        for side, (dataset, chosen) in enumerate(zip((one, two), common, strict=True)):
            chosen += sum(map(len, blocks[side]))
            rows[side].append(chosen)
            blocks[side].extend(dataset.parts())
            unmatched[side] += dataset.rows - len(chosen)
    pairs = Pairs(
        Rows(blocks[0], _together(rows[0])),
        Rows(blocks[1], _together(rows[1])),
        (unmatched[0], unmatched[1]),
    )
    if len(pairs.first) < 2:
        one, two = first.bridge[0], second.bridge[0]
        raise MismatchError(
            f"{first.name} and {second.name} have {len(pairs.first)} bridge items in common, "
            f"at least two are needed; ids look like {_first_id(one)!r} and {_first_id(two)!r}",
            where=f"{one.folder} and {two.folder}",
            fix="embed the same source, with the same ids, in both spaces",
        )
    return pairs


def _common_rows(one: Dataset, two: Dataset) -> tuple[np.ndarray, np.ndarray]:
    ids, others = (dataset.table(["id"])["id"] for dataset in (one, two))
    for dataset, column in ((one, ids), (two, others)):
        if repeated := most_repeated(column):
            raise StoreError(
                f"the id {repeated[0]!r} occurs more than once in {dataset.key}",
                where=dataset.folder,
                fix="give every row an id of its own and make the dataset again",
            )
    partner = partners(ids, others)  # row of `two` for each row of `one`, or -1
    found = flatnonzero(partner >= 0)
    return found, taken(partner, found)


def _together(several: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers of rows, one array after another."""
    if len(several) == 1:
        return several[0]
    together = room_for((sum(map(len, several)),), np.int64)
    np.concatenate(several, out=together)
    return together


def _first_id(dataset: Dataset) -> str:
    first: str = dataset.table(["id"])["id"][0].as_py()
    return first
