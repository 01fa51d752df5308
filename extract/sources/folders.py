"""A folder of media files as a source. Class folders, or the files' names, give labels.

source = folder("audio", Path("recordings"), pattern=None)
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError
from cmcr.extract.items import Item, file_uri
from cmcr.extract.media.pointclouds import begins_with_points
from cmcr.extract.media.readers import Files, files_of
from cmcr.extract.sources.source import HashIds, Source, column, columns

# File names of well-known flat collections, as (?P<column>...) groups.
FILE_NAMES = {
    "Free Spoken Digit Dataset": re.compile(
        r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav"
    ),
}


def folder(
    modality: Modality, where: Path, pattern: str | None, files: Files | None = None
) -> Source:
    """The files of the modality below `where` (`is_of`), sorted, hidden ones left out.

    Those of another kind, `files`, where that is given.

    What is named like a file and cannot be read (a dangling link, a pipe, no permission) is an
    item too: it ends in failures.parquet. Links to folders are followed, and a folder that is
    reached twice is read once. A pattern with a slash is looked for in the path below `where`,
    any other in the file's name. The description knows the files by their names and sizes. A .txt
    is a point cloud where its first line is of numbers, else passed over.
    Raises SourceError when there is no such file, or a folder below cannot be listed, UsageError
    for a pattern that matches none.
    """
    digest, former = (hashlib.sha256(str(pattern).encode()) for _ in range(2))
    ids = HashIds()
    files = files or files_of(modality)
    layout = _compile(pattern) if pattern else None
    total, matched, known = 0, 0, dict.fromkeys(FILE_NAMES, True)
    skipped: Counter[str] = Counter()
    other = ""
    for path in _walk(where, modality, files, skipped):
        relative = _readable(path.relative_to(where))
        size, time = _size_and_time(path)
        digest.update(f"{relative}\0{size}\n".encode())
        former.update(f"{relative}\0{size}{time}\n".encode())
        ids.add(relative)
        total += 1
        for name, file_name in FILE_NAMES.items():
            known[name] = known[name] and file_name.fullmatch(relative) is not None
        if layout and _match(layout, relative):
            matched += 1
        else:
            other = other or relative
    if not total:
        raise SourceError(
            f"the folder holds no {files.name} files"
            + (f", but {told(skipped)}" if skipped else ""),
            where=where,
            fix=f"files are read by their suffix: {' '.join(sorted(files.suffixes))}",
        )
    if layout and not matched:
        raise UsageError(
            f"the pattern {pattern} matches none of {total:,} files, such as {other}",
            where=where,
            fix="a pattern with a slash is looked for in the path below the folder, "
            "any other in the file's name",
        )
    told_pattern = f"the pattern matches {matched:,} of {total:,}" if layout else None
    if layout is None:
        layout = next((FILE_NAMES[name] for name, fits in known.items() if fits), None)
    elif matched < total:
        told_pattern = f"{told_pattern} (first that it does not: {other})"
    return Source(
        modality,
        name=_readable(Path(where.resolve().name)),
        description={"kind": "folder", "where": file_uri(where), "sha256": digest.hexdigest()},
        items=partial(_items, modality, files, where, layout),
        total=total,
        columns=columns(layout.groupindex) if layout else (),
        ids=ids.hex,
        skipped=dict(sorted(skipped.items())),
        pattern=told_pattern,
        former=former.hexdigest(),
    )


def one_file(modality: Modality, path: Path) -> Source:
    """A file by itself, known by its name and size."""
    name = _readable(Path(path.name))
    digest = hashlib.sha256(f"{name}\0{_size_and_time(path)[0]}\n".encode())
    return Source(
        modality,
        name=_readable(Path(path.stem)),
        description={"kind": "file", "where": file_uri(path), "sha256": digest.hexdigest()},
        items=lambda: iter([Item(name, file_uri(path))]),
        total=1,
    )


def is_of(modality: Modality, path: Path) -> bool:
    """Whether a file is of the modality: by its suffix, and a .txt of points by its first lines."""
    return _is_of(modality, files_of(modality), path)


def _is_of(modality: Modality, files: Files, path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix not in files.suffixes:
        return False
    return modality != "pointcloud" or suffix != ".txt" or begins_with_points(path)


def told(skipped: Mapping[str, int]) -> str:
    """Files by suffix, most first: `3 .txt, 1 .docx`."""
    most = sorted(skipped.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{count:,} {suffix or 'without suffix'}" for suffix, count in most)


def _match(layout: re.Pattern[str], relative: str) -> re.Match[str] | None:
    return layout.search(relative if "/" in layout.pattern else relative.rpartition("/")[2])


def _compile(pattern: str) -> re.Pattern[str]:
    fix = r"such as (?P<label>[a-z]+)_(?P<take>\d+)\.wav"
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"the pattern {pattern} is not a regular expression: {error}", fix=fix
        ) from error
    if not compiled.groupindex:
        raise UsageError(f"the pattern {pattern} names no group, so it reads nothing", fix=fix)
    return compiled


def _walk(where: Path, modality: Modality, files: Files, skipped: Counter[str]) -> Iterator[Path]:
    """The files of the modality; what is `skipped` is counted by suffix."""
    try:
        seen = {_identity(where)}
        for root, folders, names in os.walk(where, followlinks=True, onerror=_raise):
            fresh = []
            for name in sorted(folders):
                if not name.startswith(".") and (place := _identity(Path(root, name))) not in seen:
                    seen.add(place)
                    fresh.append(name)
            folders[:] = fresh
            for name in sorted(names):
                if name.startswith("."):
                    continue
                if _is_of(modality, files, path := Path(root, name)):
                    yield path
                else:
                    suffix = path.suffix.lower()
                    skipped[_readable(Path(suffix)) if suffix else ""] += 1
    except OSError as error:
        raise SourceError(
            f"a folder cannot be listed: {error.strerror}",
            where=error.filename,
            fix="make it readable, or take it out of the folder",
        ) from error


def _raise(error: OSError) -> None:
    raise error


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _size_and_time(path: Path) -> tuple[str, str]:
    try:
        status = path.stat()
    except OSError as error:
        return type(error).__name__, ""
    return str(status.st_size), f"\0{status.st_mtime_ns}"


def _readable(relative: Path) -> str:
    """A path as text; a byte that is not UTF-8 becomes \\xNN."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")


def _items(
    modality: Modality, files: Files, where: Path, layout: re.Pattern[str] | None
) -> Iterator[Item]:
    for path in _walk(where, modality, files, Counter()):
        relative = _readable(path.relative_to(where))
        top, below, _ = relative.partition("/")
        named: dict[str, str] = {}
        if layout and (match := _match(layout, relative)):
            named = {name: value or "" for name, value in match.groupdict().items()}
        label = named.pop("label", top if below else None)
        yield Item(
            id=relative,
            uri=file_uri(path),
            label=() if label is None else (label,),
            group=named.pop("group", None),
            extra={column(name): value for name, value in named.items()},
        )
