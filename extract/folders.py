"""A folder of media files as a source. Class folders, or the files' names, give labels.

source = folder("audio", Path("recordings"), pattern=None)
"""

import hashlib
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError
from cmcr.extract.decode import file_uri
from cmcr.extract.items import Item
from cmcr.extract.rows import OWN, SUFFIXES, Source

# File names of well-known flat collections, as (?P<column>...) groups.
FILE_NAMES = {
    "Free Spoken Digit Dataset": re.compile(
        r"(?P<label>\d)_(?P<speaker>[a-z]+)_(?P<take>\d+)\.wav"
    ),
}


def folder(modality: Modality, where: Path, pattern: str | None) -> Source:
    """The files below `where` whose suffix is of the modality, sorted, hidden ones left out.

    What is named like a file and cannot be read (a dangling link, a pipe, no permission) is an
    item too: it ends in failures.parquet. Links to folders are followed, and a folder that is
    reached twice is read once. Raises SourceError when there is no such file, or a folder below
    cannot be listed.
    """
    digest = hashlib.sha256(str(pattern).encode())
    total, known = 0, dict.fromkeys(FILE_NAMES, True)
    for path in _walk(where, SUFFIXES[modality]):
        relative = _readable(path.relative_to(where))
        digest.update(f"{relative}\0{_state(path)}\n".encode())
        total += 1
        for name, file_name in FILE_NAMES.items():
            known[name] = known[name] and file_name.fullmatch(relative) is not None
    if not total:
        raise SourceError(
            f"the folder holds no {modality} files",
            where=where,
            cure=f"files are read by their suffix: {' '.join(sorted(SUFFIXES[modality]))}",
        )
    layout = _compile(pattern) if pattern else None
    if layout is None:
        layout = next((FILE_NAMES[name] for name, fits in known.items() if fits), None)
    groups = layout.groupindex if layout else {}
    return Source(
        modality,
        name=_readable(Path(where.resolve().name)),
        description={"kind": "folder", "where": file_uri(where), "sha256": digest.hexdigest()},
        items=partial(_items, modality, where, layout),
        total=total,
        columns=tuple(name for name in groups if name not in OWN),
    )


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the file-name pattern is not a regular expression: {error}") from error


def _walk(where: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    try:
        seen = {_identity(where)}
        for root, folders, files in os.walk(where, followlinks=True, onerror=_raise):
            fresh = []
            for name in sorted(folders):
                if not name.startswith(".") and (place := _identity(Path(root, name))) not in seen:
                    seen.add(place)
                    fresh.append(name)
            folders[:] = fresh
            for name in sorted(files):
                if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                    yield Path(root, name)
    except OSError as error:
        raise SourceError(
            f"a folder cannot be listed: {error.strerror}",
            where=error.filename,
            cure="make it readable, or take it out of the folder",
        ) from error


def _raise(error: OSError) -> None:
    raise error


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _state(path: Path) -> str:
    try:
        status = path.stat()
    except OSError as error:
        return type(error).__name__
    return f"{status.st_size}\0{status.st_mtime_ns}"


def _readable(relative: Path) -> str:
    """A path as text; a byte that is not UTF-8 becomes \\xNN."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")


def _items(modality: Modality, where: Path, layout: re.Pattern[str] | None) -> Iterator[Item]:
    for path in _walk(where, SUFFIXES[modality]):
        relative = _readable(path.relative_to(where))
        top, below, _ = relative.partition("/")
        named: dict[str, str] = {}
        if layout and (match := layout.search(relative.rpartition("/")[2])):
            named = {name: value or "" for name, value in match.groupdict().items()}
        label = named.pop("label", top if below else None)
        yield Item(
            id=relative,
            uri=file_uri(path),
            label=() if label is None else (label,),
            group=named.pop("group", None),
            extra=named,
        )
