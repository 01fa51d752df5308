"""A finished dataset takes the place of another one of its name, in one step.

    fresh = begin_fresh(store, key)         # the store in which to make the new one
    put_in_place(store, key)                # the new one is the store's, the old one is gone
    recover(store, key)                     # what a process left that was killed in between

The new dataset is made in `STORE/.update`, a store of its own on the same file system, and its
folder carries a mark until it is in place: a folder there without the mark is an old one.
"""

import ctypes
import os
import shutil
from contextlib import suppress
from pathlib import Path

from cmcr.embeddings.schema import Key
from cmcr.embeddings.writer import MANIFEST

_FRESH = ".fresh"  # the mark
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def fresh_store(store: Path) -> Path:
    """The store in which datasets are made that are to replace those of `store`."""
    return store / ".update"


def begin_fresh(store: Path, key: Key) -> Path:
    """Make ready to replace a dataset; gives the store in which to make the new one.

    What was made there before goes on.
    """
    (key.folder(store) / _FRESH).unlink(missing_ok=True)
    folder = key.folder(fresh_store(store))
    if not (folder / _FRESH).exists():
        discard_fresh(store, key)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FRESH).touch()
    return fresh_store(store)


def discard_fresh(store: Path, key: Key) -> None:
    """Take away what lies in the other store under this name, and that store where it is empty."""
    folder = key.folder(fresh_store(store))
    with suppress(FileNotFoundError):
        shutil.rmtree(folder)
    with suppress(OSError):  # there are others
        for parent in folder.relative_to(store).parents[:-1]:
            (store / parent).rmdir()


def put_in_place(store: Path, key: Key) -> None:
    """Exchange the dataset with the finished new one, and take the old one away."""
    folder, fresh = key.folder(store), key.folder(fresh_store(store))
    for unfinished in fresh.glob(".*.parquet.*"):  # of a process that was killed
        unfinished.unlink()
    for boxes in folder.glob("regions-*.jsonl"):  # a detector's, which are made but once
        if not (fresh / boxes.name).exists():
            os.link(boxes, fresh / boxes.name)
    try:
        _exchange(folder, fresh)
    except OSError:  # not Linux, or a file system that cannot: the window is one rename long
        os.rename(folder, _aside(fresh))
        os.rename(fresh, folder)
        shutil.rmtree(_aside(fresh))
    (folder / _FRESH).unlink(missing_ok=True)
    discard_fresh(store, key)


def recover(store: Path, key: Key) -> None:
    """Take away an old dataset; where a process was killed between two renames, do the other."""
    folder, fresh = key.folder(store), key.folder(fresh_store(store))
    aside = _aside(fresh)
    if aside.is_dir():
        if not folder.exists():
            os.rename(fresh if (fresh / MANIFEST).exists() else aside, folder)
            (folder / _FRESH).unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
    if fresh_store(store).is_dir() and not (fresh / _FRESH).exists():
        discard_fresh(store, key)


def _aside(fresh: Path) -> Path:
    return fresh.with_name(f".{fresh.name}")


def _exchange(one: Path, other: Path) -> None:
    """Each takes the other's name (renameat2). Raises OSError where there is no such call."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError("no renameat2")
    names = os.fsencode(one), os.fsencode(other)
    if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one))
