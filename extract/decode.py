"""From an item to what an encoder takes: pictures, waveforms, points and text.

Runs in worker processes. Whatever is wrong with one input is an exception for that input; the
caller records its first line and goes on. So messages say all they know in that line, and never
an address in memory: the same bad file gives the same row of failures.parquet.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.audio import read_audio
from cmcr.extract.images import read_image
from cmcr.extract.items import Decoded, Item
from cmcr.extract.pointclouds import read_points

LONGEST_TEXT = 1 << 20  # bytes
LARGEST_MEMBER = 1 << 30  # bytes of one file in a tar, which is held in memory


@dataclass(frozen=True, slots=True)
class Refused(Item):
    """An input that its source found unusable: `decode` raises a SourceError with `why`."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Slice(Item):
    """Encoded media that lie inside a larger file: the worker that decodes them reads them."""

    file: str = ""
    offset: int = 0
    size: int = 0


def decode(modality: Modality, item: Item) -> Decoded:
    """The decoded input. Raises SourceError, OSError or the decoder's own error."""
    if isinstance(item, Refused):
        raise SourceError(item.why)
    if modality == "text":
        return _text(item)
    with _opened(item) as file:
        if modality == "image":
            return read_image(file)
        if modality == "audio":
            return read_audio(file)
        return read_points(file, Path(item.uri).suffix.lower())


def file_uri(path: str | Path) -> str:
    """`path` itself, or as a file: URI where its bytes are not UTF-8 and no column can hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(os.path.abspath(path)))
    return str(path)


def local(uri: str) -> Path:
    """The path that `file_uri` turned into `uri`."""
    if uri.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(uri.removeprefix("file://"))))
    return Path(uri)


@contextmanager
def _opened(item: Item) -> Iterator[BinaryIO]:
    """The encoded media as a file. Only regular files: a pipe or a device might never answer."""
    if isinstance(item.content, bytes):
        if not item.content:
            raise SourceError("the file is empty")
        yield io.BytesIO(item.content)
        return
    if isinstance(item, Slice):
        yield _read_slice(item)
        return
    path = local(item.uri)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise SourceError(f"this is {kind}, not a file")
    if not status.st_size:
        raise SourceError("the file is empty")
    with path.open("rb") as file:
        yield file


def _read_slice(item: Slice) -> BinaryIO:
    if not item.size:
        raise SourceError("the file is empty")
    if item.size > LARGEST_MEMBER:
        raise SourceError(f"more than {LARGEST_MEMBER >> 20} MiB are too large for a file in a tar")
    with local(item.file).open("rb") as file:
        file.seek(item.offset)
        return io.BytesIO(file.read(item.size))


def _text(item: Item) -> str:
    if isinstance(item.content, str):
        text = item.content
    else:
        with _opened(item) as file:
            encoded = file.read(LONGEST_TEXT + 1)
        if len(encoded) > LONGEST_TEXT:
            raise SourceError(f"more than {LONGEST_TEXT >> 10} KiB are not one text")
        text = encoded.decode("utf-8-sig")
    if not text.strip():
        raise SourceError("the text is empty")
    return text
