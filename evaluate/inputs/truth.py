"""Where a sound is heard in a picture: the annotations, from published formats and from a dataset.

pairs = read_truth([Path("vggss.json"), Path("vggss_test_plus_silent.csv")])
pairs = truth_of(open_dataset(store, Key("clap", "audio", "scenes")))

a folder   Flickr-SoundNet: an XML file a picture, boxes of several annotators in 1/256
.json      VGG-SS: [{"file", "class", "bbox": [[x0, y0, x1, y1], ...]}, ...]
.csv       pairs that do not belong together, of the extended sets of SLAVC: video, audio, label
.jsonl     {"id": sound, "image": picture, "boxes": [[x0, y0, x1, y1], ...]} a line
a dataset  of sounds, with the columns `image` and `boxes` (the list, as JSON)
"""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from cmcr.embeddings import Dataset
from cmcr.errors import SourceError, UsageError

ANNOTATORS_THAT_AGREE = 2  # Flickr-SoundNet
_FLICKR_PIXELS = 256
_SILENT = "non-sounding"
_SHAPE = "boxes are [x0, y0, x1, y1] in fractions of the picture, x0 < x1 and y0 < y1"


class SoundImage(NamedTuple):
    """A sound, a picture, and the boxes in which the sound is heard: none when it is not there."""

    sound: str
    image: str
    boxes: np.ndarray  # (boxes, 4) x0, y0, x1, y1 in fractions of width and height
    consensus: int = 1  # how many boxes must cover a place for certainty: evaluate/inputs/ciou.py

    @property
    def visible(self) -> bool:
        """Whether the source of the sound is in the picture."""
        return len(self.boxes) > 0


def read_truth(paths: Iterable[Path]) -> list[SoundImage]:
    """The pairs of all of `paths`, in their order.

    Raises UsageError for a place that is not there or of no known kind, SourceError for one that
    cannot be read or holds no pair.
    """
    pairs = []
    for path in paths:
        try:
            found = _read(path)
        except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise SourceError(
                f"the truth cannot be read: {reason}",
                where=path,
                fix="Flickr-SoundNet's folder of XML, VGG-SS's .json, a .csv of silent pairs, or "
                "a .jsonl with id, image and boxes",
            ) from error
        if not found:
            raise SourceError("it names no pair of a sound and a picture", where=path)
        pairs += found
    return pairs


def truth_of(sounds: Dataset) -> list[SoundImage]:
    """The pairs that the columns `image` and `boxes` of a dataset of sounds tell of.

    Raises UsageError without these columns, SourceError for boxes that are none.
    """
    missing = [name for name in ("image", "boxes") if name not in sounds.manifest.columns]
    if missing:
        raise UsageError(
            f"nothing says where the sounds of {sounds.key} are seen",
            where=f"{sounds.folder} has no column {' and no column '.join(missing)}",
            fix="give --truth FILE",
        )
    pairs = []
    for row in sounds.table(["id", "image", "boxes"]).to_pylist():
        try:
            boxes = _fractions(json.loads(row["boxes"]))
            pairs.append(SoundImage(row["id"], _name(row["image"]), boxes))
        except (ValueError, TypeError) as error:
            raise SourceError(
                f"the row {row['id']!r} has no boxes that can be read: {error}",
                where=sounds.folder,
                fix='write a JSON list such as [[0.1, 0.2, 0.5, 0.9]], or "[]"',
            ) from error
    return pairs


def _read(path: Path) -> list[SoundImage]:
    if path.is_dir():
        return [_flickr(file) for file in sorted(path.glob("*.xml"))]
    if not path.is_file():
        raise UsageError("there is no such file or folder", where=path, fix="name another --truth")
    if path.suffix not in (".json", ".jsonl", ".csv"):
        raise ValueError(f"{path.suffix or 'a file without suffix'} is of no known kind")
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        return [_vggss(row) for row in json.loads(text)]
    if path.suffix == ".jsonl":
        return [_row(json.loads(line)) for line in text.splitlines() if line.strip()]
    return [
        SoundImage(_name(row["audio"]), _name(row["video"]), np.empty((0, 4)))
        for row in csv.DictReader(text.splitlines())
        if row["label"] == _SILENT
    ]


def _row(row: dict[str, Any]) -> SoundImage:
    return SoundImage(_name(row["id"]), _name(row["image"]), _fractions(row["boxes"]))


def _vggss(row: dict[str, Any]) -> SoundImage:
    """Clipped to the picture as SLAVC does: some of the published boxes reach far outside."""
    name = _name(row["file"])
    return SoundImage(name, name, np.clip(_array(row["bbox"]), 0, 1))


def _flickr(path: Path) -> SoundImage:
    """The numbers of a `bbox` but the first, which is not of the box, are x0, y0, x1, y1."""
    boxes = [
        [int(child.text or "") / _FLICKR_PIXELS for child in list(box)[1:5]]
        for box in ElementTree.parse(path).getroot().iter("bbox")
    ]
    return SoundImage(path.stem, path.stem, np.clip(_array(boxes), 0, 1), ANNOTATORS_THAT_AGREE)


def _fractions(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    array = _array(boxes)
    x0, y0, x1, y1 = array.T
    if not ((array >= 0) & (array <= 1)).all() or not ((x0 < x1) & (y0 < y1)).all():
        raise ValueError(f"{_SHAPE}, and these are {json.dumps(boxes)[:80]}")
    return array


def _array(boxes: Sequence[Sequence[float]]) -> np.ndarray:
    array = np.asarray(boxes, dtype=float)
    if array.size == 0:
        return np.empty((0, 4))
    if array.ndim != 2 or array.shape[1] != 4 or not np.isfinite(array).all():
        raise ValueError(f"{_SHAPE}, and these are {json.dumps(boxes)[:80]}")
    return array


def _name(value: Any) -> str:
    if not isinstance(value, str | int) or value == "":
        raise ValueError(f"{value!r} names no sound or picture")
    return str(value)
