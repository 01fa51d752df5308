"""What a source yields, and what a decoder makes of it.

Item     one input before decoding: an id, where it lies, and what is known about it
Decoded  the same input as an encoder takes it
         image: PIL.Image; audio: Waveform; text: str; pointcloud: (n, 3) float32 array, y up
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image


UpAxis = Literal["y", "z"]


@dataclass(frozen=True, slots=True)
class Item:
    """One input. `content` is the text itself or the encoded media; None means: read `uri`.

    `up` is the axis of a point cloud that points upwards: `decode` makes it y.
    """

    id: str
    uri: str
    content: str | bytes | None = None
    label: tuple[str, ...] = ()
    group: str | None = None
    extra: Mapping[str, str | float] = field(default_factory=dict)
    up: UpAxis = "y"


@dataclass(frozen=True, slots=True)
class Waveform:
    """Audio as it lies in the file: `samples` is (channels, frames) float32 in [-1, 1]."""

    samples: np.ndarray
    sample_rate: int


Decoded: TypeAlias = "Image | Waveform | str | np.ndarray"
