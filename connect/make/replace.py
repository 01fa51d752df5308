"""A name that another connection has already: it is refused, or replaced by a finished new one.

    others = differences(folder, problem.differences)     # ["epochs: 36 → 40"], or [] to go on
    refuse(folder, others)                                # unless it is to be replaced
    make(folder / NEW)                                    # however long that takes
    take_place(folder)

FOLDER/.new     the new one while it is made
FOLDER/.whole   the new one, finished: while it is there, it is what is read

One that was never finished, or that is damaged beyond reading, has nothing to lose. What was killed
on its way leaves the old one or the new one whole; `settle` finishes what is left to do.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from cmcr.connect.connection.record import WHOLE, Record, read_content, read_record
from cmcr.errors import StoreError, UsageError, VersionError
from cmcr.files import replacing

NEW = ".new"
_OVER = ".over"  # copied, and about to be deleted
_LOCK = ".lock"
# All that is made in the folder of a connection: what the new one lacks of it goes.
_MADE = (
    "config.json",
    "model.safetensors",
    "README.md",
    "training.jsonl",
    "methods.json",
    "methods",
    "tensorboard",
    "link-*",
)
_SHOWN = 4


class NameTakenError(UsageError):
    """A connection of that name is there, and it is another one."""

    def __init__(self, folder: Path, others: Sequence[str], fix: str | None = None) -> None:
        shown = "; ".join(others[:_SHOWN])
        more = f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        self.others = tuple(others)
        super().__init__(
            f"the folder holds a connection already, and it differs: {shown}{more}",
            where=folder,
            fix=f"{fix + '; or ' if fix else ''}give the new one another --name or --out, or "
            "--replace the old one, which is kept until the new one is finished",
        )


def refuse(folder: Path, others: Sequence[str]) -> None:
    """Raise NameTakenError where there is something in `others`."""
    if others:
        version = _version_error(folder)
        raise NameTakenError(folder, others, version.fix if version else None)


def differences(folder: Path, of: Callable[[Record], list[str]]) -> list[str]:
    """What tells the finished connection in `folder` from the one that is asked for.

    `of` says it of the record of a connection of two spaces.
    """
    if version := version_difference(folder):
        return version
    there = standing(folder)
    if isinstance(there, Record):
        return of(there)
    return ["it is a chain of several connections"] if there else []


def standing(folder: Path) -> Record | bool:
    """The record of the connection in `folder`; True for a chain, False where none can be read."""
    try:
        return True if "links" in read_content(folder) else read_record(folder)
    except StoreError:
        return False


def version_difference(folder: Path) -> list[str]:
    """That the connection in `folder` is of another version of cmcr, where it is."""
    error = _version_error(folder)
    return [error.what] if error else []


def can_be_made_again(folder: Path) -> bool:
    """Whether `connect` made what lies in `folder`, in a format that is read here."""
    if _version_error(folder):
        return False
    record = standing(folder)
    return not isinstance(record, Record) or record.requested is not None


def _version_error(folder: Path) -> VersionError | None:
    try:
        read_content(folder)
    except VersionError as error:
        return error
    except StoreError:
        return None
    return None


def take_place(folder: Path) -> None:
    """Make the finished connection in FOLDER/.new the one in `folder`."""
    os.replace(folder / NEW, folder / WHOLE)
    settle(folder)


def settle(folder: Path) -> None:
    """Finish a replacement that was killed; nothing where there is none."""
    whole = folder / WHOLE
    if whole.is_dir():
        new = {path.relative_to(whole) for path in whole.rglob("*") if _belongs(path)}
        for name in sorted(new):
            with replacing(folder / name) as unfinished:
                shutil.copyfile(whole / name, unfinished)
        for pattern in _MADE:
            for path in folder.glob(pattern):
                _delete(path, folder, new)
        os.replace(whole, folder / _OVER)
    shutil.rmtree(folder / _OVER, ignore_errors=True)


def _belongs(path: Path) -> bool:
    return path.is_file() and path.name != _LOCK


def _delete(path: Path, folder: Path, kept: set[Path]) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _delete(inner, folder, kept)
        if not any(path.iterdir()):
            path.rmdir()
    elif path.relative_to(folder) not in kept and path.name != _LOCK:
        path.unlink()
