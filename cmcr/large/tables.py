"""Tables that lie in mapped files once they are large, and texts of any number compared.

table = mapped(tables)                     # all of them as one
partners(ids, others)                      # (ids,) a row of `others` with the same id, or -1
most_repeated(ids)                         # ("cat.jpg", 3), or None where each occurs once

Texts are compared in parts: what is held for it are the rows whose hashes are in one of them.
"""

import errno
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator
from tempfile import TemporaryFile, gettempdir

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcr.large.arrays import LARGE, numbers, room_for

PART_ROWS = 1 << 19  # that are compared at a time
MOST_PARTS = 256
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def mapped(tables: Iterable[pa.Table]) -> pa.Table:
    """The rows of `tables`, one after another; from 16 MiB in a file without a name in TMPDIR.

    They have one schema, and there is one at least. Raises OSError where there is no room for it.
    """
    held: list[pa.Table] = []
    size = 0
    coming = iter(tables)
    for table in coming:
        held.append(table)
        size += table.nbytes
        if size >= LARGE:
            return _in_file(held, coming)
    return pa.concat_tables(held)


def _in_file(held: list[pa.Table], coming: Iterator[pa.Table]) -> pa.Table:
    try:
        with TemporaryFile() as file:
            with pa.ipc.new_file(file, held[0].schema) as writer:
                while held:
                    writer.write_table(held.pop(0))
                for table in coming:
                    writer.write_table(table)
            file.flush()
            pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except OSError as error:
        if error.errno not in FULL:
            raise  # of what is read
        raise OSError(error.errno, os.strerror(error.errno), gettempdir()) from error
    return pa.ipc.open_file(pa.py_buffer(pages)).read_all()


def partners(texts: pa.ChunkedArray, others: pa.ChunkedArray) -> np.ndarray:
    """A row of `others` that has the text of each row of `texts`, -1 for none: (texts,) int64.

    Null has no partner.
    """
    if not texts.null_count and texts.equals(others):
        return numbers(len(texts))
    found = room_for((len(texts),), np.int64)
    found[:] = -1
    parts = _parts(max(len(texts), len(others)))
    ours, theirs = (_numbered(column, parts) for column in (texts, others))
    for part in range(parts):
        names, rows = _of(texts, ours, part)
        known, places = _of(others, theirs, part)
        at = pc.index_in(names, value_set=known)
        there = np.asarray(at.is_valid())
        found[rows[there]] = places[at.drop_null().to_numpy()]
    return found


def most_repeated(texts: pa.ChunkedArray) -> tuple[str | None, int] | None:
    """A text that occurs most often, and how often; None where each occurs once.

    Null counts as a text.
    """
    most: tuple[str | None, int] = (None, 1)
    parts = _parts(len(texts))
    numbered = _numbered(texts, parts)
    for part in range(parts):
        names, _ = _of(texts, numbered, part, null=True)
        if pc.count_distinct(names, mode="all").as_py() < len(names):
            times = pc.value_counts(names)
            count = pc.max(times.field("counts")).as_py()
            if count > most[1]:
                place = pc.index(times.field("counts"), count).as_py()
                most = (times[place]["values"].as_py(), count)
    return most if most[1] > 1 else None


def _parts(rows: int) -> int:
    return min(max(-(-rows // PART_ROWS), 1), MOST_PARTS)


def _numbered(texts: pa.ChunkedArray, parts: int) -> np.ndarray:
    """The part that each text is compared in, (texts,) uint8; null is in the first."""
    found = np.zeros(len(texts), np.uint8)
    start = 0
    for chunk in texts.chunks if parts > 1 else ():
        bytes_of = chunk.cast(pa.binary()).to_pylist()
        found[start : start + len(chunk)] = [zlib.crc32(text or b"") % parts for text in bytes_of]
        start += len(chunk)
    return found


def _of(
    texts: pa.ChunkedArray, numbered: np.ndarray, part: int, null: bool = False
) -> tuple[pa.Array, np.ndarray]:
    """The texts of one part and their rows, without null unless it is asked for."""
    kept, rows, start = [], [], 0
    for chunk in texts.chunks:
        there = numbered[start : start + len(chunk)] == part
        if chunk.null_count and not null:
            there &= np.asarray(chunk.is_valid())
        kept.append(chunk.filter(pa.array(there)))
        rows.append(np.flatnonzero(there) + start)
        start += len(chunk)
    names = pa.chunked_array(kept, texts.type).combine_chunks()
    return names, np.concatenate([np.empty(0, np.int64), *rows])
