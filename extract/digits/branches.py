"""Which digits encoder has which branches, and where its weights are.

    digits-clip   image: 8x8 ink, convolutional net      text: bytes, transformer
    digits-clap   audio: log-mels, convolutional net     text: hashed words, GRU
    digits-ulip   pointcloud: 256 points, PointNet       image: 8x8 ink, convolutional net

One more encoder is one more entry of `ENCODERS` and one more file of weights.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.extract.digits import preprocess, towers

DATA = Path(__file__).parent / "data"


class Branch(NamedTuple):
    """What turns one decoded input into a tensor, and what embeds a stack of those."""

    preprocess: Callable[[Any], Tensor]
    tower: Callable[[], nn.Module]


ENCODERS: Mapping[str, Mapping[Modality, Branch]] = {
    "digits-clip": {
        "image": Branch(preprocess.ink, towers.ImageTower),
        "text": Branch(preprocess.text_bytes, towers.ByteTower),
    },
    "digits-clap": {
        "audio": Branch(preprocess.sound, towers.AudioTower),
        "text": Branch(preprocess.text_words, towers.WordTower),
    },
    "digits-ulip": {
        "pointcloud": Branch(preprocess.points, towers.PointTower),
        "image": Branch(preprocess.ink, partial(towers.ImageTower, (16, 24, 24, 24))),
    },
}


def shipped(name: str) -> Path:
    """The weights that come with the package: safetensors, keys `MODALITY.…`."""
    return DATA / f"{name}.safetensors"


def untrained(name: str) -> nn.ModuleDict:
    """The towers of an encoder by modality, freshly initialised."""
    return nn.ModuleDict({modality: branch.tower() for modality, branch in ENCODERS[name].items()})
