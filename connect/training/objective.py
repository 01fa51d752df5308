"""The objective of C-MCR (sections 3.3 and 3.4 of arXiv 2305.14381) on one batch.

    noisy = perturb(embeddings, variance=0.004, generator)
    terms = objective((f1(b1), f1(a)), (f2(b2), f2(c)), config)
    terms["loss"].backward()

Space 1 has modalities (a, b), space 2 has (b, c), and b is the bridge: b1 and b2 are its
embeddings in both, a and c the pseudo partners that `spaces.aggregation` made. Where several
processes train together each gives its share of the rows and gets the loss of the whole batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cmcr.connect.config import ConnectConfig, Distance
from cmcr.connect.distributed import gather, share, total, world_size
from cmcr.connect.training.info_nce import info_nce
from cmcr.typed import typed

TERMS = ("loss", "inter_bridge", "inter_pseudo", "inter_cross", "intra")

# Of one space, (n, d) each: the bridge items, and their pseudo partners where it has a memory.
Views = tuple[Tensor, Tensor | None]


@typed
def perturb(
    x: Float[Tensor, "n d"], variance: float, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Semantic completion: x̃ = normalise(x + ε), ε ~ N(0, σ²I); `variance` is σ²."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)  # (n, d)
    return F.normalize(noise.mul_(variance**0.5).add_(x), dim=1)


@typed
def attraction(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    distance: Distance,
    count: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over i of ‖x_i - y_i‖, or of its square: the contrastive loss without repulsion.

    `count` is the number of rows of all processes together.
    """
    length: Tensor = torch.linalg.vector_norm(x - y, dim=1)  # (n,)
    mine = (length if distance == "plain" else length.square()).sum()
    return total(mine) / (count or len(x) * world_size())


@typed
def of_some_negatives(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    temperature: float,
    shares: tuple[float, float],
    count: int | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of each x_i among the y_j whose cosine is between two `shares` of ⟨x_i, y_i⟩.

    The mean over the rows that have such negatives, 0 where none has; a pair with a cosine of 0 or
    below has none (TextME, arXiv 2602.03098; one direction, as in its code). Unit vectors, row i of
    x belongs to row i of y. `count` is the number of rows of all processes together.
    """
    count = count or len(x) * world_size()
    everyone = gather(y, count)  # (count, d)
    cosines = x @ everyone.T  # (n, count)
    own = torch.zeros_like(cosines, dtype=torch.bool)
    own.diagonal(share(count).start).fill_(True)
    positive = cosines[own][:, None]  # (n, 1)
    low, high = (share_of * positive for share_of in shares)
    negative = (cosines >= low) & (cosines <= high) & ~own
    scores = cosines.masked_fill(~(negative | own), -torch.inf) / temperature
    lost = scores.logsumexp(dim=1) - positive[:, 0] / temperature  # (n,), 0 without negatives
    rows = total(negative.any(dim=1).sum().to(lost.dtype))
    return total(lost.sum()) / rows.clamp(min=1)


@typed
def objective(
    space1: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"] | None],
    space2: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"] | None],
    config: ConnectConfig,
    attracted: list[Views] | None = None,
    count: int | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Every term of L = L_inter + λ L_intra by name, and their sum as `loss`.

    A space is (projected bridge, projected pseudo partner or None), unit vectors. A space
    without partner has no intra term, and the pseudo pairs need the partners of both.
    `attracted` are the pairs of the intra term, those of both spaces if None. Terms of Ex-MCR
    (arXiv 2310.08884): inter_cross joins what C-MCR leaves apart, ã with b² and b¹ with c̃.
    """
    (bridge1, pseudo1), (bridge2, pseudo2) = space1, space2
    zero = bridge1.new_zeros(())
    # L_inter = InfoNCE(f1(b̃¹), f2(b̃²); τ2) + InfoNCE(f1(ã), f2(c̃); τ3)
    warm = config.bridge_temperature
    if config.negatives is None:
        inter_bridge = info_nce(bridge1, bridge2, warm, count)
    else:
        inter_bridge = of_some_negatives(bridge1, bridge2, warm, config.negatives, count)
    inter_pseudo = zero
    if pseudo1 is not None and pseudo2 is not None:
        inter_pseudo = info_nce(pseudo1, pseudo2, config.pseudo_temperature, count)
    crossed = [(pseudo1, bridge2), (bridge1, pseudo2)] if config.cross else []
    there = [(x, y) for x, y in crossed if x is not None and y is not None]
    inter_cross = sum(
        (info_nce(x, y, config.pseudo_temperature, count) / len(there) for x, y in there), zero
    )
    # L_intra = ½ · mean over i of (‖f1(b̃¹_i) - f1(ã_i)‖ + ‖f2(b̃²_i) - f2(c̃_i)‖)
    intra = zero
    for bridge, pseudo in [space1, space2] if attracted is None else attracted:
        if pseudo is not None:
            intra = intra + attraction(bridge, pseudo, config.distance, count) / 2
    loss = (
        inter_bridge
        + config.pseudo_weight * inter_pseudo
        + config.cross * inter_cross
        + config.intra_weight * intra
    )
    return dict(zip(TERMS, (loss, inter_bridge, inter_pseudo, inter_cross, intra), strict=True))
