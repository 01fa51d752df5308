"""Projectors: what takes the embeddings of one space into the joint space, and their heads.

head = make_head("mlp", dim=512, joint_dim=512)    # CLIP-CLAP: net1.0, net1.1, net2.0, net2.1
projector = Projector(head, means={"image": mean})
projector.project(embeddings, "image")             # (n, 512) → (n, joint), unit norm

The state-dict keys of `mlp`, `linear` and `leaf` are those of the published checkpoints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cmcr.connect.config import HeadKind
from cmcr.connect.distributed import total_both_ways, world_size
from cmcr.embeddings import Modality
from cmcr.typed import typed

Means = Mapping[Modality, Tensor]
Whitenings = Mapping[Modality, Tensor]


def _linear(dim: int, channels: int) -> nn.Linear:
    """A layer before BatchNorm, which takes its bias away again.

    The bias has no gradient but rounding, and AdamW would make that as large as any other: it is
    there for the layout of the published files, and stays as it is.
    """
    layer = nn.Linear(dim, channels)
    layer.bias.requires_grad_(False)
    return layer


class MLP(nn.Module):
    """As published for CLIP-CLAP: the hidden layer is twice as wide as the joint space."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        hidden = 2 * joint_dim
        self.net1 = nn.Sequential(_linear(dim, hidden), BatchNorm(hidden), nn.ReLU())
        self.net2 = nn.Sequential(_linear(hidden, joint_dim), BatchNorm(joint_dim))

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.net2(self.net1(x))
        return y


class Linear(nn.Module):
    """As published for CLIP-ULIP: one layer. ReLU keeps embeddings in the non-negative orthant."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_linear(dim, joint_dim), BatchNorm(joint_dim), nn.ReLU())

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.net(x)
        return y


class Leaf(nn.Module):
    """As published for Ex-MCR (`Head2`): two MLPs, the first within the leaf space."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        self.mlp1 = MLP(dim, dim)
        self.mlp2 = MLP(dim, joint_dim)

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.mlp2(self.mlp1(x))
        return y


class Residual(nn.Module):
    """A closed form that stays, and beside it an MLP whose last layer begins at zero."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        hidden = 2 * joint_dim
        self.base = nn.Linear(dim, joint_dim, bias=False).requires_grad_(False)
        self.net1 = nn.Sequential(_linear(dim, hidden), BatchNorm(hidden), nn.ReLU())
        self.net2 = nn.Linear(hidden, joint_dim, bias=False)
        nn.init.zeros_(self.net2.weight)

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.base(x) + self.net2(self.net1(x))
        return y


class Gelu(nn.Module):
    """As published for TextME (arXiv 2602.03098): the hidden layer is twice as wide as x."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        hidden = 2 * dim
        self.net1 = nn.Sequential(_linear(dim, hidden), BatchNorm(hidden), nn.GELU())
        self.net2 = nn.Sequential(_linear(hidden, joint_dim), BatchNorm(joint_dim))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.net2(self.net1(x))
        return y


