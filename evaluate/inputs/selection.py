"""Which rows of a dataset count: those with the values that are asked for.

sounds = choose_rows(open_dataset(store, Key("clap", "audio", "esc50")), {"fold": ["5"]})
sounds.rows, sounds.selected               # the rows, and how many they are of how many
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cmcr.embeddings import Dataset, Key
from cmcr.errors import UsageError, near
from cmcr.evaluate.results import Selected

RowFilter = Mapping[str, Sequence[str]]  # columns, and the values to keep

_COLUMNS = ("id", "uri", "text", "label", "group")


@dataclass(frozen=True)
class Selection:
    """Rows of a dataset."""

    dataset: Dataset
    rows: np.ndarray  # (items,) numbers of the rows, ascending
    where: RowFilter  # what they were selected by; empty where all count

    @property
    def key(self) -> Key:
        """The dataset they are of."""
        return self.dataset.key

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides which rows they are."""
        return {
            "dataset": str(self.key),
            "fingerprint": self.dataset.fingerprint,
            "where": self.selected["where"],
        }

    @property
    def selected(self) -> Selected:
        """What a row of results says of it."""
        where = {column: list(values) for column, values in self.where.items()}
        return Selected(where=where, items=len(self.rows), of=self.dataset.rows)


def choose_rows(dataset: Dataset, where: RowFilter | None = None) -> Selection:
    """The rows of `dataset` that have, in each column of `where`, one of the values given.

    Raises UsageError for a column that is not there, or when no row is left.
    """
    where = where or {}
    there = (*_COLUMNS, *dataset.manifest.columns)
    for column in where:
        if column not in there:
            raise UsageError(
                f"{dataset.key} has no column {column!r}",
                where=dataset.folder,
                fix=near(column, there),
            )
    kept = np.ones(dataset.rows, bool)
    for column, wanted in where.items():
        cells = dataset.table([column])[column].to_pylist()
        has = [not values_of(cell).isdisjoint(wanted) for cell in cells]
        if not any(has):
            raise _no_row(dataset, {column: wanted})
        kept &= np.array(has)
    rows = np.flatnonzero(kept)
    if not len(rows):
        raise _no_row(dataset, where)
    return Selection(dataset, rows, where)


def parse_where(filters: Sequence[str]) -> dict[str, list[str]]:
    """`COLUMN=VALUE[,VALUE...]` strings as columns and the values to keep.

    Raises UsageError for a string without "=" or a column that is named twice.
    """
    where: dict[str, list[str]] = {}
    for text in filters:
        column, equals, values = text.partition("=")
        if not equals or not column:
            raise UsageError(f"{text!r} selects nothing", fix="write COLUMN=VALUE[,VALUE...]")
        if column in where:
            raise UsageError(
                f"the column {column!r} is named twice", fix=f"write {column}=VALUE,VALUE"
            )
        where[column] = values.split(",")
    return where


def values_of(cell: Any) -> set[str]:
    """What a cell has to select by, as text: each of a list, nothing where it is empty."""
    values = cell if isinstance(cell, list | tuple) else [cell]
    return {str(one) for one in values if one is not None}


def _no_row(dataset: Dataset, where: RowFilter) -> UsageError:
    """Why nothing is left: the values that the column has, or that no row has all that is asked."""
    if not where:
        return UsageError(f"{dataset.key} has no rows", where=dataset.folder)
    asked = " and ".join(f"{column}={','.join(values)}" for column, values in where.items())
    if len(where) > 1:
        fix = "each of them is there, but in no row together: leave one out"
    else:
        (column, wanted), *_ = where.items()
        cells = dataset.table([column])[column].to_pylist()
        there = sorted(set[str]().union(*map(values_of, cells)) - {""})
        fix = near(wanted[0], there) if there else f"the column {column} is empty in every row"
    return UsageError(f"no row of {dataset.key} has {asked}", where=dataset.folder, fix=fix)
