"""Where media comes from: a folder, a text file, a manifest, or data that ships with cmcr.

    source = open_source("audio", "recordings/")        # class folders give labels
    source = open_source("text", "captions.txt")        # one text a line
    source = open_source("image", "items.csv")          # columns path, and id, label, group, ...
    source = open_source("text", "builtin:digits/phrases")
    for item in source.items(): ...                     # always in the same order

A source can be read again and again, holds no more than one item in memory at a time, and its
description changes when what it would yield changes.
"""

import csv
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError
from cmcr.extract.items import Item
from cmcr.files import sha256_file

SUFFIXES: Mapping[Modality, frozenset[str]] = {
    "audio": frozenset([".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au"]),
    "image": frozenset(
        [".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"]
    ),
    "pointcloud": frozenset([".npy", ".npz"]),
    "text": frozenset([".txt"]),
}
TEXT_COLUMNS = ("text", "caption")
_OWN = ("id", "path", "label", "group", *TEXT_COLUMNS)

# File names of well-known flat collections, as (?P<column>...) groups.
FILE_NAMES = {
    "Free Spoken Digit Dataset": re.compile(
        r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav"
    ),
}


@dataclass(frozen=True)
class Source:
    """A re-readable sequence of items. `columns` are the names in every item's `extra`."""

    modality: Modality
    name: str
    description: Mapping[str, Any]
    items: Callable[[], Iterator[Item]]
    total: int
    columns: tuple[str, ...] = ()


def open_source(modality: Modality, where: str, pattern: str | None = None) -> Source:
    """The source that `where` names.

    `pattern` is a regular expression for file names in a folder; its named groups `label` and
    `group` are those of the item, every other one becomes a column.

    Raises UsageError for a place that is not there or not of a known kind, SourceError for one
    with nothing to embed.
    """
    if where.startswith("builtin:"):
        return _builtin(modality, where)
    path = Path(where).expanduser()
    if path.is_dir():
        return _folder(modality, path, pattern)
    readers: Mapping[str, Callable[[Path], Iterator[dict[str, Any]]]] = {
        ".txt": _lines,
        ".csv": partial(_delimited, delimiter=","),
        ".tsv": partial(_delimited, delimiter="\t"),
        ".jsonl": _json_lines,
        ".parquet": _parquet,
    }
    if not path.is_file():
        raise UsageError(
            "there is no such folder or file", where=where, cure="see --source MODALITY=WHERE"
        )
    if path.suffix.lower() not in readers:
        raise UsageError(
            f"a source is not read from {path.suffix or 'a file without suffix'}",
            where=where,
            cure=f"a folder, builtin:NAME, or a file of {', '.join(readers)}",
        )
    return _manifest(modality, path, readers[path.suffix.lower()])


def _builtin(modality: Modality, where: str) -> Source:
    from cmcr.extract.digits.sources import BUILTIN

    name = where.removeprefix("builtin:")
    if name not in BUILTIN or BUILTIN[name].modality != modality:
        fitting = [other for other, data in BUILTIN.items() if data.modality == modality]
        raise UsageError(
            f"there is no {modality} named {where}",
            cure=f"one of: {', '.join(f'builtin:{other}' for other in fitting) or 'none'}",
        )
    builtin = BUILTIN[name]
    first = next(builtin.read())
    return Source(
        modality,
        name=name.rpartition("/")[2],
        description={"kind": "builtin", "where": where, "sha256": builtin.sha256()},
        items=builtin.read,
        total=sum(1 for _ in builtin.read()),
        columns=tuple(first.extra),
    )


# A folder of files


