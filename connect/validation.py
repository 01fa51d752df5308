"""How well a connection carries across the bridge, measured without one paired item.

    seen, held_out = split(config, count=len(pairs))   # numbers of rows; no fit sees the second
    validate(project, held)                            # {"hit_rate@1": …, "mrr": …}

The pseudo partner of a held-out bridge item searches for the item itself in the other space:
ã → b² and c̃ → b¹. It lies where its modality lies, so what hinders real audio hinders it too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.config import ConnectConfig

LEAST, MOST = 32, 4096  # rows that are held out
DISTRACTORS = 16_384  # bridge items of the fit that are searched among, besides

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


def split(config: ConnectConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to fit on and of those held out, each in order; seeded.

    With 4 × LEAST rows or fewer a quarter is the most that is held out.
    """
    if not config.validation:
        return np.arange(count), np.arange(0)
    share = min(max(round(config.validation * count), LEAST), MOST, count // 4)
    order = np.random.default_rng(config.seed).permutation(count)
    return np.sort(order[share:]), np.sort(order[:share])


@torch.no_grad()
def validate(project: Project, held: Held) -> dict[str, float]:
    """Share of first places and mean reciprocal rank, the mean of both ways.

    Without any memory the bridge items themselves search: b¹ → b² and b² → b¹. Ties count
    against the connection.
    """
    ways = [side for side in (0, 1) if held.pseudo[side] is not None]
    gallery = {side: project(side, held.bridge[side], False) for side in (0, 1)}
    ranks = []
    for side in ways or (0, 1):
        pseudo = held.pseudo[side]
        queries = gallery[side][: held.count] if pseudo is None else project(side, pseudo, True)
        scores = queries @ gallery[1 - side].T  # (n, n + others)
        own = scores.diagonal()[:, None]
        ranks.append((scores >= own - 1e-6).sum(dim=1).double())
    rank = torch.stack([one.reciprocal().mean() for one in ranks]).mean()
    first = torch.stack([(one == 1).double().mean() for one in ranks]).mean()
    return {"hit_rate@1": first.item(), "mrr": rank.item()}
