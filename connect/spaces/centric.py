"""Training rows centred on a modality that is not the bridge (Ex-MCR, arXiv 2310.08884, 3.2).

    found = centred_on("second", store, spaces, pairs, temperature=0.01, device="cuda")
    pooled([bridge_rows, found])

A row is four embeddings: of the bridge in both spaces, and of the other modality of each. Bridge
items are the queries of `pseudo`, and aggregate both others. Here a memory row is: from an image of
space 2 its text by softmax over the bridge items there; the same weights over these items in space
1 give that text's other embedding; from that its sound, by softmax over the memory of space 1. What
is computed is kept as pseudo partners are, and read once for every part of the queries.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.config import Centric
from cmcr.connect.spaces.aggregation import aggregate
from cmcr.connect.spaces.datasets import Spaces
from cmcr.connect.spaces.pairs import Pairs, Rows
from cmcr.connect.spaces.pseudo import Blocks, kept, memory_of, rows_digest
from cmcr.devices import tensor

SIDES: Sequence[Centric] = ("first", "second")  # the queries are the memory of that space

# Row i of each is one item: b¹, ã, b², c̃, (n, D) each; None for a space without memory.
Four = tuple[Rows, Rows | None, Rows, Rows | None]


def centred_on(
    centric: Centric, store: Path, spaces: Spaces, pairs: Pairs, temperature: float, device: str
) -> Four | None:
    """A row for each of the memory of the first or second space; None where it has none.

    `pairs` are the bridge items to aggregate from: those that a method may see.
    """
    side = SIDES.index(centric)
    own, other = spaces[side], spaces[1 - side]
    if not own.memory:
        return None
    both = (pairs.first, pairs.second)
    here, there = both[side], both[1 - side]
    queries = Rows([part for dataset in own.memory for part in dataset.parts()])

    def bridge() -> Iterator[np.ndarray]:
        for one, two in zip(here.batches(), there.batches(), strict=True):
            yield np.concatenate([one, two], axis=1)

    items = Blocks(bridge, len(pairs) * (own.dim + other.dim), device)
    memory = memory_of(other, device)

    def found(rows: slice) -> Tensor:
        query = tensor(queries[rows], device)  # (n, D)
        texts = aggregate(query, items, temperature, besides=other.dim)  # (n, D + other's)
        if not other.memory:
            return texts
        return torch.cat([texts, aggregate(texts[:, own.dim :], memory, temperature)], dim=1)

    decisive = {
        "centric": centric,
        "bridge": [[one.fingerprint for one in space.bridge + space.pool] for space in spaces],
        "rows": [rows_digest(rows) for rows in both],
        "memory": [[one.fingerprint for one in space.memory] for space in spaces],
        "temperature": temperature,
    }
    title = f"aggregate from {own.name}/{own.memory_modality}"
    parts = kept(store, decisive, title, len(queries), found)
    end = own.dim + other.dim
    text = Rows([part[:, : own.dim] for part in parts])
    translated = Rows([part[:, own.dim : end] for part in parts])
    far = Rows([part[:, end:] for part in parts]) if other.memory else None
    if side == 0:
        return text, queries, translated, far
    return translated, far, text, queries


def pooled(found: Sequence[Four]) -> Four:
    """The rows of all of them."""
    b1, a, b2, c = zip(*found, strict=True)
    return _joined(b1), _joined_or_none(a), _joined(b2), _joined_or_none(c)


def _joined(found: Sequence[Rows]) -> Rows:
    rows = found[0]
    for more in found[1:]:
        rows = rows.joined(more)
    return rows


def _joined_or_none(found: Sequence[Rows | None]) -> Rows | None:
    there = [rows for rows in found if rows is not None]
    return _joined(there) if there else None
