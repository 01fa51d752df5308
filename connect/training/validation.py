"""How well a connection carries across the bridge, measured without one paired item.

    seen, held_out = split(config, count=len(pairs))   # numbers of rows; no fit sees the second
    validate(project, held).scores                     # {"hit_rate@1": …, "mrr": …}

The pseudo partner of a held-out bridge item searches for the item itself in the other space,
ã → b² and c̃ → b¹, and the two pseudo partners of an item for each other, ã ↔ c̃. They lie where
their modalities lie, so what hinders real images and audio hinders them too. Held-out items are
few: a difference that they cannot show (`clearly_worse`) decides nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

DECIDES = "mrr"  # which number of `validate` does
CLEAR = 2  # standard errors

# side (0 or 1), rows, whether they are pseudo partners → in the joint space, unit norm
Project = Callable[[int, Tensor, bool], Tensor]


@dataclass(frozen=True)
class Held:
    """Bridge items kept back, and others to search among; bridge (n + others, D), pseudo (n, D)."""

    count: int  # n
    bridge: tuple[Tensor, Tensor]
    pseudo: tuple[Tensor | None, Tensor | None]

    def to(self, device: torch.device | str) -> "Held":
        """The same on `device`."""
        one, two = (block.to(device) for block in self.bridge)
        a, c = (None if block is None else block.to(device) for block in self.pseudo)
        return Held(self.count, (one, two), (a, c))


class Validated(NamedTuple):
    """What the held-out items say."""

    scores: dict[str, float]  # of all
    each: Tensor  # (n,) the mean reciprocal rank of each item, whose mean is `DECIDES`


@torch.no_grad()
def validate(project: Project, held: Held) -> Validated:
    """Share of first places and mean reciprocal rank, the mean of all ways there are.

    Without any memory the bridge items themselves search: b¹ → b² and b² → b¹. Ties count
    against the connection.
    """
    bridge = [project(side, held.bridge[side], False) for side in (0, 1)]
    pseudo = [
        None if block is None else project(side, block, True)
        for side, block in enumerate(held.pseudo)
    ]
    ways = [(pseudo[0], bridge[1]), (pseudo[1], bridge[0]), (pseudo[0], pseudo[1])]
    ways.append((pseudo[1], pseudo[0]))
    there = [
        (queries, gallery)
        for queries, gallery in ways
        if queries is not None and gallery is not None
    ]
    if not there:
        there = [(bridge[side][: held.count], bridge[1 - side]) for side in (0, 1)]
    ranks = torch.stack([_own_rank(queries, gallery) for queries, gallery in there])  # (ways, n)
    each = ranks.double().reciprocal().mean(dim=0)  # (n,)
    hits = (ranks == 1).double().mean().item()
    return Validated({"hit_rate@1": hits, "mrr": each.mean().item()}, each)


def behind(one: Tensor, other: Tensor) -> float:
    """By how many standard errors of the paired difference the items do worse; 99 at most."""
    change = other - one  # (n,)
    error = change.std(correction=0) / len(change) ** 0.5
    return min(float(change.mean() / error.clamp(min=1e-12)), 99.0)


def clearly_worse(one: Tensor, other: Tensor) -> bool:
    """Whether the items do worse by more than two standard errors."""
    return behind(one, other) > CLEAR


def _own_rank(queries: Tensor, gallery: Tensor) -> Tensor:
    """The rank at which query i finds row i of the gallery, (n,), from 1."""
    scores = queries @ gallery.T  # (n, rows)
    return (scores >= scores.diagonal()[:, None] - 1e-6).sum(dim=1)
