"""Which items match, kept sparse: an item has keys, and two items match when they share one.

    matches = find_matches(query_table, gallery_table)   # tables with the columns label and group
    matches.block(0, 256)                                # (256, gallery) sparse
    matches.counts()                                     # (queries,)
    matches.pairs(np.array([0, 0]), np.array([3, 8]))    # (2,) does query 0 match items 3 and 8?
    matches.reverse()                                    # gallery → query
    match_ids(query_ids, gallery_ids)                    # pairs, by id
    unknown_matches(3, 5, "no shared ids")               # nothing says what matches

Two items match when they share `group`; where one of them has no group, when they share a label.
Labels are compared as `plain_name` has them. An empty label or group counts as none. When ids count
instead is decided in evaluate/inputs/items.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int
from scipy.sparse import csr_matrix

from cmcr.large.arrays import room_for
from cmcr.large.tables import partners
from cmcr.typed import typed

_BLOCK_PAIRS = 1 << 24
_BLOCK_ROWS = 1 << 18  # whose keys are worked out at a time
_PLAIN = ("_", " ")

# The keys of some rows, of the numbers of their groups, (rows,), of the rows and the numbers of
# their labels, and of how many groups and labels there are.
_Keys = Callable[[np.ndarray, np.ndarray, np.ndarray, int, int], csr_matrix]


@dataclass(frozen=True)
class Matches:
    """The relation between queries and gallery items, as the keys that each of them has."""

    query_keys: csr_matrix  # (queries, keys)
    gallery_keys: csr_matrix  # (gallery, keys)
    truth: str = ""  # what matching items share: group, label, group or label, id; else ""
    unknown: str = ""  # why none is known, where it is not

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
        items = np.diff(self._gallery_of_key.indptr).astype(np.int64)  # (keys,)
        counts: np.ndarray = self.query_keys @ items  # (queries,)
        several = np.flatnonzero(np.diff(self.query_keys.indptr) > 1)  # an item may share two
        pairs = counts[several].cumsum() // _BLOCK_PAIRS
        for rows in np.split(several, np.flatnonzero(np.diff(pairs)) + 1):
            counts[rows] = np.diff(self.of(rows).indptr)
        return counts

    @cached_property
    def answerable(self) -> np.ndarray:
        """The numbers of the queries that have a match, ascending."""
        return np.flatnonzero(self._counts)

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
        return Matches(self.gallery_keys, self.query_keys, self.truth, self.unknown)

    def take(self, queries: np.ndarray) -> "Matches":
        """The relation of the queries of these numbers alone."""
        return Matches(self.query_keys[queries], self.gallery_keys, self.truth, self.unknown)

    @cached_property
    def _gallery_of_key(self) -> csr_matrix:
        return self.gallery_keys.T.tocsr()  # (keys, gallery)


def find_matches(query: pa.Table, gallery: pa.Table) -> Matches:
    """The matches between the rows of two tables with the columns `label` and `group`."""
    groups = _names(_texts(query["group"]), _texts(gallery["group"]))
    labels = _names(_listed(query["label"])[1], _listed(gallery["label"])[1])
    plain = pc.replace_substring(labels, *_PLAIN).dictionary_encode()  # one of several spellings
    merged, width = np.append(plain.indices.to_numpy(), -1), len(plain.dictionary)

    def keys_of(table: pa.Table, of: _Keys) -> csr_matrix:
        blocks = []
        for start in range(0, len(table), _BLOCK_ROWS):
            some = table.slice(start, _BLOCK_ROWS)
            rows, named = _listed(some["label"])
            group = _numbers(_texts(some["group"]), groups)
            label = merged[_numbers(named, labels)]
            blocks.append(of(group, rows, label, len(groups), width))
        return _stacked(blocks, len(groups) + 2 * width)

    one, other = keys_of(query, _asking), keys_of(gallery, _answering)
    shared = np.flatnonzero(_used(one) & _used(other))
    kinds = {"group" if key < len(groups) else "label" for key in shared}
    return Matches(one, other, " or ".join(sorted(kinds)))


def match_ids(query: pa.ChunkedArray, gallery: pa.ChunkedArray) -> Matches:
    """The pairs of items that have the same id, of two columns in which none occurs twice."""
    partner = partners(query, gallery)
    paired = np.flatnonzero(partner >= 0)
    one = _incidence(paired, partner[paired], (len(query), len(gallery)))
    rows = np.arange(len(gallery))
    return Matches(one, _incidence(rows, rows, (len(gallery), len(gallery))), "id")


def unknown_matches(queries: int, gallery: int, why: str) -> Matches:
    """Of so many queries and gallery items nothing says which match, and `why` not."""
    none_of, none_in = (csr_matrix((count, 0), dtype=bool) for count in (queries, gallery))
    return Matches(none_of, none_in, unknown=why)


def first_labels(table: pa.Table) -> pa.Array:
    """The class of each row: its first label, null where there is none; (rows,) of text."""
    rows, labels = _listed(table["label"])
    row, first = np.unique(rows, return_index=True)
    place = np.full(len(table), -1)  # (rows,) of the first label
    place[row] = first
    return labels.combine_chunks().take(pa.array(place, mask=place < 0))


def plain_name(label: str) -> str:
    """A class's name with "_" as a space: ModelNet40's folder `night_stand` is "night stand"."""
    return label.replace(*_PLAIN)


def _texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.string())


def _listed(column: pa.ChunkedArray) -> tuple[np.ndarray, pa.ChunkedArray]:
    """The row that each label of a column of lists is of, and the labels."""
    chunks = column.cast(pa.list_(pa.string())).chunks
    starts = np.cumsum([0, *map(len, chunks)])
    rows = [pc.list_parent_indices(chunk).to_numpy() + start
            for chunk, start in zip(chunks, starts[:-1], strict=True)]  # fmt: skip
    names = pa.chunked_array([pc.list_flatten(chunk) for chunk in chunks], pa.string())
    return np.concatenate([np.empty(0, np.int64), *rows]), names


def _names(one: pa.ChunkedArray, other: pa.ChunkedArray) -> pa.Array:
    """The different texts of two columns, none of them empty."""
    names = pc.unique(pa.chunked_array([*one.chunks, *other.chunks], pa.string())).drop_null()
    return names.filter(pc.not_equal(names, ""))


def _numbers(texts: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """Each text as the number of its name, -1 for none and for an empty one."""
    found: np.ndarray = pc.index_in(texts, value_set=names).fill_null(-1).to_numpy()
    return found.astype(np.int64)


def _stacked(blocks: list[csr_matrix], keys: int) -> csr_matrix:
    """Blocks of rows as one matrix; a large one lies in files."""
    rows = sum(block.shape[0] for block in blocks)
    count = sum(block.nnz for block in blocks)
    kind = np.int32 if max(count, keys) < 2**31 else np.int64
    indices, ends, ones = (room_for(shape, of) for shape, of in
                           (((count,), kind), ((rows + 1,), kind), ((count,), bool)))  # fmt: skip
    ones[:] = True
    row = done = 0
    for block in blocks:
        indices[done : done + block.nnz] = block.indices
        ends[row + 1 : row + 1 + block.shape[0]] = block.indptr[1:] + done
        row, done = row + block.shape[0], done + block.nnz
    return csr_matrix((ones, indices, ends), shape=(rows, keys))


def _used(matrix: csr_matrix) -> np.ndarray:
    """Which keys some row has, (keys,) bool."""
    used = np.zeros(matrix.shape[1], bool)
    used[matrix.indices] = True
    return used


# Labels count only where one of the two has no group. A label's first key is shared by a query
# without group and any gallery item, its second by any query and a gallery item without group.


def _asking(
    group: np.ndarray, rows: np.ndarray, label: np.ndarray, groups: int, labels: int
) -> csr_matrix:
    """The keys of queries: of each row its group, and of each of its labels one of both keys."""
    grouped, told = np.flatnonzero(group >= 0), np.flatnonzero(label >= 0)
    rows, label = rows[told], label[told]
    keys = groups + label + labels * (group[rows] >= 0)
    return _incidence(np.concatenate([grouped, rows]), np.concatenate([group[grouped], keys]),
                      (len(group), groups + 2 * labels))  # fmt: skip


def _answering(
    group: np.ndarray, rows: np.ndarray, label: np.ndarray, groups: int, labels: int
) -> csr_matrix:
    """The keys of gallery items: a label's second one where the row has no group."""
    grouped, told = np.flatnonzero(group >= 0), np.flatnonzero(label >= 0)
    rows, label = rows[told], groups + label[told]
    alone = group[rows] < 0
    return _incidence(np.concatenate([grouped, rows, rows[alone]]),
                      np.concatenate([group[grouped], label, labels + label[alone]]),
                      (len(group), groups + 2 * labels))  # fmt: skip


def _incidence(rows: np.ndarray, keys: np.ndarray, shape: tuple[int, int]) -> csr_matrix:
    return csr_matrix((np.ones(len(rows), bool), (rows, keys)), shape=shape)
