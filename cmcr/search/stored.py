"""Items of the store as queries: `SPACE/MODALITY:DATASET#ID` is what is embedded already.

find_stored(store, ["playlists/track:catalogue#t17", "rain.wav"])     # {0: ...}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcr.embeddings import Dataset, Key, list_datasets, open_dataset
from cmcr.errors import UsageError, near
from cmcr.extract import Asked, Item


@dataclass(frozen=True)
class Stored:
    """An item of the store that is searched for, by its vector, (D,)."""

    asked: Asked
    dataset: Dataset
    vector: np.ndarray

    @property
    def key(self) -> Key:
        """The dataset that it is in."""
        return self.dataset.key


def find_stored(store: Path, words: Sequence[str]) -> dict[int, Stored]:
    """The items that `words` name, by their places; none for a word that begins with no dataset.

    A dataset is opened and gone through once, however many items of it are named. Raises
    UsageError for a dataset that has no such item, StoreError for a damaged one.
    """
    keys = {str(key): key for key in list_datasets(store)} if any("#" in w for w in words) else {}
    named: dict[Key, dict[int, str]] = {}  # ids by the place of their word
    for at, word in enumerate(words):
        place, mark, name = word.partition("#")
        if mark and place in keys:
            named.setdefault(keys[place], {})[at] = name
    found: dict[int, Stored] = {}
    for key, names in named.items():
        dataset = open_dataset(store, key, check=False)
        rows = np.array(_rows(dataset, list(names.values())))
        told = dataset.lines(["uri", "text"], rows)
        ascending = np.unique(rows)
        vectors = dict(zip(ascending, np.concatenate([*dataset.chosen(ascending)]), strict=True))
        for (at, name), row, cells in zip(names.items(), rows, told, strict=True):
            item = Item(name, cells["uri"] or words[at], cells["text"])
            found[at] = Stored(Asked(key.modality, item), dataset, vectors[row])
    return found


def _rows(dataset: Dataset, names: Sequence[str]) -> list[int]:
    """The row of each id."""
    ids = dataset.table(["id"])["id"].combine_chunks()
    rows: list[int | None] = pc.index_in(pa.array(names, ids.type), value_set=ids).to_pylist()
    there: list[int] = []
    for name, row in zip(names, rows, strict=True):
        if row is None:
            raise UsageError(
                f"{dataset.key} has no item {name!r}",
                where=dataset.folder,
                fix=near(name, ids[:10_000].to_pylist()),
            )
        there.append(row)
    return there
