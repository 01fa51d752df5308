"""How the content of an item is known: its size and time of change, and the sha256 of its bytes.

    stamp(item)                  # the first two, without reading it
    measure(item)                # all three
    for item, content in in_threads(measure, items): ...

Content decides, time only spares the reading: what has the size and the time of change that are
on record is taken to be unchanged, anything else is hashed. A text in a list or in a tar is known
by its text, a file in a plain tar by its bytes there and the tar's time of change, a region by
its picture's content and its box, a span by its film's and its seconds.
"""

import hashlib
import itertools
import stat
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TypeVar

import pyarrow as pa

from cmcr.devices import cores
from cmcr.embeddings.inventory import Input
from cmcr.extract.items import Cell, Item, Refused, Slice, local_path
from cmcr.extract.media.crops import Crop, Picture
from cmcr.extract.media.decode import read_cell
from cmcr.extract.media.video import Recording, Span

_BLOCK = 1 << 20
_WINDOW = 64  # items whose bytes may be in memory at once

_one_film = Lock()  # several threads may ask for one and the same

Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Content:
    """What is known of an item's bytes; None where there is nothing to measure or hash."""

    size: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None

    def as_input(self, item: Item, *, failed: bool = False) -> Input:
        """The item's row of the inventory."""
        return Input(item.id, item.uri, self.size, self.mtime_ns, self.sha256, failed)


def stamp(item: Item) -> Content:
    """Size and time of change. No time means that only a hash can tell."""
    if isinstance(item, Refused):
        return Content()
    if isinstance(item, Crop | Span):
        return _stamp_whole(item.picture if isinstance(item, Crop) else item.recording)
    if item.content is not None:
        return Content(len(_bytes(item.content)))
    try:
        status = local_path(item.file if isinstance(item, Slice | Cell) else item.uri).stat()
    except (OSError, ValueError):
        return Content()
    if isinstance(item, Cell):
        return Content(None, status.st_mtime_ns)
    size = item.size if isinstance(item, Slice) else status.st_size
    return Content(size, status.st_mtime_ns)


def measure(item: Item) -> Content:
    """Size, time of change and sha256; the time is taken first, so that it is never too new."""
    return replace(stamp(item), sha256=digest(item))


def digest(item: Item) -> str | None:
    """The sha256 of the item's bytes; None for what cannot be read, as any other than a file."""
    if isinstance(item, Refused):
        return None
    if isinstance(item, Crop):
        picture = _digest_whole(item.picture)
        return picture and hashlib.sha256(f"{picture} {item.box!r}".encode()).hexdigest()
    if isinstance(item, Span):
        whole = _digest_whole(item.recording)
        name = f"{whole} {item.modality} {item.start!r} {item.end!r}"
        return whole and hashlib.sha256(name.encode()).hexdigest()
    if item.content is not None:
        return digest_text(item.content)
    try:
        if isinstance(item, Cell):
            content = read_cell(item)
            return None if content is None else digest_text(content)
        if isinstance(item, Slice):
            return _digest_range(local_path(item.file), item.offset, item.size)
        path = local_path(item.uri)
        return _digest_range(path, 0, None) if stat.S_ISREG(path.stat().st_mode) else None
    except (OSError, ValueError, pa.ArrowException):
        return None


def is_as_recorded(item: Item, size: int | None, mtime_ns: int | None, same_regions: bool) -> bool:
    """Whether the size and the time of change on record say that the item is unchanged.

    A picture's say nothing of a box in it, nor a film's of a span, unless these are `same_regions`
    as before: then an id stands for one box or one span.
    """
    if isinstance(item, Crop | Span) and not same_regions:
        return False
    now = stamp(item)
    return now.mtime_ns is not None and (now.size, now.mtime_ns) == (size, mtime_ns)


def in_threads(
    work: Callable[[Given], Made], given: Iterable[Given]
) -> Iterator[tuple[Given, Made]]:
    """Each of `given` with what `work` makes of it, in order, a window of them at a time."""
    rest = iter(given)
    with ThreadPoolExecutor(cores(), "hash") as pool:
        while window := list(itertools.islice(rest, _WINDOW)):
            yield from zip(window, pool.map(work, window), strict=True)


@lru_cache(maxsize=1)
def _stamp_whole(whole: Picture | Recording) -> Content:
    return stamp(whole.item)


@lru_cache(maxsize=_WINDOW)  # parts of so many pictures or films may be hashed at once
def _digest_whole(whole: Picture | Recording) -> str | None:
    return digest(whole.item) if isinstance(whole, Picture) else _digest_film(whole.item)


def _digest_film(item: Item) -> str | None:
    """Read once a process, not once a batch, for it is large."""
    now = stamp(item)
    if now.mtime_ns is None:
        return digest(item)
    with _one_film:
        return _digest_file(item.uri, now)


@lru_cache(maxsize=_WINDOW)
def _digest_file(uri: str, now: Content) -> str | None:
    return digest(Item(uri, uri))


def _bytes(content: str | bytes) -> bytes:
    return content.encode() if isinstance(content, str) else content


def digest_text(text: str | bytes) -> str:
    """The sha256 of a text, or of bytes in memory."""
    return hashlib.sha256(_bytes(text)).hexdigest()


def _digest_range(path: Path, offset: int, size: int | None) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        left = size
        while block := file.read(_BLOCK if left is None else min(_BLOCK, left)):
            hashed.update(block)
            left = None if left is None else left - len(block)
    return hashed.hexdigest()
