"""Which rows of a dataset count: those with the values that are asked for.

sounds = choose_rows(open_dataset(store, Key("clap", "audio", "esc50")), {"fold": ["5"]})
sounds.rows, sounds.selected               # the rows, and how many they are of how many
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cmcr.embeddings import Dataset, Key
from cmcr.embeddings.search.where import RowFilter, rows_where
from cmcr.evaluate.results import Selected


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
    """The rows of `dataset` that `where` asks for. Raises what `rows_where` raises."""
    where = where or {}
    return Selection(dataset, rows_where(dataset, where), where)
