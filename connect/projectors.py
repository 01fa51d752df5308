"""The two projectors of C-MCR, with the state-dict keys of the published checkpoints.

make_projector("mlp", dim=512, joint_dim=512)      # CLIP-CLAP: net1.0, net1.1, net2.0, net2.1
make_projector("linear", dim=512, joint_dim=512)   # CLIP-ULIP: net.0, net.1
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cmcr.typed import typed

Preset = Literal["mlp", "linear"]


class MLP(nn.Module):
    """As published for CLIP-CLAP: the hidden layer is twice as wide as the joint space."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        hidden = 2 * joint_dim
        self.net1 = nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.net2 = nn.Sequential(nn.Linear(hidden, joint_dim), nn.BatchNorm1d(joint_dim))

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.net2(self.net1(x))
        return y


class Linear(nn.Module):
    """As published for CLIP-ULIP: one layer, so the joint space is its positive corner."""

    def __init__(self, dim: int, joint_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, joint_dim), nn.BatchNorm1d(joint_dim), nn.ReLU())

    @typed
    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch joint"]:
        """(batch, dim) → (batch, joint), not normalised."""
        y: Tensor = self.net(x)
        return y


PRESETS: dict[Preset, type[MLP] | type[Linear]] = {"mlp": MLP, "linear": Linear}


def make_projector(preset: Preset, dim: int, joint_dim: int) -> nn.Module:
    """A fresh projector, drawn from torch's default generator."""
    return PRESETS[preset](dim, joint_dim)


def make_projectors(
    preset: Preset, dims: tuple[int, int], joint_dim: int, seed: int
) -> tuple[nn.Module, nn.Module]:
    """f1 and f2, the same for the same seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second = (make_projector(preset, dim, joint_dim) for dim in dims)
    return first, second
