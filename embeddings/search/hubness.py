"""Nearest Neighbor Normalization: items that are near to everything stop answering every query.

    bank = open_bank(store, [Key("clap", "audio", "audioset")], without=[(queries.key, ids)])
    r = correction(gallery, bank.blocks(connection.project))          # (gallery,)
    scores = 2 * with_one(queries) @ with_correction(gallery, r).T    # 2 q·g - r(g)

r(g) is the mean of the k largest cosines from a gallery item g to a bank of unpaired items of the
query's modality (Chowdhury et al. 2024, https://arxiv.org/abs/2410.24114). What is searched is an
ordinary inner product: any FAISS index of [g, -r(g)/2] answers [q, 1].
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.embeddings.index import search
from cmcr.embeddings.inventory import read_digests
from cmcr.embeddings.reader import Dataset, list_datasets, open_dataset
from cmcr.embeddings.schema import Key, Modality
from cmcr.errors import UsageError
from cmcr.large.arrays import flatnonzero, room_for
from cmcr.large.tables import partners
from cmcr.typed import typed

Hubness = Literal["none", "nnn"]
NNN: Hubness = "nnn"
K = 5

_BLOCK = 65_536  # items that are compared with the bank at a time

Texts: TypeAlias = Sequence[str] | pa.ChunkedArray
Project = Callable[[str, np.ndarray, Modality], Tensor]  # space, (n, D), modality → (n, joint)


@dataclass(frozen=True)
class Bank:
    """Unpaired rows of one modality: datasets, and the numbers of the rows of each that count."""

    parts: Sequence[tuple[Dataset, np.ndarray]]

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(len(rows) for _, rows in self.parts)

    @property
    def summary(self) -> dict[str, Any]:
        """What a result says of the correction: k, the rows of each dataset, those left out."""
        return {
            "k": K,
            "rows": {str(one.key): len(rows) for one, rows in self.parts},
            "left_out": sum(one.rows - len(rows) for one, rows in self.parts),
        }

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides the correction, beside the gallery."""
        return self.summary | {"fingerprints": [one.fingerprint for one, _ in self.parts]}

    def blocks(self, project: Project) -> Iterator[Tensor]:
        """The rows in the joint space as they are read, (block, joint)."""
        for dataset, rows in self.parts:
            for block in dataset.chosen(rows):
                yield project(dataset.key.space, block, dataset.key.modality).cpu()


def open_bank(
    store: Path,
    keys: Sequence[Key],
    without: Iterable[tuple[Key, Texts]] = (),
    known: Collection[str] = (),
) -> Bank:
    """The rows of those datasets `keys` that `store` has, less the items that `without` names.

    `without` is datasets and ids: an item is the one of the same id in the same dataset of the
    same modality, in whichever space, and in any other what was made from the same file, bytes or
    text. `known` is uris and texts that are left out as well. Raises UsageError when nothing is
    left.
    """
    there, without = set(list_datasets(store)), list(without)
    kept = []
    searched = [(open_dataset(store, key, check=False), ids) for key, ids in without
                if key in there and key.modality in {one.modality for one in keys}]  # fmt: skip
    same = {column: _texts(found, list(known)) for column, found in _made_from(searched).items()}
    for dataset in (open_dataset(store, key) for key in keys if key in there):
        refused = [
            ids
            for key, ids in without
            if (key.modality, key.dataset) == (dataset.key.modality, dataset.key.dataset)
        ]
        kept_rows = np.ones(dataset.rows, bool)
        for column, out in (("id", _texts(*refused)), *same.items()):
            if len(out):
                kept_rows &= ~_among(dataset, column, out)
        rows = flatnonzero(kept_rows)
        if len(rows):
            kept.append((dataset, rows))
    if not kept:
        named = ", ".join(map(str, keys))
        gone = ", ".join(str(key) for key in keys if key not in there)
        raise UsageError(
            "there are no unpaired rows to correct hubs by"
            + (f": none of {named} is left without what is searched for and in" if named else
               ": the connection was made from none of the query's modality")
            + (f"; {gone} is not in the store under that name" if gone else ""),
            where=store,
            fix="connect again with such rows as --memory, or search with --hubness none",
        )  # fmt: skip
    return Bank(kept)


_MADE_FROM = ("uri", "text", "sha256")


def _made_from(items: Iterable[tuple[Dataset, Texts]]) -> dict[str, pa.ChunkedArray]:
    """What the items of these ids were made from: uris, texts, sha256 of their content."""
    found: dict[str, list[pa.ChunkedArray]] = {column: [] for column in _MADE_FROM}
    for dataset, ids in items:
        wanted = pa.array(_among(dataset, "id", _texts(ids)))
        for column in _MADE_FROM:
            values = _column(dataset, column).filter(wanted)
            found[column].append(values.filter(pc.not_equal(values, "")))
    return {column: _texts(*several) for column, several in found.items()}


def _texts(*several: Texts) -> pa.ChunkedArray:
    """All of them as one column."""
    chunks = [one.chunks if isinstance(one, pa.ChunkedArray) else [pa.array(one, pa.string())]
              for one in several]  # fmt: skip
    return pa.chunked_array(itertools.chain.from_iterable(chunks), pa.string())


def _among(dataset: Dataset, column: str, values: pa.ChunkedArray) -> np.ndarray:
    """Which rows have one of `values` in the column, (rows,) bool."""
    return partners(_column(dataset, column), values) >= 0


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    if name == "sha256":
        digests = read_digests(dataset.folder, [part.rows for part in dataset.manifest.parts])
        return pa.chunked_array([digests])
    return dataset.table([name])[name]


@typed
def correction(
    gallery: Float[Tensor, "gallery dim"], bank: Iterable[Tensor], k: int = K
) -> Float[Tensor, " gallery"]:
    """r(g): the mean of the `k` largest cosines from each item to the rows of `bank`.

    All are unit vectors in float32; `bank` comes in blocks of (rows, dim), of which one is held.
    Of fewer than `k` rows it is the mean over all.
    """
    items = gallery.numpy()
    best = np.empty((len(items), 0), np.float32)  # (gallery, ≤ k)
    for block in bank:
        former = best
        best = np.empty((len(items), min(k, former.shape[1] + len(block))), np.float32)
        for start in range(0, len(items), _BLOCK):
            rows = slice(start, start + _BLOCK)
            nearest, _ = search(items[rows], block.numpy(), k)  # (≤ _BLOCK, ≤ k)
            both = np.concatenate([former[rows], nearest], axis=1)
            best[rows] = -np.sort(-both, axis=1)[:, :k]
    return torch.from_numpy(best.mean(axis=1))


@typed
def with_correction(
    gallery: Float[Tensor, "gallery dim"], r: Float[Tensor, " gallery"]
) -> Float[Tensor, "gallery dim_and_one"]:
    """[g, -r(g)/2], what an index is built over."""
    return _longer(gallery, -r[:, None] / 2)


@typed
def with_one(queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "queries dim_and_one"]:
    """[q, 1], what such an index is asked: the inner product is q·g - r(g)/2."""
    return _longer(queries, queries.new_ones(len(queries), 1))


def _longer(vectors: Tensor, value: Tensor) -> Tensor:
    """Vectors, (n, dim), with one value more each, (n, 1)."""
    longer = torch.from_numpy(room_for((len(vectors), vectors.shape[1] + 1)))
    return torch.cat([vectors, value], dim=1, out=longer)
