"""Regions of pictures as a source: a crop is an item, the pictures are those of another source.

    open_regions(open_source("image", "photos/"), "boxes.jsonl", ...)
    open_regions(open_source("image", "photos/"), "grid", ...)         # or grid:3, grid:2
    open_regions(open_source("image", "photos/"), "torchvision", ...)   # detector.py

A file (.jsonl, .csv, .tsv, .parquet) has a row for each box: `image`, the id of the picture in
its source (in a folder: its path there), `x0`, `y0`, `x1`, `y1` in fractions of its width and
height, or in pixels where one of the four is 2 or more, and `label` if the region has its own. A
box is clipped to its picture. The order within the file does not matter: the items follow the
pictures.

A grid is the whole picture, and windows of a half, a third and a quarter of its width and height,
each moved by half a window: 84 regions. `grid:N` ends at an N-th: 35 regions for 3, 10 for 2.
"""

import json
import math
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from cmcr.errors import SourceError, UsageError
from cmcr.extract.items import Item, Refused, file_uri
from cmcr.extract.media.crops import COLUMNS, PLACES, Box, crops
from cmcr.extract.regions.detector import faster_rcnn, propose
from cmcr.extract.sources.manifests import READERS, read_rows
from cmcr.extract.sources.source import Source, as_text, labels
from cmcr.files import sha256_file

FINEST = 4  # windows that fill a side of the picture at the last scale of `grid`
_MOST = 16


def grid(finest: int = FINEST) -> tuple[Box, ...]:
    """Windows of which 1, 2 … `finest` fill a side, each half a window from the next: the
    (2n - 1)² of each n.
    """
    return tuple(
        (column / (2 * n), row / (2 * n), (column + 2) / (2 * n), (row + 2) / (2 * n))
        for n in range(1, finest + 1)
        for row in range(2 * n - 1)
        for column in range(2 * n - 1)
    )


def open_regions(pictures: Source, where: str, folder: Path, device: str) -> Source:
    """The regions of `pictures` that `where` names.

    A FILE, `grid[:N]` or `torchvision[:CHECKPOINT]`. A detector runs on `device`, once: its boxes
    are kept in `folder`. Raises UsageError for what is none of these, SourceError for a file that
    is damaged, EncoderError for a detector without weights.
    """
    kind, _, which = where.partition(":")
    if pictures.modality != "image":
        raise UsageError(f"regions are of pictures, not of {pictures.modality}")
    if pictures.part is not None:
        raise UsageError("a plan of pictures has no regions", fix="give --regions to `cmcr plan`")
    if kind == "grid":
        finest = _finest(which)
        windows = grid(finest)
        description = {"kind": "grid", "per_side": list(range(1, finest + 1)), "stride": 0.5}
        items = partial(_windows, pictures, windows)
        return regions(pictures, description, items, pictures.total * len(windows))
    if kind == "torchvision":
        weights = Path(which).expanduser() if which else None
        return from_file(pictures, propose(pictures, folder, *faster_rcnn(weights, device)))
    path = Path(where).expanduser()
    if not path.is_file() or path.suffix.lower() not in READERS or path.suffix == ".txt":
        raise UsageError(
            f"regions are not read from {where!r}",
            fix="grid, grid:3, torchvision:CHECKPOINT, or a file of .jsonl, .csv, .tsv, .parquet "
            f"with the columns {', '.join(COLUMNS)}",
        )
    return from_file(pictures, path)


def from_file(pictures: Source, where: Path) -> Source:
    """The regions that a file lists. A picture that is not in the source is one failure.

    Raises SourceError for a file that is damaged or lists nothing, UsageError for one without the
    columns.
    """
    items = partial(_listed, pictures, where)
    total = sum(1 for _ in items())
    return regions(pictures, {"kind": "file", "sha256": sha256_file(where)}, items, total)


def regions(
    pictures: Source, description: dict[str, Any], items: Callable[[], Iterator[Item]], total: int
) -> Source:
    """`items` as a source: regions of `pictures`, which `description` says how they were found."""
    return Source(
        "image",
        name=f"{pictures.name}-regions",
        description={**pictures.description, "regions": description},
        items=items,
        total=total,
        columns=tuple(dict.fromkeys([*pictures.columns, *COLUMNS])),
        numbers=tuple(dict.fromkeys([*pictures.numbers, *PLACES])),
        sealed=pictures.sealed,
        skipped=pictures.skipped,
        pattern=pictures.pattern,
        former=pictures.former,
    )


def _finest(text: str) -> int:
    """What stands behind `grid:`, or `FINEST`."""
    if not text:
        return FINEST
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise UsageError(
            f"grid:{text} is no grid",
            fix=f"grid:N, N from 1 to {_MOST}: windows of a half, a third … an N-th of the picture",
        )
    return int(text)


def _windows(pictures: Source, windows: tuple[Box, ...]) -> Iterator[Item]:
    for picture in pictures.items():
        yield from crops(picture, ((box, None) for box in windows))


def _listed(pictures: Source, where: Path) -> Iterator[Item]:
    with closing(_table(where)) as table:
        table.execute("create table pictures (id text)")
        for picture in pictures.items():
            table.execute("insert into pictures values (?)", [picture.id])
            found = table.execute(
                "select box, label from boxes where image = ? order by rowid", [picture.id]
            )
            yield from crops(picture, (_read(box, label) for box, label in found))
        lost = table.execute(
            "select image from boxes where image not in (select id from pictures) "
            "group by image order by min(rowid)"
        )
        for (image,) in lost:
            why = f"the source has no picture {image!r}, which the file of regions names"
            yield Refused(f"{image}#0", file_uri(where.absolute()), why=why)


def _table(where: Path) -> sqlite3.Connection:
    """The boxes by picture, in a database that SQLite keeps in a temporary file of its own."""
    table = sqlite3.connect("")
    try:
        table.execute("create table boxes (image text, box text, label text)")
        table.executemany("insert into boxes values (?, ?, ?)", _boxes(where))
        table.execute("create index by_image on boxes (image)")
    except BaseException:
        table.close()
        raise
    return table


def _read(box: str, label: str) -> tuple[Box, tuple[str, ...] | None]:
    x0, y0, x1, y1 = json.loads(box)
    return (x0, y0, x1, y1), tuple(json.loads(label)) or None


def _boxes(where: Path) -> Iterator[tuple[str, str, str]]:
    """The picture of each row, and its box and label as JSON."""
    names: set[str] = set()
    for row in read_rows(where):
        names.update(row)
        box = [_number(row.get(place)) for place in PLACES]
        yield as_text(row.get("image")) or "", json.dumps(box), json.dumps(labels(row.get("label")))
    if not names:
        raise SourceError("the file lists no region", where=where, fix="write a row for each box")
    if missing := [name for name in COLUMNS if name not in names]:
        raise UsageError(
            f"the file of regions has no column {', '.join(missing)}",
            where=where,
            fix=f"it needs {', '.join(COLUMNS)}, and may have label",
        )


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
