"""The objective of C-MCR (section 3.3 and 3.4 of arXiv 2305.14381) on one batch.

    noisy = perturb(embeddings, variance=0.004, generator)
    terms = objective((f1(b1), f1(a)), (f2(b2), f2(c)), config)
    terms["loss"].backward()

Space 1 has modalities (a, b), space 2 has (b, c), and b is the bridge: b1 and b2 are its
embeddings in both, a and c the pseudo partners that `memory.aggregate` made.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cmcr.connect.config import ConnectConfig, Distance
from cmcr.typed import typed

TERMS = ("loss", "inter_bridge", "inter_pseudo", "intra")


@typed
def perturb(
    x: Float[Tensor, "n d"], variance: float, generator: torch.Generator
) -> Float[Tensor, "n d"]:
    """Semantic completion: x̃ = normalise(x + ε), ε ~ N(0, σ²I); `variance` is σ²."""
    noise = torch.randn(x.shape, generator=generator, device=x.device)  # (n, d)
    return F.normalize(x.float() + variance**0.5 * noise, dim=1)


@typed
def info_nce(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], temperature: float
) -> Float[Tensor, ""]:
    """InfoNCE of unit vectors, the mean of both directions; row i of x belongs to row i of y."""
    logits = x @ y.T / temperature  # (n, n)
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@typed
def attraction(
    x: Float[Tensor, "n d"], y: Float[Tensor, "n d"], distance: Distance
) -> Float[Tensor, ""]:
    """Mean over i of ‖x_i - y_i‖, or of its square: the contrastive loss without repulsion."""
    length: Tensor = torch.linalg.vector_norm(x - y, dim=1)  # (n,)
    return (length if distance == "plain" else length.square()).mean()


@typed
def objective(
    space1: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"] | None],
    space2: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"] | None],
    config: ConnectConfig,
) -> dict[str, Float[Tensor, ""]]:
    """Every term of L = L_inter + λ L_intra by name, and their sum as `loss`.

    A space is (projected bridge, projected pseudo partner or None), unit vectors. A space
    without partner has no intra term, and the pseudo pairs need the partners of both.
    """
    (bridge1, pseudo1), (bridge2, pseudo2) = space1, space2
    zero = bridge1.new_zeros(())
    # L_inter = InfoNCE(f1(b̃¹), f2(b̃²); τ2) + InfoNCE(f1(ã), f2(c̃); τ3)
    inter_bridge = info_nce(bridge1, bridge2, config.bridge_temperature)
    inter_pseudo = zero
    if pseudo1 is not None and pseudo2 is not None:
        inter_pseudo = info_nce(pseudo1, pseudo2, config.pseudo_temperature)
    # L_intra = ½ · mean over i of (‖f1(b̃¹_i) - f1(ã_i)‖ + ‖f2(b̃²_i) - f2(c̃_i)‖)
    intra = zero
    for bridge, pseudo in (space1, space2):
        if pseudo is not None:
            intra = intra + attraction(bridge, pseudo, config.distance) / 2
    loss = inter_bridge + config.pseudo_weight * inter_pseudo + config.intra_weight * intra
    return {
        "loss": loss,
        "inter_bridge": inter_bridge,
        "inter_pseudo": inter_pseudo,
        "intra": intra,
    }
