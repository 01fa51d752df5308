"""A finished connection takes the place of an old one, which is whole until then.

    make(folder / NEW)       # however long that takes
    take_place(folder)

FOLDER/.new     the new one while it is made
FOLDER/.whole   the new one, finished: while it is there, it is what is read

What was killed in between leaves the old one or the new one; `settle` ends what is left of it.
"""

import os
import shutil
from pathlib import Path

from cmcr.files import replacing

NEW = ".new"
_WHOLE = ".whole"
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


def current(folder: Path) -> Path:
    """Where the files of the connection in `folder` are to be read."""
    whole = folder / _WHOLE
    return whole if whole.is_dir() else folder


def take_place(folder: Path) -> None:
    """Make the finished connection in FOLDER/.new the one in `folder`."""
    os.replace(folder / NEW, folder / _WHOLE)
    settle(folder)


def settle(folder: Path) -> None:
    """Finish a change of place that was killed; nothing where there is none."""
    whole = folder / _WHOLE
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
