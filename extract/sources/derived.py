"""What is found in the media of a source before they are embedded, kept in a file: JSON lines.

    file = derive(folder / "regions-0123.jsonl", pictures, find, run=256, told="detect", unit="...")

So the number of items is known before the first of them is embedded. A source is gone through in
runs, so that a pass that is interrupted goes on where it stopped. Other processes wait until it is
through.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cmcr.embeddings.schema import identity
from cmcr.extract.items import Cell, Item, Slice, local_path
from cmcr.extract.sources.source import Source
from cmcr.files import locked, replacing
from cmcr.progress import progress

Find = Callable[[Item], Iterable[Mapping[str, Any]]]


def derive(
    file: Path, source: Source, begin: Callable[[], Find], *, run: int, told: str, unit: str
) -> Path:
    """`file`, made where it is not there: a line for each mapping that is found in an item.

    `begin` gives what finds them, and is called only where something is to be found. `run` items
    are a unit of work; `told` and `unit` are for the progress.
    """
    with locked(file.parent / ".locks" / file.name, wait=True):
        if not file.exists():
            _derive(file, source, begin(), run, told, unit)
    return file


def _derive(file: Path, source: Source, find: Find, run: int, told: str, unit: str) -> None:
    unfinished = file.with_name(f".{file.stem}")
    runs = [unfinished / f"{number:06d}" for number in range(-(-source.total // run))]
    items = source.items()
    with progress(f"{told} {source.name}", source.total, unit) as advance:
        for part in runs:
            chosen = itertools.islice(items, run)
            if part.exists():
                advance(sum(1 for _ in chosen))
                continue
            with replacing(part) as target, target.open("w", encoding="utf-8") as lines:
                for item in chosen:
                    for found in find(item):
                        lines.write(json.dumps(found) + "\n")
                    advance(1)
    with replacing(file) as target, target.open("wb") as whole:
        for part in runs:
            whole.write(part.read_bytes())
    shutil.rmtree(unfinished)


def digest_media(source: Source) -> str:
    """Changes with every medium: a source may know its files by their names and sizes alone."""
    digest = hashlib.sha256(identity(source.description).encode())
    if not source.sealed:
        for item in source.items():
            if isinstance(item.content, bytes):  # of a compressed tar
                digest.update(hashlib.sha256(item.content).digest())
                continue
            with suppress(OSError, ValueError):
                file = item.file if isinstance(item, Slice | Cell) else item.uri
                status = local_path(file).stat()
                digest.update(f"{item.id}\0{status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
