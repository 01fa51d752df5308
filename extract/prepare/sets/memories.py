"""Memories: ImageNet's training pictures and AudioSet's sounds.

AudioSet's lists are read as https://research.google.com/audioset/download.html describes them.
"""

import csv
import json
from collections.abc import Iterator

from cmcr.extract.prepare.folder import PICTURES, Folder
from cmcr.extract.prepare.published import Listed, Published
from cmcr.extract.prepare.sets.finding import sound, youtube_names


def _imagenet(folder: Folder) -> Iterator[Listed]:
    """train/n01440764/*.JPEG; labels are the first names in LOC_synset_mapping.txt."""
    names: dict[str, str] = {}
    for path in folder.all("LOC_synset_mapping.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            number, _, words = line.partition(" ")
            names[number] = words.split(",")[0]
    for path in folder.some("n[0-9]*/*.JPEG", "n[0-9]*/*.jpg"):
        if path.suffix.lower() in PICTURES and path.parent.parent.name != "val":
            number = path.parent.name
            id = f"{number}/{path.stem}"
            yield Listed(id, {"images": path}, (), names.get(number, number), "train")


def _audioset(folder: Folder) -> Iterator[Listed]:
    """YTID, start, end, "labels" a line, after three lines with #. A longer file is cut.

    The label is the first, the column `labels` has all; they have names where ontology.json or
    class_labels_indices.csv is there.
    """
    names: dict[str, str] = {}
    for path in folder.all("ontology.json"):
        names |= {row["id"]: row["name"] for row in json.loads(path.read_text(encoding="utf-8"))}
    for path in folder.all("class_labels_indices.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            names |= {row["mid"]: row["display_name"] for row in csv.DictReader(file)}
    for path in folder.some("*_segments.csv"):
        split = path.stem.removesuffix("_segments")
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.reader(file, skipinitialspace=True):
                if not row or row[0].startswith("#"):
                    continue
                video, start, _, classes = row
                labels = [names.get(name, name) for name in classes.split(",")]
                media = sound(folder, youtube_names(video, float(start)), float(start))
                more = {"labels": "; ".join(labels)}
                yield Listed(video, {"audio": media}, (), labels[0], split, more)


MEMORIES = (
    Published(
        name="imagenet",
        tables=("images",),
        where="https://image-net.org: ILSVRC2012_img_train.tar, unpacked",
        licence="non-commercial research",
        size="138 GB",
        counts={"train": 1281167},
        read=_imagenet,
        split="train",
        needs="train/WNID/*.JPEG",
    ),
    Published(
        name="audioset",
        tables=("audio",),
        where="lists: https://research.google.com/audioset/download.html; sounds: YouTube",
        licence="CC BY 4.0 (lists)",
        size=None,
        counts={"unbalanced_train": 2042985},
        read=_audioset,
        needs="*_segments.csv and recordings or videos named by YouTube's id",
    ),
)
