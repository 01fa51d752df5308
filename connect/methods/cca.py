"""`cca`: soft canonical correlation, in which each modality has a covariance of its own.

    spread = Spread(dataset.batches, dim)                  # of one modality, nothing paired
    spread.mean, spread.whitening                          # (D,), (D, D)
    first, second = canonical(cross(pairs, projectors), len(pairs))    # (D1, joint), (D2, joint)

z = unit(unit(x) - mean), S = α cov(z) + (1 - α) tr(cov(z))/D I, A = S^(-γ/2); on the pairs
U s Vᵀ = svd(unit(z₁A₁)ᵀ unit(z₂A₂)/n) and f = (s/s₀)^(p/2). Side 1 of the joint space is
unit(unit(z A) U f), side 2 the same with V. As its own mean closes a modality's gap in place, its
own covariance closes the gap in distribution (cf. arXiv 2410.07610, arXiv 2604.00279).

The three constants are half-ways, and no settings: they were fixed before any world was looked at.
"""

from collections.abc import Callable, Iterable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.connect.connection.projectors import Projector
from cmcr.connect.methods.closed_forms import CACHED_ROWS, mean_embedding, pieces
from cmcr.connect.spaces.pairs import Pairs
from cmcr.devices import float32
from cmcr.embeddings import Modality
from cmcr.typed import typed

SHRINKAGE = 0.5  # α: half of the covariance is what was seen, half is the same in all directions
WHITENING = 0.5  # γ: of 0, which leaves z as it is, and 1, which takes its covariance to I
POWER = 0.5  # p: of 0, where all directions count alike, and 1, where they count as they correlate
STRIP = 128  # rows of a product that is its own mirror image, at a time
ROUNDING = 1e-6  # of the largest singular value of a product in float32


class Spread:
    """Where the embeddings of one modality lie, and how they spread; worked out when asked for."""

    def __init__(self, blocks: Callable[[], Iterable[np.ndarray]], dim: int) -> None:
        """`blocks()` gives all rows anew, (rows, D) at a time."""
        self.blocks, self.dim = blocks, dim

    @cached_property
    def mean(self) -> Float[Tensor, "dim"]:
        """The mean of the unit vectors."""
        return mean_embedding(self.blocks(), self.dim).float()

    @cached_property
    def whitening(self) -> Float[Tensor, "dim dim"]:
        """A."""
        return whitening(covariance(self.blocks(), self.mean)).float()


@typed
def covariance(
    blocks: Iterable[np.ndarray], mean: Float[Tensor, "dim"]
) -> Float[Tensor, "dim dim"]:
    """cov(z) of all rows of `blocks`: float32 products of a piece, float64 sums.

    zᵀz is its own mirror image, so that only strips from its diagonal on are multiplied out.
    """
    dim, count = len(mean), 0
    total, square = mean.new_zeros(dim, dtype=torch.float64), mean.new_zeros(dim, dim).double()
    for x in pieces(blocks, dim):
        length = torch.linalg.vector_norm(x, dim=1).clamp(min=1e-12)
        along = x @ mean / length  # unit(x)·mean, for ‖unit(x) - mean‖ without another copy
        far = (1 - 2 * along + mean @ mean).clamp(min=1e-12).sqrt()
        z = x.mul_((1 / (length * far))[:, None]).addr_(1 / far, mean, alpha=-1)
        total += z.new_ones(len(z)) @ z  # reads as quickly as memory gives; sum does not
        for start in range(0, dim, STRIP):
            square[start : start + STRIP, start:] += z[:, start : start + STRIP].T @ z[:, start:]
        count += len(z)
    centre = total / count
    return (square.triu() + square.triu(1).T) / count - torch.outer(centre, centre)


@typed
def whitening(cov: Float[Tensor, "dim dim"]) -> Float[Tensor, "dim dim"]:
    """A = S^(-γ/2) of S = α cov + (1 - α) tr(cov)/D I."""
    values, vectors = torch.linalg.eigh(cov)
    level = values.mean().clamp(min=1e-12)
    softened = SHRINKAGE * values.clamp(min=0) + (1 - SHRINKAGE) * level  # of S
    a: Tensor = (vectors * (softened / level) ** (-WHITENING / 2)) @ vectors.T
    return a


def cross(pairs: Pairs, projectors: tuple[Projector, Projector], via: Modality) -> Tensor:
    """unit(z₁A₁)ᵀ unit(z₂A₂)/n of all pairs, (D1, D2): what each projector's head is given."""
    total = torch.zeros(pairs.first.shape[1], pairs.second.shape[1], dtype=torch.float64)
    for start in range(0, len(pairs), CACHED_ROWS):
        one, two = (
            projector.centre(float32(rows[start : start + CACHED_ROWS], "cpu"), via)
            for projector, rows in zip(projectors, (pairs.first, pairs.second), strict=True)
        )
        total += one.T @ two
    return total / len(pairs)


@typed
def canonical(
    cross: Float[Tensor, "d1 d2"], pairs: int
) -> tuple[Float[Tensor, "d1 joint"], Float[Tensor, "d2 joint"]]:
    """U f and V f: both sides into a joint space of min(D1, D2) dimensions.

    What `pairs` pairs do not speak of is left out: all directions but as many as there are pairs,
    and those in which nothing but the rounding of float32 is to be seen.
    """
    u, s, vh = torch.linalg.svd(cross, full_matrices=False)
    known = (s > s[0] * ROUNDING) & (torch.arange(len(s)) < pairs)
    f = torch.where(known, s / s[0], 0) ** (POWER / 2)
    return u * f, vh.T * f


@typed
def into_second(
    taken: Float[Tensor, "rows d2"],
    whitenings2: Float[Tensor, "modalities d2 d2"],
    means2: Float[Tensor, "modalities d2"],
) -> Float[Tensor, "rows d2"]:
    """What `taken`, such as U f² Vᵀ, is to be in space 2 as it is: times A₂, across its means.

    A₂ is the mean of its modalities', for it is not known which is searched. Its cosines with x₂
    rank as those in the joint space do, but for the length of z₂A₂. A direction along a mean would
    only prefer some rows to all others, whatever they are searched with.
    """
    means = means2.T.double()
    w: Tensor = taken @ whitenings2.double().mean(dim=0)
    w -= w @ means @ torch.linalg.pinv(means)
    return w
