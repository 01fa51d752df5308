"""Connections that need no training: they must stand in every table of results.

    matrix = procrustes(moments(x1, x2, mean1, mean2))     # (D1, D2), semi-orthogonal
    matrix = ridge(moments(x1, x2, mean1, mean2), strength=1e-3)

Both map space 1 into space 2, which stays as it is, and are fitted in float64 on bridge pairs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cmcr.connect.connection.projectors import Kernel
from cmcr.connect.spaces.pairs import Rows
from cmcr.devices import tensor
from cmcr.typed import typed

BLOCK_ROWS = 65_536
CACHED_ROWS = 2_048  # a block and its product stay in a CPU's cache
ITEMS = 2_048  # of a kernel
STRENGTH = 0.3  # of kernel ridge regression
ROUNDING = 1e-9


@dataclass(frozen=True)
class Moments:
    """Second moments of paired rows, averaged over the pairs."""

    auto: Tensor  # X1ᵀ X1 / n, (D1, D1)
    cross: Tensor  # X1ᵀ X2 / n, (D1, D2)


@typed
def mean_embedding(blocks: Iterable[np.ndarray | Tensor], dim: int) -> Float[Tensor, "dim"]:
    """The mean of all rows of `blocks`, made unit vectors first; summed in float64 over pieces."""
    total, count = torch.zeros(dim, dtype=torch.float64), 0
    for x in pieces(blocks, dim):
        total += (1 / torch.linalg.vector_norm(x, dim=1).clamp(min=1e-12)) @ x
        count += len(x)
    return total / count


def pieces(blocks: Iterable[np.ndarray | Tensor], dim: int) -> Iterator[Tensor]:
    """All rows of `blocks` as float32, (≤ CACHED_ROWS, D); the next piece overwrites the last."""
    room = torch.empty(CACHED_ROWS, dim)
    for block in blocks:
        for start in range(0, len(block), CACHED_ROWS):
            piece = tensor(block[start : start + CACHED_ROWS], "cpu")
            yield room[: len(piece)].copy_(piece)


@typed
def moments(
    x1: Tensor | Rows,
    x2: Tensor | Rows,
    mean1: Float[Tensor, "d1"],
    mean2: Float[Tensor, "d2"],
) -> Moments:
    """Moments of the unit vectors of `x1`, (n, D1), and `x2`, (n, D2), about their means."""
    auto = mean1.new_zeros((x1.shape[1], x1.shape[1]))
    cross = mean1.new_zeros((x1.shape[1], x2.shape[1]))
    for start in range(0, len(x1), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        centred = _units(x1[rows]) - mean1  # (≤ BLOCK_ROWS, d1)
        auto += centred.T @ centred
        cross += centred.T @ (_units(x2[rows]) - mean2)
    return Moments(auto / len(x1), cross / len(x1))


def procrustes(pairs: Moments) -> Tensor:
    """The semi-orthogonal W that maximises Σ⟨x1 W, x2⟩: U Vᵀ of the SVD of X1ᵀ X2, (D1, D2).

    Where D1 = D2 it is the rotation or reflection that minimises ‖X1 W - X2‖ (Schönemann 1966).
    """
    u, _, vh = torch.linalg.svd(pairs.cross, full_matrices=False)
    w: Tensor = u @ vh
    return w


def ridge(pairs: Moments, strength: float) -> Tensor:
    """The W that minimises ‖X1 W - X2‖²/n + strength · ‖W‖², (D1, D2)."""
    penalty = strength * torch.eye(len(pairs.auto), dtype=pairs.auto.dtype)
    w: Tensor = torch.linalg.solve(pairs.auto + penalty, pairs.cross)
    return w


def kernel(head: Kernel, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Items of `head` and the W that minimises ‖K W - second‖² + STRENGTH · tr(WᵀK W), float64.

    `first`, (n, D1), and `second`, (n, joint), are unit vectors; the items are ITEMS of `first` at
    most, evenly spread over them.
    """
    chosen = torch.linspace(0, len(first) - 1, min(len(first), ITEMS)).long()
    head.items = items = first[chosen]
    size = len(items)
    products = torch.zeros(size, size + second.shape[1], dtype=torch.float64)
    for start in range(0, len(first), ITEMS):
        rows = slice(start, start + ITEMS)
        near = head.near(first[rows].double())  # (≤ ITEMS, items)
        products += near.T @ torch.cat([near, second[rows].double()], dim=1)
    between = head.near(items.double())
    penalty = STRENGTH * between + ROUNDING * size * torch.eye(size, dtype=torch.float64)
    return items, torch.linalg.solve(products[:, :size] + penalty, products[:, size:])


def _units(block: np.ndarray | Tensor) -> Tensor:
    tensor = torch.from_numpy(block.astype(np.float64)) if isinstance(block, np.ndarray) else block
    return F.normalize(tensor.double(), dim=1)
