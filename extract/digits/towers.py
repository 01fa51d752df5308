"""The towers of the digits encoders: each maps preprocessed inputs to unit vectors of one space.

    digits-clip   ImageTower, a convolutional net on 8x8 ink; ByteTower, a transformer on bytes
    digits-clap   AudioTower, a convolutional net on log-mels; WordTower, a GRU on hashed words
    digits-ulip   PointTower, a PointNet on 256 points; ImageTower, narrower

What they take is made by `cmcr.extract.digits.preprocess`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits import preprocess
from cmcr.extract.digits.preprocess import BUCKETS, BYTES
from cmcr.typed import typed

DIM = 64


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class ImageTower(nn.Module):
    """Ink to the image half of digits-clip and, with less width, of digits-ulip."""

    def __init__(self, widths: tuple[int, int, int, int] = (32, 48, 64, 96)) -> None:
        super().__init__()
        first, second, third, last = widths
        self.body = nn.Sequential(
            convolution(1, first, 1),
            convolution(first, second, 2),
            convolution(second, third, 1),
            convolution(third, last, 2),
            nn.Flatten(),
            nn.Dropout(0.3),
        )  # (B, last * 4 * 4)
        self.head = nn.Linear(last * 4 * 4, DIM)

    @typed
    def forward(self, ink: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors."""
        fine = F.interpolate(ink, scale_factor=2.0, mode="bilinear")  # (B, 1, 16, 16)
        return F.normalize(self.head(self.body(fine)), dim=1)


class PointTower(nn.Module):
    """Points to the other half of digits-ulip: PointNet (arXiv 1612.00593) without its T-nets.

    Each point meets the largest features of all points half way, so that what it is can depend
    on how the shape is turned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alone = nn.Sequential(point_layer(3, 32), point_layer(32, 48))
        self.among = nn.Sequential(point_layer(2 * 48, 64), point_layer(64, 96))
        self.head = nn.Linear(96, DIM)

    @typed
    def forward(self, points: Float[Tensor, "batch points 3"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors."""
        own = self.alone(points.transpose(1, 2))  # (B, 48, n)
        shape = own.amax(2, keepdim=True).expand_as(own)  # (B, 48, n)
        features = self.among(torch.cat([own, shape], dim=1)).amax(2)  # (B, 96)
        return F.normalize(self.head(features), dim=1)


def point_layer(inputs: int, outputs: int) -> nn.Sequential:
    """The same linear map for every point, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()
    )


class AudioTower(nn.Module):
    """Log-mel spectrograms to the audio half of digits-clap."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(1, 24, 2),
            convolution(24, 48, 2),
            convolution(48, 64, 1),
            convolution(64, 96, 2),
            nn.MaxPool2d((5, 1)),
        )  # (B, 96, 1, 13)
        self.time = nn.Conv1d(96, 96, 5, padding=2)
        self.head = nn.Linear(2 * 96, DIM)

    @typed
    def forward(self, mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors."""
        features = F.relu(self.time(self.body(mel[:, None]).squeeze(2)))  # (B, 96, 13)
        pooled = torch.cat([features.mean(2), features.amax(2)], dim=1)  # (B, 192)
        return F.normalize(self.head(pooled), dim=1)


class ByteTower(nn.Module):
    """Bytes to the text half of digits-clip: a small transformer."""

    def __init__(self, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.byte = nn.Embedding(257, width, padding_idx=0)
        self.position = nn.Parameter(torch.randn(BYTES, width) * 0.02)
        self.first = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.ModuleList(Block(width) for _ in range(layers))
        self.head = nn.Linear(width, DIM)

    @typed
    def forward(self, codes: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors."""
        first = self.first.expand(len(codes), -1, -1)
        x = torch.cat([first, self.byte(codes) + self.position], dim=1)  # (B, 1 + L, width)
        seen = F.pad(codes > 0, (1, 0), value=True)  # (B, 1 + L)
        for block in self.attention:
            x = block(x, seen)
        return F.normalize(self.head(x[:, 0]), dim=1)


class Block(nn.Module):
    """A pre-norm transformer block, four heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    @typed
    def forward(
        self, x: Float[Tensor, "batch length width"], seen: Tensor
    ) -> Float[Tensor, "batch length width"]:
        """`seen` is (batch, length): False where there is padding."""
        split = self.qkv(self.norm1(x)).unflatten(2, (3, 4, -1))  # (B, L, 3, heads, width/4)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each (B, heads, L, width/4)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])
        x = x + self.out(mixed.transpose(1, 2).flatten(2))  # (B, L, width)
        x = x + self.mlp(self.norm2(x))
        return x


class WordTower(nn.Module):
    """Hashed words to the text half of digits-clap: a GRU both ways, the largest over the text."""

    def __init__(self, width: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.word = nn.Embedding(BUCKETS, width, padding_idx=0)
        self.gru = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden, 128), nn.GELU(), nn.Linear(128, DIM))

    @typed
    def forward(self, codes: Int[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors."""
        states = self.gru(self.word(codes))[0]  # (B, L, 2 * hidden)
        return F.normalize(self.head(states.amax(1)), dim=1)


DATA = Path(__file__).parent / "data"


class Branch(NamedTuple):
    """What turns one decoded input into a tensor, and what embeds a stack of those."""

    preprocess: Callable[[Any], Tensor]
    tower: Callable[[], nn.Module]


ENCODERS: Mapping[str, Mapping[Modality, Branch]] = {
    "digits-clip": {
        "image": Branch(preprocess.ink, ImageTower),
        "text": Branch(preprocess.text_bytes, ByteTower),
    },
    "digits-clap": {
        "audio": Branch(preprocess.sound, AudioTower),
        "text": Branch(preprocess.text_words, WordTower),
    },
    "digits-ulip": {
        "pointcloud": Branch(preprocess.points, PointTower),
        "image": Branch(preprocess.ink, partial(ImageTower, (16, 24, 24, 24))),
    },
}


def shipped(name: str) -> Path:
    """The weights that come with the package: safetensors, keys `MODALITY.…`."""
    return DATA / f"{name}.safetensors"


def untrained(name: str) -> nn.ModuleDict:
    """The towers of an encoder by modality, freshly initialised."""
    return nn.ModuleDict({modality: branch.tower() for modality, branch in ENCODERS[name].items()})
