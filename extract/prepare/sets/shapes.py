"""Point clouds and meshes: ModelNet40 in its three layouts, ScanObjectNN, Objaverse-LVIS.

Read in salesforce/ULIP (data/dataset_3d.py: the resampled lists, the .dat), Colin97/OpenShape_code
(README.md and its loader: lvis.json, a dict with "xyz" a shape), and, for the names of
ScanObjectNN's files and classes, in code that reads them.
"""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cmcr.extract.media.pickled import read_pickled
from cmcr.extract.prepare.folder import CLOUDS, Folder
from cmcr.extract.prepare.published import Cloud, Listed, Medium, Published, Table

_SPLITS = ("train", "test")
_SCANOBJECTNN = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed",
    "pillow", "sink", "sofa", "toilet",
)  # fmt: skip


def _shape(
    id: str, medium: Medium | None, label: str, split: str, more: dict[str, str] | None = None
) -> Listed:
    media: dict[Table, Medium | None] = {"shapes": medium}
    return Listed(id, media, (), label.replace("_", " "), split, more or {})


def _modelnet40(folder: Folder) -> Iterator[Listed]:
    """ULIP's .dat where there is one, else the resampled lists, else Princeton's meshes.

    Princeton's have z up, the other two y.
    """
    if archives := folder.all("modelnet40_*pts_fps.dat", "modelnet40_*pts.dat"):
        yield from _dat(folder, archives)
    elif folder.all("modelnet40_shape_names.txt"):
        yield from _resampled(folder)
    else:
        for path in folder.some("train/*.off", "test/*.off"):
            yield _shape(path.stem, path, path.parent.parent.name, path.parent.name)


def _resampled(folder: Folder) -> Iterator[Listed]:
    """CLASS/CLASS_0001.txt: a point and its normal a line, between commas."""
    here = folder.one("modelnet40_shape_names.txt").parent
    for split in _SPLITS:
        for path in folder.all(f"modelnet40_{split}.txt"):
            for name in _lines(path):
                label = name.rpartition("_")[0]
                cloud = here / label / f"{name}.txt"
                yield _shape(name, cloud if cloud.is_file() else None, label, split)


def _dat(folder: Folder, archives: list[Path]) -> Iterator[Listed]:
    """Two lists, (points, 6) arrays and class numbers, in the order of modelnet40_SPLIT.txt."""
    classes = _lines(folder.one("modelnet40_shape_names.txt"))
    for split in _SPLITS:
        found = [path for path in archives if path.name.startswith(f"modelnet40_{split}_")]
        if not found:
            continue
        with found[0].open("rb") as file:
            clouds, labels = read_pickled(file)
        listed = [name for path in folder.all(f"modelnet40_{split}.txt") for name in _lines(path)]
        if len(listed) != len(clouds):
            listed = [f"{split}_{number:05d}" for number in range(len(clouds))]
        for name, points, label in zip(listed, clouds, labels, strict=True):
            medium = Cloud(_points(points))
            yield _shape(name, medium, classes[int(np.asarray(label).ravel()[0])], split)


def _scanobjectnn(folder: Folder) -> Iterator[Listed]:
    """The objects without their background (OBJ_ONLY): main_split_nobg/*_objectdataset.h5."""
    import h5py

    folder.some(*(f"main_split_nobg/{name}_objectdataset.h5" for name in ("training", "test")))
    for split, name in (("train", "training"), ("test", "test")):
        for path in folder.all(f"main_split_nobg/{name}_objectdataset.h5"):
            with h5py.File(path, "r") as file:
                for number, label in enumerate(file["label"][:]):
                    medium = Cloud(_points(file["data"][number]))
                    yield _shape(f"{split}_{number:05d}", medium, _SCANOBJECTNN[int(label)], split)


def _lvis(folder: Folder) -> Iterator[Listed]:
    """Objaverse's own {class: [object, ...]}, or the list of ULIP and OpenShape.

    The clouds or meshes are found by the object's name, wherever they lie.
    """
    clouds = folder.stems(CLOUDS)
    path = folder.one("lvis-annotations.json.gz", "lvis-annotations.json", "lvis.json")
    content = path.read_bytes()
    listing = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    for object, label in _lvis_pairs(listing):
        yield _shape(object, clouds.get(object), label, "")


def _lvis_pairs(listing: Any) -> Iterator[tuple[str, str]]:
    if isinstance(listing, dict):
        for label, objects in listing.items():
            yield from ((object, label) for object in objects)
    else:
        for row in listing:
            yield row.get("uid") or row.get("id") or Path(row["data_path"]).stem, row["category"]


def _points(points: Any) -> np.ndarray:
    """The x, y, z of (n, 3 or more) numbers."""
    array = np.asarray(points)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"a cloud is (points, 3), this is {array.dtype} {array.shape}")
    return array[:, :3]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


SHAPES = (
    Published(
        name="modelnet40",
        tables=("shapes",),
        where="meshes: https://modelnet.cs.princeton.edu; resampled: linked by "
        "https://github.com/salesforce/ULIP",
        licence=None,
        size=None,
        counts={"all": 12311, "train": 9843, "test": 2468},
        read=_modelnet40,
        split="test",
        needs="CLASS/test/*.off, or modelnet40_normal_resampled/ with its lists or .dat",
        classes=True,
    ),
    Published(
        name="scanobjectnn",
        tables=("shapes",),
        where="https://hkust-vgd.github.io/scanobjectnn, on request: h5_files.zip",
        licence=None,
        size=None,
        counts={"train": 2309, "test": 581},
        read=_scanobjectnn,
        split="test",
        needs="main_split_nobg/test_objectdataset.h5",
        classes=True,
    ),
    Published(
        name="objaverse-lvis",
        tables=("shapes",),
        where="hub data set allenai/objaverse: lvis-annotations.json.gz, glbs/; "
        "clouds: linked by https://github.com/Colin97/OpenShape_code",
        licence="ODC-By 1.0; each object its own",
        size=None,
        counts={"all": 46832},
        read=_lvis,
        needs="lvis-annotations.json.gz or lvis.json, and UID.npy, .ply or .glb",
        classes=True,
    ),
)
