"""Items of the store as queries: `SPACE/MODALITY:DATASET#ID` is what is embedded already.

find_stored(store, "playlists/track:catalogue#t17")     # None for any other word
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


def find_stored(store: Path, word: str) -> Stored | None:
    """The item that `word` names; None where it begins with no dataset of `store`.

    Raises UsageError for a dataset that has no such item, StoreError for a damaged one.
    """
    place, mark, name = word.partition("#")
    key = next((key for key in list_datasets(store) if str(key) == place), None) if mark else None
    if key is None:
        return None
    dataset = open_dataset(store, key, check=False)
    ids = dataset.ids()
    if name not in ids:
        raise UsageError(
            f"{key} has no item {name!r}", where=dataset.folder, fix=near(name, ids[:10_000])
        )
    row = ids.index(name)
    told = dataset.table(["uri", "text"]).slice(row, 1).to_pylist()[0]
    item = Item(name, told["uri"] or word, told["text"])
    return Stored(Asked(key.modality, item), dataset, dataset.embeddings()[row])
