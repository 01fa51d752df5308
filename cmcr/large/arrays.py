"""Arrays that lie in mapped files once they are large.

vectors = room_for((rows, dim))            # zeros
order = shuffled(rows, random)             # as random.permutation(rows) has it

Their pages are the kernel's to give up when memory is short; the files have no name, and are gone
with the arrays.
"""

import math
import mmap
import os
from tempfile import TemporaryFile, gettempdir

import numpy as np
from numpy.typing import DTypeLike

LARGE = 1 << 24  # bytes of what goes to a file

_BLOCK = 1 << 20  # values that are written at a time


def room_for(shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> np.ndarray:
    """An array of zeros that may be larger than memory.

    From 16 MiB it is a mapped file without a name in TMPDIR. Raises OSError where there is no room
    for it.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size < LARGE:
        return np.zeros(shape, dtype)
    with TemporaryFile() as file:
        try:
            _allocate(file.fileno(), size)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), gettempdir()) from error
        return np.ndarray(shape, dtype, buffer=mmap.mmap(file.fileno(), size))


def numbers(count: int) -> np.ndarray:
    """0 to `count` - 1, (count,) int64."""
    found = room_for((count,), np.int64)
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        found[start:stop] = np.arange(start, stop)
    return found


def shuffled(count: int, random: np.random.Generator) -> np.ndarray:
    """`random.permutation(count)`, (count,) int64."""
    order = numbers(count)
    random.shuffle(order)
    return order


def flatnonzero(mask: np.ndarray) -> np.ndarray:
    """`np.flatnonzero(mask)` of (n,) bool."""
    found = room_for((int(np.count_nonzero(mask)),), np.int64)
    done = 0
    for start in range(0, len(mask), _BLOCK):
        some = np.flatnonzero(mask[start : start + _BLOCK])
        found[done : done + len(some)] = some + start
        done += len(some)
    return found


def taken(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`values[chosen]`, of (n,) and (some,)."""
    found = room_for((len(chosen),), values.dtype)
    for start in range(0, len(chosen), _BLOCK):
        found[start : start + _BLOCK] = values[chosen[start : start + _BLOCK]]
    return found


def _allocate(file: int, size: int) -> None:
    """Make a file so long. A full disk is told of here where it can be: a mapping cannot."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)
