"""From an item to what an encoder takes: pictures, waveforms, points and text.

Runs in worker processes. Whatever is wrong with one input is an exception for that input; the
caller records its first line and goes on. So messages say all they know in that line, and never
an address in memory: the same bad file gives the same row of failures.parquet.
"""

import io
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.items import LARGEST_MEMBER, Cell, Decoded, Item, Refused, Slice, local_path
from cmcr.extract.media.audio import read_audio
from cmcr.extract.media.images import read_image
from cmcr.extract.media.pointclouds import read_points, z_to_y_up
from cmcr.extract.media.readers import Reader

LONGEST_TEXT = 1 << 20  # bytes

_one_group = Lock()  # several threads may ask for rows of one and the same


def decode(modality: Modality, item: Item, reader: Reader | None = None) -> Decoded:
    """The decoded input, by `reader` where the modality is none of cmcr's own.

    Raises SourceError, OSError or the decoder's own error.
    """
    if isinstance(item, Refused):
        raise SourceError(item.why)
    if modality == "text" or (reader and reader.read is None):
        return _text(item)
    with opened(item) as file:
        if reader and reader.read:
            decoded: Decoded = reader.read(file, Path(item.uri).suffix.lower())
            return decoded
        if modality == "image":
            return read_image(file)
        if modality == "audio":
            return read_audio(file)
        points = read_points(file, Path(item.uri).suffix.lower())
    return z_to_y_up(points) if item.up == "z" else points


@contextmanager
def opened(item: Item) -> Iterator[BinaryIO]:
    """The encoded media as a file. Only regular files: a pipe or a device might never answer."""
    if isinstance(item.content, bytes):
        if not item.content:
            raise SourceError("the file is empty")
        yield io.BytesIO(item.content)
        return
    if isinstance(item, Slice):
        yield _read_slice(item)
        return
    if isinstance(item, Cell):
        content = read_cell(item)
        if not content:
            raise SourceError("the row has no media" if content is None else "the file is empty")
        yield io.BytesIO(content)
        return
    path = local_path(item.uri)
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
    with local_path(item.file).open("rb") as file:
        file.seek(item.offset)
        return io.BytesIO(file.read(item.size))


def read_cell(item: Cell) -> bytes | None:
    """The bytes of one row; None where it has none. Raises OSError or an error of Arrow's."""
    path = local_path(item.file)
    status = path.stat()
    with _one_group:
        cells = _cells(path, item.column, item.row_group, status.st_size, status.st_mtime_ns)
    content: bytes | None = cells[item.row].as_py()
    return content


@lru_cache(maxsize=1)  # a row group is read once a batch, not once an item
def _cells(path: Path, column: str, row_group: int, *_: int) -> pa.ChunkedArray:
    with pq.ParquetFile(path) as file:
        cells = file.read_row_group(row_group, columns=[f"{column}.bytes"])[column]
    return pc.struct_field(cells, "bytes")


def _text(item: Item) -> str:
    if isinstance(item.content, str):
        text = item.content
    else:
        with opened(item) as file:
            encoded = file.read(LONGEST_TEXT + 1)
        if len(encoded) > LONGEST_TEXT:
            raise SourceError(f"more than {LONGEST_TEXT >> 10} KiB are not one text")
        text = encoded.decode("utf-8-sig")
    if not text.strip():
        raise SourceError("the text is empty")
    return text
