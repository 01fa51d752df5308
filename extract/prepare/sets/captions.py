"""Captions with what they tell of, COCO, AudioCaps and Clotho, and lists of captions alone.

Captions of one picture or sound are rows of their own and one `group` with it. COCO's JSON,
AudioCaps' CSV (cdjkim/audiocaps, dataset/README.md) and Clotho's CSV with five captions a row
(Zenodo) are read as they are offered. Conceptual Captions have no header: caption and address, in
CC12M address and caption.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cmcr.errors import SourceError
from cmcr.extract.prepare.folder import PICTURES, Folder
from cmcr.extract.prepare.published import Listed, Published
from cmcr.extract.prepare.sets.finding import sound, youtube_names
from cmcr.extract.sources.manifests import is_text

_CLOTHO_COLUMNS = tuple(f"caption_{number}" for number in range(1, 6))
_COLUMNS = ("caption", "text", *_CLOTHO_COLUMNS)


def _coco(folder: Folder) -> Iterator[Listed]:
    pictures = folder.stems(PICTURES)
    for path in folder.some("captions_*.json"):
        listing = json.loads(path.read_text(encoding="utf-8"))
        split = path.stem.removeprefix("captions_")
        captions: dict[int, list[str]] = {}
        for row in listing["annotations"]:
            captions.setdefault(row["image_id"], []).append(row["caption"].strip())
        for image in listing["images"]:
            yield Listed(
                str(image["id"]),
                {"images": pictures.get(Path(image["file_name"]).stem)},
                tuple(captions.get(image["id"], ())),
                split=split,
            )


def _audiocaps(folder: Folder) -> Iterator[Listed]:
    """A row a caption: audiocap_id, youtube_id, start_time, caption. A clip is cut at its start."""
    for split in ("train", "val", "test"):
        clips: dict[tuple[str, str], dict[str, str]] = {}
        for path in folder.all(f"*{split}.csv"):
            for row in _rows_with(path, "audiocap_id"):
                captions = clips.setdefault((row["youtube_id"], row["start_time"]), {})
                captions[row["audiocap_id"]] = row["caption"].strip()
        for (video, start), captions in clips.items():
            media = sound(folder, (*youtube_names(video, float(start)), *captions), float(start))
            texts = tuple(captions.values())
            yield Listed(f"{video}_{start}", {"audio": media}, texts, split=split)


def _clotho(folder: Folder) -> Iterator[Listed]:
    sounds = {(path.parent.name, path.name): path for path in folder.all("*.wav")}
    for path in folder.some("clotho_captions_*.csv"):
        split = path.stem.removeprefix("clotho_captions_")
        for row in _rows_with(path, "file_name"):
            name = row["file_name"]
            found = sounds.get((split, name)) or sounds.get((f"clotho_audio_{split}", name))
            captions = tuple(row[column].strip() for column in _CLOTHO_COLUMNS)
            yield Listed(f"{split}/{Path(name).stem}", {"audio": found}, captions, split=split)


def _texts(folder: Folder) -> Iterator[Listed]:
    """Every caption of every list once, in the order of the lists' paths."""
    seen: set[int] = set()
    for path in folder.some("*.tsv", "*.csv", "*.json", "*.txt"):
        for text in _captions(path):
            if text and hash(text) not in seen:
                seen.add(hash(text))
                yield Listed(str(len(seen) - 1), texts=(text,))


def _captions(path: Path) -> Iterator[str]:
    """The captions of a list of a kind that is known here, nothing of any other file."""
    readers: dict[str, Callable[[Path], Iterator[str]]] = {
        ".tsv": _conceptual,
        ".csv": _columns,
        ".json": _json,
        ".txt": _lines,
    }
    for text in readers[path.suffix](path):
        yield " ".join(text.split())


def _conceptual(path: Path) -> Iterator[str]:
    """Of a list with a header, such as our own texts.tsv, the columns that hold captions."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        named = _named(file.readline().rstrip("\r\n").split("\t"))
        if not named:
            file.seek(0)
        for line in file:
            fields = line.rstrip("\r\n").split("\t")
            if named:
                yield from (fields[at] for at in named if at < len(fields))
            else:
                one, other = fields[0], "\t".join(fields[1:])
                yield other if one.startswith(("http://", "https://")) else one


def _columns(path: Path) -> Iterator[str]:
    """The columns that hold captions; of a list without a header and with one column, that one.

    Raises SourceError for a line of several fields in such a list.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        named = _named(header)
        if is_text(header):
            named = [0]
            yield header[0]
        for row in rows:
            if len(row) > 1 and is_text(header):
                raise SourceError(
                    f"line {rows.line_num} has {len(row)} fields, but the first line is one text",
                    where=path,
                    fix="put captions that hold a comma between quotation marks, or name the file "
                    ".txt: then a line is a caption",
                )
            yield from (row[at] for at in named if at < len(row))


def _named(header: Sequence[str]) -> list[int]:
    """Where the captions stand in a list with this header; nowhere if it is none."""
    return [at for at, name in enumerate(header) if name in _COLUMNS]


def _json(path: Path) -> Iterator[str]:
    """COCO's annotations, MSR-VTT's sentences."""
    listing = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(listing, dict):
        for row in listing.get("annotations") or listing.get("sentences") or ():
            if isinstance(row, dict):
                yield str(row.get("caption", ""))


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from file


def _rows_with(path: Path, column: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV that has the column, none of any other."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if column in (reader.fieldnames or ()):
            yield from reader


CAPTIONS = (
    Published(
        name="coco",
        tables=("images", "captions"),
        where="https://cocodataset.org: val2017.zip, annotations_trainval2017.zip",
        licence="CC BY 4.0 (captions); pictures as on Flickr",
        size="1 GB and 241 MB",
        counts={"val2017": 5000},
        read=_coco,
        split="val2017",
        needs="captions_val2017.json and val2017/",
    ),
    Published(
        name="audiocaps",
        tables=("audio", "captions"),
        where="captions: https://github.com/cdjkim/audiocaps; sounds: YouTube, as AudioSet",
        licence="MIT (captions); academic use, says the README",
        size=None,
        counts={"test": 975},
        read=_audiocaps,
        split="test",
        needs="test.csv and recordings or videos named by YouTube's id",
    ),
    Published(
        name="clotho",
        tables=("audio", "captions"),
        where="https://zenodo.org/record/4783391: clotho_audio_evaluation.7z, unpacked, and "
        "clotho_captions_evaluation.csv",
        licence="as on the record, by file",
        size=None,
        counts={"evaluation": 1045},
        read=_clotho,
        split="evaluation",
        needs="clotho_captions_evaluation.csv and evaluation/",
    ),
    Published(
        name="texts",
        tables=("texts",),
        where="CC3M: https://github.com/google-research-datasets/conceptual-captions; the caption "
        "lists of COCO, MSR-VTT, AudioCaps, Clotho; your own, one text a line",
        licence="each list's own",
        size=None,
        counts={},
        read=_texts,
        needs="caption lists: .tsv of Conceptual Captions, .csv, .json, .txt",
        place=".",
    ),
)
