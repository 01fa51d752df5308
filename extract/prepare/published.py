"""What a published data set is, and what its own files say that it holds.

    ESC50 = Published(
        name="esc50",
        tables=("audio",),
        where="https://github.com/karolpiczak/ESC-50",
        licence="CC BY-NC",
        size="600 MB",
        counts={"all": 2000},
        read=read_esc50,         # (Folder) -> Listed items, one by one, in the publisher's order
        classes=True,
    )

Each `Listed` item becomes a row in one or more tables (`images.csv`, `audio.csv`, `shapes.csv`, and
`captions.csv` or `texts.tsv` for its texts). `None` where a medium should be says that the folder
does not have it: the item is missing.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from cmcr.extract.prepare.folder import Folder

Table = Literal["images", "audio", "shapes", "captions", "texts"]

ALL = "all"  # every split
CLIP_SECONDS = 10.0  # of AudioSet, and of what was chosen from it: VGGSound, AVE, AudioCaps


@dataclass(frozen=True, slots=True)
class Frame:
    """The middle picture of a video, or of the clip of it that begins at the second `start`."""

    video: Path
    start: float | None = None


@dataclass(frozen=True, slots=True)
class Sound:
    """The sound of a video or recording, or of the clip of it that begins at `start`."""

    file: Path
    start: float | None = None


@dataclass(frozen=True, slots=True)
class Cloud:
    """Points (n, 3) out of a file that holds many clouds."""

    points: np.ndarray


Medium: TypeAlias = Path | Frame | Sound | Cloud
Media: TypeAlias = Mapping[Table, Medium | None]


@dataclass(frozen=True, slots=True)
class Listed:
    """One item that the publisher's list names, and the media of it that the folder has."""

    id: str
    media: Media = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    label: str = ""
    split: str = ""
    more: Mapping[str, str] = field(default_factory=dict)  # columns of its own


@dataclass(frozen=True)
class Published:
    """A data set: what its manifests are, where it is got, and who reads its files.

    `counts` is the published number of items by split, `split` the one that is prepared where none
    is asked for. Files that match `annotations` are copied beside the manifests. None for a
    `licence` or a `size` means that it is not known here.
    """

    name: str
    tables: tuple[Table, ...]
    where: str
    licence: str | None
    size: str | None
    counts: Mapping[str, int]
    read: Callable[[Folder], Iterable[Listed]]
    split: str = ALL
    needs: str = ""
    annotations: tuple[str, ...] = ()
    classes: bool = False
    place: str = ""

    @property
    def out(self) -> Path:
        """Where its manifests go, if nowhere else: where the recipes that ship look for them."""
        return Path("data", self.place or self.name)