def _folder(modality: Modality, folder: Path, pattern: str | None) -> Source:
    digest = hashlib.sha256(str(pattern).encode())
    total, known = 0, dict.fromkeys(FILE_NAMES, True)
    for path in _walk(folder, SUFFIXES[modality]):
        status = path.stat()
        relative = path.relative_to(folder).as_posix()
        digest.update(f"{relative}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        total += 1
        for name, file_name in FILE_NAMES.items():
            known[name] = known[name] and file_name.fullmatch(relative) is not None
    if not total:
        raise SourceError(
            f"the folder holds no {modality} files",
            where=folder,
            cure=f"files are read by their suffix: {' '.join(sorted(SUFFIXES[modality]))}",
        )
    layout = _compile(pattern) if pattern else None
    if layout is None:
        layout = next((FILE_NAMES[name] for name, fits in known.items() if fits), None)
    groups = layout.groupindex if layout else {}
    return Source(
        modality,
        name=folder.resolve().name,
        description={"kind": "folder", "where": str(folder), "sha256": digest.hexdigest()},
        items=partial(_folder_items, modality, folder, layout),
        total=total,
        columns=tuple(name for name in groups if name not in _OWN),
    )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the file-name pattern is not a regular expression: {error}") from error


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(root, name)
            if not name.startswith(".") and path.suffix.lower() in suffixes and path.is_file():
                yield path


def _folder_items(
    modality: Modality, folder: Path, layout: re.Pattern[str] | None
) -> Iterator[Item]:
    for path in _walk(folder, SUFFIXES[modality]):
        relative = path.relative_to(folder)
        named: dict[str, str] = {}
        if layout and (match := layout.search(path.name)):
            named = {name: value or "" for name, value in match.groupdict().items()}
        label = named.pop("label", relative.parts[0] if len(relative.parts) > 1 else None)
        yield Item(
            id=relative.as_posix(),
            uri=str(path),
            label=() if label is None else (label,),
            group=named.pop("group", None),
            extra=named,
        )


# A file that lists the inputs


def _manifest(
    modality: Modality, path: Path, read: Callable[[Path], Iterator[dict[str, Any]]]
) -> Source:
    rows = _readable(read, path)
    first = next(rows, None)
    if first is None:
        raise SourceError("the file lists nothing", where=path)
    wanted = TEXT_COLUMNS if modality == "text" else ("path",)
    column = next((name for name in wanted if name in first), None)
    if column is None:
        raise UsageError(
            f"the manifest has no column {' or '.join(wanted)}; it has {', '.join(first)}",
            where=path,
            cure="name the column so",
        )
    return Source(
        modality,
        name=path.stem,
        description={"kind": "manifest", "where": str(path), "sha256": sha256_file(path)},
        items=partial(_manifest_items, path, read, column),
        total=1 + sum(1 for _ in rows),
        columns=tuple(name for name in first if name not in _OWN),
    )


def _manifest_items(
    path: Path, read: Callable[[Path], Iterator[dict[str, Any]]], column: str
) -> Iterator[Item]:
    for number, row in enumerate(_readable(read, path)):
        value = str(row[column]) if row.get(column) is not None else ""
        text = value if column in TEXT_COLUMNS else None
        label, group = row.get("label"), row.get("group")
        yield Item(
            id=str(row["id"]) if row.get("id") is not None else str(number),
            uri=f"{path}#{number}" if text is not None else str(path.parent / value),
            content=text,
            label=_labels(label),
            group=None if group in (None, "") else str(group),
            extra={
                name: str(field)
                for name, field in row.items()
                if name not in _OWN and field is not None
            },
        )


def _labels(value: Any) -> tuple[str, ...]:
    if value in (None, ""):
        return ()
    return tuple(map(str, value)) if isinstance(value, list) else (str(value),)


def _readable(
    read: Callable[[Path], Iterator[dict[str, Any]]], path: Path
) -> Iterator[dict[str, Any]]:
    try:
        yield from read(path)
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise SourceError(
            f"the file cannot be read: {error}", where=path, cure="save it again, in UTF-8"
        ) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            if line.strip():
                yield {"id": str(number), "text": line.strip()}


def _delimited(path: Path, *, delimiter: str) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file, delimiter=delimiter):
            if None in row or None in row.values():
                raise ValueError(f"a row has another number of fields than the header: {row}")
            yield row


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in itertools.filterfalse(str.isspace, file):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a line is not a JSON object: {line[:80]!r}")
            yield row


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(1024):
            yield from batch.to_pylist()
