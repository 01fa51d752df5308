"""Galleries where they lie in a space, kept from one search to the next.

galleries = Galleries(1 << 32)
place = galleries.place(dataset, rows, "clip-clap", connection)     # to search in
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Dataset
from cmcr.embeddings.search.places import Joint, Place
from cmcr.large.arrays import numbers, room_for

_BLOCK = 65_536


@dataclass(frozen=True)
class Kept(Place):
    """Rows of a dataset whose places are known."""

    vectors: Tensor  # (rows of the dataset, joint)

    def blocks(self, joint: Joint) -> Iterator[Tensor]:
        """As `Place.blocks`."""
        for start in range(0, len(self.rows), _BLOCK):
            rows = self.rows[start : start + _BLOCK]
            first, last = int(rows[0]), int(rows[-1])
            together = last - first == len(rows) - 1
            yield self.vectors[first : last + 1] if together else self.vectors[rows]


class Galleries:
    """The galleries that were searched last, of `most` bytes together; large ones lie in files."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: OrderedDict[tuple[str, str, str], Tensor] = OrderedDict()

    def place(self, dataset: Dataset, rows: np.ndarray, called: str, joint: Joint) -> Place:
        """`rows` of `dataset` in the space `joint`, which is known by what it is `called`."""
        whole = Place(dataset, rows)
        name = (str(dataset.key), dataset.fingerprint, called)
        if name not in self.kept:
            vectors = self._projected(Place(dataset, numbers(dataset.rows)), joint)
            if vectors is None:
                return whole
            self.kept[name] = vectors
            while sum(one.nbytes for one in self.kept.values()) > self.most:
                self.kept.popitem(last=False)
        self.kept.move_to_end(name)
        return Kept(dataset, rows, self.kept[name])

    def _projected(self, place: Place, joint: Joint) -> Tensor | None:
        """(rows, joint); None where that is too much to be kept."""
        vectors: Tensor | None = None
        done = 0
        for block in place.blocks(joint):
            if vectors is None:
                shape = (len(place.rows), block.shape[1])
                if shape[0] * shape[1] * 4 > self.most:
                    return None
                vectors = torch.from_numpy(room_for(shape))
            vectors[done : done + len(block)] = block
            done += len(block)
        return vectors
