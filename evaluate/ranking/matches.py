"""Which items match, kept sparse: an item has keys, and two items match when they share one.

    matches = find_matches(query_table, gallery_table)   # tables with the columns label and group
    matches.block(0, 256)                                # (256, gallery) sparse
    matches.counts()                                     # (queries,)
    matches.pairs(np.array([0, 0]), np.array([3, 8]))    # (2,) does query 0 match items 3 and 8?
    matches.reverse()                                    # gallery → query
    match_ids(query_ids, gallery_ids)                    # pairs, by id
    unknown_matches(3, 5)                                # nothing says what matches

Two items match when they share `group`; where one of them has no group, when they share a label.
Labels are compared as `plain_name` has them. An empty label or group counts as none. When ids count
instead is decided in evaluate/inputs/items.py.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int
from scipy.sparse import csr_matrix

from cmcr.typed import typed

_BLOCK_PAIRS = 1 << 24

MatchKeys = tuple[str | None, Sequence[str]]
ItemKey = tuple[str, str]


@dataclass(frozen=True)
class Matches:
    """The relation between queries and gallery items, as the keys that each of them has."""

    query_keys: csr_matrix  # (queries, keys)
    gallery_keys: csr_matrix  # (gallery, keys)
    truth: str = ""  # what matching items share: group, label, both, id; "" where none is known

    @property
    def queries(self) -> int:
        """The number of queries."""
        return int(self.query_keys.shape[0])

    @property
    def gallery(self) -> int:
        """The number of gallery items."""
        return int(self.gallery_keys.shape[0])

    def block(self, start: int, stop: int) -> csr_matrix:
        """The matches of queries `start` to `stop`, a sparse (stop - start, gallery) matrix."""
        return self.query_keys[start:stop] @ self._gallery_of_key

    def of(self, queries: np.ndarray) -> csr_matrix:
        """The matches of the queries of these numbers, a sparse (some, gallery) matrix."""
        return self.query_keys[queries] @ self._gallery_of_key

    @typed
    def counts(self) -> Int[np.ndarray, " queries"]:
        """How many gallery items match each query; counted once."""
        return self._counts

    @cached_property
    def _counts(self) -> np.ndarray:
        rows = max(1, _BLOCK_PAIRS // max(1, self.gallery))
        blocks = [
            np.diff(self.block(start, start + rows).indptr)
            for start in range(0, self.queries, rows)
        ]
        counts: np.ndarray = np.concatenate([np.empty(0, np.int64), *blocks])  # (queries,)
        return counts

    @typed
    def pairs(
        self, queries: Int[np.ndarray, " pairs"], items: Int[np.ndarray, " pairs"]
    ) -> Bool[np.ndarray, " pairs"]:
        """Whether each query matches the gallery item beside it."""
        shared = self.query_keys[queries].multiply(self.gallery_keys[items])  # (pairs, keys)
        match: np.ndarray = np.asarray(shared.sum(axis=1)).ravel() > 0  # (pairs,)
        return match

    def reverse(self) -> "Matches":
        """The same relation with the gallery as queries."""
        return Matches(self.gallery_keys, self.query_keys, self.truth)

    def take(self, queries: np.ndarray) -> "Matches":
        """The relation of the queries of these numbers alone."""
        return Matches(self.query_keys[queries], self.gallery_keys, self.truth)

    @cached_property
    def _gallery_of_key(self) -> csr_matrix:
        return self.gallery_keys.T.tocsr()  # (keys, gallery)


def find_matches(query: pa.Table, gallery: pa.Table) -> Matches:
    """The matches between the rows of two tables with the columns `label` and `group`."""
    number: dict[ItemKey, int] = defaultdict(count().__next__)
    query_keys = [[number[key] for key in _query_keys(*item)] for item in _items(query)]
    gallery_keys = [[number[key] for key in _gallery_keys(*item)] for item in _items(gallery)]
    one, other = (_incidence(keys, len(number)) for keys in (query_keys, gallery_keys))
    names = list(number)
    shared = np.intersect1d(one.indices, other.indices)
    kinds = {"group" if names[key][0] == "group" else "label" for key in shared}
    return Matches(one, other, " or ".join(sorted(kinds)))


def match_ids(query: Sequence[str], gallery: Sequence[str]) -> Matches:
    """The pairs of items that have the same id, of two lists in which none occurs twice."""
    number = {name: at for at, name in enumerate(dict.fromkeys([*query, *gallery]))}
    one, other = (
        _incidence([[number[name]] for name in ids], len(number)) for ids in (query, gallery)
    )
    return Matches(one, other, "id")


def unknown_matches(queries: int, gallery: int) -> Matches:
    """Of so many queries and gallery items nothing says which match."""
    return Matches(csr_matrix((queries, 0), dtype=bool), csr_matrix((gallery, 0), dtype=bool))


def plain_name(label: str) -> str:
    """A class's name with "_" as a space: ModelNet40's folder `night_stand` is "night stand"."""
    return label.replace("_", " ")


def _items(table: pa.Table) -> Iterator[MatchKeys]:
    for group, labels in zip(table["group"].to_pylist(), table["label"].to_pylist(), strict=True):
        yield group or None, [plain_name(label) for label in labels or () if label]


# Labels count only where one of the two has no group. A label key is shared by a query without
# group and any gallery item; an ungrouped-label key by any query and a gallery item without group.


def _query_keys(group: str | None, labels: Sequence[str]) -> set[ItemKey]:
    if group is None:
        return {("label", label) for label in labels}
    return {("group", group), *(("ungrouped label", label) for label in labels)}


def _gallery_keys(group: str | None, labels: Sequence[str]) -> set[ItemKey]:
    keys = {("label", label) for label in labels}
    if group is None:
        return keys | {("ungrouped label", label) for label in labels}
    return keys | {("group", group)}


def _incidence(keys: Sequence[Sequence[int]], width: int) -> csr_matrix:
    ends = np.cumsum([0, *map(len, keys)])
    columns = np.fromiter((key for row in keys for key in row), np.int64, ends[-1])
    return csr_matrix((np.ones(len(columns), bool), columns, ends), shape=(len(keys), width))
