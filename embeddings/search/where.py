"""Rows of a dataset by the values of their columns.

rows_where(dataset, parse_where(["split=test", "label=dog,cat"]))      # (rows,), ascending
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cmcr.embeddings.reader import Dataset
from cmcr.errors import UsageError, near
from cmcr.large.arrays import flatnonzero

RowFilter = Mapping[str, Sequence[str]]  # columns, and the values to keep

COLUMNS = ("id", "uri", "text", "label", "group")  # that every dataset has
SPAN = ("start", "end")  # of a span of a film or a recording: seconds


def rows_where(dataset: Dataset, where: RowFilter) -> np.ndarray:
    """The numbers of the rows that have, in each column of `where`, one of the values given.

    Raises UsageError for a column that is not there, or when no row is left.
    """
    there = (*COLUMNS, *dataset.manifest.columns)
    for column in where:
        if column not in there:
            raise UsageError(
                f"{dataset.key} has no column {column!r}",
                where=dataset.folder,
                fix=near(column, there),
            )
    kept = np.ones(dataset.rows, bool)
    for column, wanted in where.items():
        has = [
            not values_of(cell).isdisjoint(wanted)
            for chunk in dataset.table([column])[column].chunks
            for cell in chunk.to_pylist()
        ]
        if not any(has):
            raise _no_row(dataset, {column: wanted})
        kept &= np.array(has)
    rows = flatnonzero(kept)
    if not len(rows):
        raise _no_row(dataset, where)
    return rows


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
        chunks = dataset.table([column])[column].chunks
        cells = (cell for chunk in chunks for cell in chunk.to_pylist())
        there = sorted({value for cell in cells for value in values_of(cell)} - {""})
        fix = near(wanted[0], there) if there else f"the column {column} is empty in every row"
    return UsageError(f"no row of {dataset.key} has {asked}", where=dataset.folder, fix=fix)
