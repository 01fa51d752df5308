"""Videos as pictures and sounds: AVE, VGGSound, VGG-SS, Flickr-SoundNet, and the extended sets.

Read in the publishers' repositories: YapengTian/AVE-ECCV18 (data/Annotations.txt), hche11/VGGSound
(README.md, data/test.csv), hche11/Localizing-Visual-Sounds-the-Hard-Way (README.md, dataloader.py),
ardasnck/learning_to_localize_sound_source (README.md), stoneMo/SLAVC (datasets.py, metadata).
The frame is the middle one; where a folder has frames of the publisher's own, those are taken.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmcr.extract.prepare.folder import PICTURES, SOUNDS, Folder
from cmcr.extract.prepare.published import Listed, Media, Published, Table
from cmcr.extract.prepare.sets.finding import picture, sound, youtube_names

_SCENES: tuple[Table, ...] = ("images", "audio")


def _ave(folder: Folder) -> Iterator[Listed]:
    """CATEGORY&VIDEO&QUALITY&START&END a line; some videos have several lines, of other categories.

    The label is the first category, the column `labels` has all. A video that two splits name is
    of the test split.
    """
    splits: dict[str, str] = {}
    for split in ("train", "val", "test"):
        for path in folder.all(f"{split}Set.txt"):
            splits |= dict.fromkeys((row[1] for row in _ampersands(path)), split)
    labels: dict[str, list[str]] = {}
    for category, video, *_ in _ampersands(folder.one("Annotations.txt")):
        labels.setdefault(video, []).append(category)
    for video, categories in labels.items():
        media = _of_video(folder, (video,))
        more = {"labels": "; ".join(dict.fromkeys(categories))}
        yield Listed(video, media, (), categories[0], splits.get(video, ""), more)


def _ampersands(path: Path) -> Iterator[list[str]]:
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        fields = line.strip().split("&")
        if len(fields) == 5 and fields[1] != "VideoID":
            yield fields


def _vggsound(folder: Folder) -> Iterator[Listed]:
    """ID,START,LABEL,SPLIT a line, without a header; a clip is called ID_START, six digits."""
    with folder.one("vggsound.csv").open(encoding="utf-8-sig", newline="") as file:
        for video, start, label, split in csv.reader(file):
            media = _of_video(folder, youtube_names(video, float(start)), float(start))
            yield Listed(f"{video}_{int(start):06d}", media, (), label, split)


def _vggss(folder: Folder) -> Iterator[Listed]:
    """The clips of vggss.json; heard and unheard are the lists of EZ-VSL and SLAVC."""
    splits: dict[str, str] = {}
    for split in ("heard", "unheard"):
        for path in folder.all(f"vggss_{split}_test.csv"):
            splits |= dict.fromkeys(_first_column(path), split)
    for row in json.loads(folder.one("vggss.json").read_text(encoding="utf-8")):
        name = str(row["file"])
        media = _of_video(folder, *_names(name))
        yield Listed(name, media, (), str(row["class"]).strip(), splits.get(name, ""))


def _flickr(folder: Folder) -> Iterator[Listed]:
    """Data/ID.mp4/ with a picture and a sound, and Annotations/ID.xml, an XML file a pair.

    The test split are the 250 of flickr_test.csv, whose first column is the ID.
    """
    test = {name for path in folder.all("flickr_test.csv") for name in _first_column(path)}
    for path in folder.some("Annotations/*.xml"):
        split = ("test" if path.stem in test else "train") if test else ""
        yield Listed(path.stem, _of_flickr(folder, path.stem), split=split)


def _of_flickr(folder: Folder, name: str) -> Media:
    """The picture beside the sound where several frames lie in the folder of a video."""
    heard = folder.stems(SOUNDS).get(name)
    beside = [heard.with_suffix(suffix) for suffix in sorted(PICTURES)] if heard else []
    seen = next((path for path in beside if path.is_file()), None)
    return {"images": seen or picture(folder, (name,)), "audio": sound(folder, (name,))}


def _vggss_extended(folder: Folder) -> Iterator[Listed]:
    positive = json.loads(folder.one("vggss.json").read_text(encoding="utf-8"))
    yield from _extended(
        folder, [str(row["file"]) for row in positive], "vggss_test_plus_silent.csv"
    )


def _flickr_extended(folder: Folder) -> Iterator[Listed]:
    positive = _first_column(folder.one("flickr_test.csv"))
    yield from _extended(folder, positive, "flickr_test_plus_silent.csv")


def _extended(folder: Folder, positive: Iterable[str], pairs: str) -> Iterator[Listed]:
    """Every picture and every sound of the pairs that belong together and of those that do not."""
    pictures = dict.fromkeys(positive)
    sounds = dict(pictures)
    with folder.one(pairs).open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            pictures[row["video"]] = sounds[row["audio"]] = None
    for name in pictures:
        yield Listed(name, {"images": _of_video(folder, *_names(name))["images"]}, split="test")
    for name in sounds:
        yield Listed(name, {"audio": _of_video(folder, *_names(name))["audio"]}, split="test")


def _names(name: str) -> tuple[tuple[str, ...], float | None]:
    """What files of a clip are called, and where it begins where its name says so."""
    video, _, start = name.rpartition("_")
    if video and start.isdecimal():
        return youtube_names(video, float(start)), float(start)
    return (name,), None


def _of_video(folder: Folder, names: tuple[str, ...], start: float | None = None) -> Media:
    return {"images": picture(folder, names, start), "audio": sound(folder, names, start)}


def _first_column(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.reader(file):
            if row:
                yield row[0].removesuffix(".mp4")


SCENES = (
    Published(
        name="ave",
        tables=_SCENES,
        where="linked by https://github.com/YapengTian/AVE-ECCV18",
        licence=None,
        size=None,
        counts={"all": 4097, "train": 3294, "val": 401, "test": 402},
        read=_ave,
        needs="Annotations.txt, {train,val,test}Set.txt and AVE/VIDEO.mp4",
    ),
    Published(
        name="vggsound",
        tables=_SCENES,
        where="list: https://github.com/hche11/VGGSound; videos: YouTube",
        licence="CC BY 4.0",
        size=None,
        counts={"test": 15446},
        read=_vggsound,
        split="test",
        needs="vggsound.csv and VIDEO_SECOND.mp4",
    ),
    Published(
        name="vggss",
        tables=_SCENES,
        where="list: metadata of https://github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way; "
        "clips: VGGSound's",
        licence="Apache-2.0 (list)",
        size=None,
        counts={"all": 5158, "heard": 2564, "unheard": 2575},
        read=_vggss,
        needs="vggss.json and VIDEO_SECOND.mp4, or frames/ and audio/",
        annotations=("vggss.json", "vggss_test_plus_silent.csv"),
    ),
    Published(
        name="vggss-extended",
        tables=_SCENES,
        where="linked by https://github.com/stoneMo/SLAVC, lists in its metadata",
        licence="Apache-2.0 (lists)",
        size=None,
        counts={"test": 11074},
        read=_vggss_extended,
        split="test",
        needs="vggss.json, vggss_test_plus_silent.csv, frames/NAME.jpg and audio/NAME.wav",
        annotations=("vggss.json", "vggss_test_plus_silent.csv"),
    ),
    Published(
        name="flickr-soundnet",
        tables=_SCENES,
        where="linked by https://github.com/ardasnck/learning_to_localize_sound_source; "
        "flickr_test.csv: metadata of SLAVC",
        licence="research only",
        size=None,
        counts={"all": 5000, "test": 250},
        read=_flickr,
        needs="Annotations/ID.xml, Data/ID.mp4/ and flickr_test.csv",
        annotations=("Annotations/*.xml", "flickr_test.csv", "flickr_test_plus_silent.csv"),
    ),
    Published(
        name="flickr-extended",
        tables=_SCENES,
        where="linked by https://github.com/stoneMo/SLAVC, lists in its metadata",
        licence="research only",
        size=None,
        counts={"test": 500},
        read=_flickr_extended,
        split="test",
        needs="flickr_test.csv, flickr_test_plus_silent.csv, frames/ID.jpg and audio/ID.wav",
        annotations=("Annotations/*.xml", "flickr_test_plus_silent.csv"),
    ),
)
