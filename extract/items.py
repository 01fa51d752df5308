"""What a source yields, and what a decoder makes of it.

Item     one input before decoding: an id, where it lies, and what is known about it
Decoded  the same input as an encoder takes it
         image: PIL.Image; audio: Waveform; text: str; pointcloud: (n, 3) float32 array, y up
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import quote_from_bytes, unquote_to_bytes

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

LARGEST_MEMBER = 1 << 30  # bytes of one file in a tar, which is held in memory


@dataclass(frozen=True, slots=True)
class Refused(Item):
    """An input that its source found unusable: `decode` raises a SourceError with `why`."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Slice(Item):
    """Encoded media that lie inside a larger file: the worker that decodes them reads them."""

    file: str = ""
    offset: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Cell(Item):
    """Encoded media in a column of a Parquet file: the worker that decodes them reads them.

    `column` holds structs of `bytes` and `path`; `row` counts within the row group.
    """

    file: str = ""
    column: str = ""
    row_group: int = 0
    row: int = 0


def file_uri(path: str | Path) -> str:
    """`path` itself, or as a file: URI where its bytes are not UTF-8 and no column can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))
    return str(path)


def local_path(uri: str) -> Path:
    """The path that `file_uri` made `uri` of."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)