class Kernel(nn.Module):
    """Kernel ridge regression: Σᵢ exp((⟨x, xᵢ⟩ - 1)/WIDTH) Wᵢ of unit vectors x and items xᵢ."""

    WIDTH = 0.2  # 1 - ⟨x, xᵢ⟩ at which an item has 1/e of its weight
    items: Tensor
    weights: Tensor

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        self.register_buffer("items", torch.empty(0, dim))
        self.register_buffer("weights", torch.empty(0, joint_dim))

    def near(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch items"]:
        """How near each item is, in the precision of `x`."""
        y: Tensor = ((x @ self.items.to(x.dtype).T - 1) / self.WIDTH).exp()
        return y

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.near(x) @ self.weights
        return y

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """As many items as there are."""
        count = len(state[f"{prefix}items"])
        for name in ("items", "weights"):
            setattr(self, name, getattr(self, name).new_empty(count, getattr(self, name).shape[1]))
        super()._load_from_state_dict(state, prefix, *rest)


def make_head(kind: HeadKind, dim: int, joint_dim: int) -> nn.Module:
    """A fresh head, (batch, dim) → (batch, joint), drawn from torch's default generator."""
    if kind == "identity":
        return nn.Identity()
    if kind == "matrix":
        return nn.Linear(dim, joint_dim, bias=False)
    makers = {"mlp": MLP, "linear": Linear, "leaf": Leaf, "residual": Residual, "gelu": Gelu,
              "kernel": Kernel}  # fmt: skip
    return makers[kind](dim, joint_dim)


def make_heads(
    kinds: tuple[HeadKind, HeadKind], dims: tuple[int, int], joint_dim: int, seed: int
) -> tuple[nn.Module, nn.Module]:
    """The heads of both spaces, the same for the same seed; torch's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second = (
            make_head(kind, dim, joint_dim) for kind, dim in zip(kinds, dims, strict=True)
        )
    return first, second


@dataclass
class Projector:
    """f of one space: its embeddings centred, whitened, turned, and taken through the head."""

    head: nn.Module
    # (D,) of each modality that has rows, the bridge's first; none: not centred
    means: Means = field(default_factory=dict)
    turn: nn.Module = field(default_factory=nn.Identity)  # Ex-MCR's `Head1`, within the space
    turned: tuple[Modality, ...] = ()  # the modalities that go through it
    # A, (D, D), of each modality that has a mean; none: not whitened
    whitenings: Whitenings = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Projector":
        """Move to `device`; returns itself."""
        self.head.to(device)
        self.turn.to(device)
        self.means = {modality: mean.to(device) for modality, mean in self.means.items()}
        self.whitenings = {modality: a.to(device) for modality, a in self.whitenings.items()}
        return self

    @typed
    def centre(self, x: Float[Tensor, "n d"], modality: Modality | None) -> Float[Tensor, "n d"]:
        """Unit vectors: of `x` itself, or of its difference from the mean of `modality`, or of
        that times A. A modality without rows of its own has the bridge's A and no mean: it lies
        elsewhere than the bridge, and the way there would drown what its rows differ in.
        """
        z = F.normalize(x.float(), dim=1)
        if modality is None or not self.means:
            return z
        if modality in self.means:
            z -= self.means[modality]
        if self.whitenings:  # A takes a length with it, and none is left in the end
            own = modality if modality in self.whitenings else next(iter(self.whitenings))
            z = z @ self.whitenings[own]
        return F.normalize(z)

    @typed
    def join(self, x: Float[Tensor, "n d"], modality: Modality | None) -> Float[Tensor, "n joint"]:
        """Centred unit vectors in the joint space, unit norm."""
        turned = self.turn(x) if modality in self.turned else x
        return F.normalize(self.head(turned).float(), dim=1)

    def project(self, x: Tensor, modality: Modality | None) -> Tensor:
        """Embeddings of the space, (n, D), in the joint space, (n, joint), unit norm."""
        return self.join(self.centre(x, modality), modality)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation (arXiv 1502.03167) over the batches of all processes together.

    torch's SyncBatchNorm does this on GPUs alone.
    """

    @typed
    def forward(self, x: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch channels"]:
        """(batch, channels) → the same; alone and at inference it is torch's own."""
        if world_size() == 1 or not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        count = torch.tensor([float(len(x))], device=x.device)
        sums = total_both_ways(torch.cat([x.float().sum(dim=0), count]))
        rows = sums[-1]
        mean = sums[:-1] / rows  # (channels,)
        centred = x.float() - mean
        variance = total_both_ways(centred.square().sum(dim=0)) / rows  # (channels,)
        with torch.no_grad():
            step = self.momentum or 0.0
            self.running_mean.lerp_(mean, step)
            self.running_var.lerp_(variance * rows / (rows - 1), step)
            self.num_batches_tracked.add_(1)
        normal = centred * (variance + self.eps).rsqrt()
        return (normal * self.weight + self.bias).to(x.dtype)
