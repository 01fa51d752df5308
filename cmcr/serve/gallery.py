"""Galleries where they lie in a space, kept from one search to the next.

galleries = Galleries(1 << 32)
place = galleries.place(dataset, rows, "clip-clap", connection)     # to search in
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Dataset
from cmcr.embeddings.search.places import Joint, Place
from cmcr.large.arrays import numbers, room_for

log = logging.getLogger(__name__)

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
        """`rows` of `dataset` in the space `joint`, which is known by what it is `called`.

        Kept is a dataset of which most rows are asked for, if there is room for all of it.
        """
        name = (str(dataset.key), dataset.fingerprint, called)
        if name not in self.kept:
            vectors = None
            if 2 * len(rows) > dataset.rows:
                vectors = self._projected(Place(dataset, numbers(dataset.rows)), joint)
            if vectors is None:
                return Place(dataset, rows)
            self.kept[name] = vectors
            while sum(one.nbytes for one in self.kept.values()) > self.most:
                self.kept.popitem(last=False)
        self.kept.move_to_end(name)
        return Kept(dataset, rows, self.kept[name])

    def _projected(self, place: Place, joint: Joint) -> Tensor | None:
        """(rows, joint); None where that is too much to be kept."""
        (one,) = place.spread(1).blocks(joint)
        shape = (len(place.rows), one.shape[1])
        if math.prod(shape) * one.itemsize > self.most:
            return None
        try:
            vectors = torch.from_numpy(room_for(shape))
        except OSError as error:
            log.warning("a gallery is not kept: %s", error)
            return None
        done = 0
        for block in place.blocks(joint):
            vectors[done : done + len(block)] = block
            done += len(block)
        return vectors
