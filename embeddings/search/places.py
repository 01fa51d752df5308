"""Where is searched: a space, and rows of its datasets.

places = open_places(store, [Key("clip", "image", "photos")], {"label": ["dog"]})
for block in places[0].blocks(connection): ...     # (block, joint)
OwnSpace(store)                                    # one space as it is, in a connection's place
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.devices import float32
from cmcr.embeddings.reader import Dataset, list_datasets, open_dataset
from cmcr.embeddings.schema import Key, Modality
from cmcr.embeddings.search.where import RowFilter, rows_where

Kind = tuple[str, Modality]  # a space and one of its modalities


class Joint(Protocol):
    """The space that is searched in: a connection's, or one as it is."""

    def project(self, space: str, embeddings: Any, modality: Modality | None = None) -> Tensor:
        """(n, D) of a space to (n, joint), unit norm."""
        ...

    def unpaired(self, space: str, modality: Modality) -> list[Key]:
        """Datasets of unpaired rows."""
        ...


class OwnSpace:
    """A space of the store as it is, without a connection; every dataset of it is unpaired."""

    def __init__(self, store: Path) -> None:
        self.store = store

    def project(self, space: str, embeddings: Any, modality: Modality | None = None) -> Tensor:
        """The rows made unit vectors, (n, D)."""
        return normalize(float32(embeddings, "cpu"), dim=1)

    def unpaired(self, space: str, modality: Modality) -> list[Key]:
        """All datasets of the modality."""
        return [
            key
            for key in list_datasets(self.store)
            if (key.space, key.modality) == (space, modality)
        ]


@dataclass(frozen=True)
class Place:
    """Rows of a dataset to search in."""

    dataset: Dataset
    rows: np.ndarray

    @property
    def projection_of(self) -> Key | None:
        """The dataset that this one is the projection of, if it is one."""
        source = self.dataset.manifest.source
        return Key.parse(str(source["dataset"])) if source.get("kind") == "projection" else None

    @property
    def kind(self) -> Kind:
        """The space and modality that its items are of."""
        key = self.projection_of or self.dataset.key
        return key.space, key.modality

    def spread(self, most: int) -> "Place":
        """At most `most` of the rows, evenly spread."""
        picked = np.linspace(0, len(self.rows) - 1, min(len(self.rows), most)).astype(np.int64)
        return replace(self, rows=self.rows[picked])

    def blocks(self, joint: Joint) -> Iterator[Tensor]:
        """Its rows in the joint space as they are read, (block, joint)."""
        key = self.dataset.key
        for block in self.dataset.chosen(self.rows):
            if self.projection_of is None:
                yield joint.project(key.space, block, key.modality).cpu()
            else:
                yield normalize(float32(block, "cpu"), dim=1)


def open_places(store: Path, keys: Sequence[Key], where: RowFilter) -> list[Place]:
    """The rows of datasets that have, in each column of `where`, one of the values given.

    Raises UsageError for a dataset or a column that is not there, or where no row is left.
    """
    datasets = [open_dataset(store, key) for key in keys]
    return [Place(dataset, rows_where(dataset, where)) for dataset in datasets]
