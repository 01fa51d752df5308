"""`cmcr remove`: a dataset, or any folder of a store, is there or is gone, never half.

    remove_dataset(store, Key("clip", "image", "photos"))

A folder that is to go is renamed into STORE/.removed first. What a killed process left there goes
with the next removal.
"""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from cmcr.embeddings.reader import list_datasets
from cmcr.embeddings.schema import Key
from cmcr.embeddings.writer import discard_fresh, held
from cmcr.errors import UsageError, near

REMOVED = ".removed"


def remove_dataset(store: Path, key: Key) -> None:
    """Take a dataset away, with its index and an update of it that was not finished.

    Waits for processes that work on it. Raises UsageError for one that is not there.
    """
    check_there(store, key)
    with held(store, key, alone=True):
        check_there(store, key)
        throw_away(store, key.folder(store))
        discard_fresh(store, key)


def check_there(store: Path, key: Key) -> None:
    """Raise UsageError where the store has no such dataset, finished, damaged or begun."""
    if not key.folder(store).is_dir():
        fix = near(str(key), map(str, list_datasets(store)))
        raise UsageError(f"the store has no dataset {key}", where=store, fix=fix)


def throw_away(store: Path, folder: Path) -> None:
    """Delete a folder of the store, and what was left of earlier ones."""
    aside = store / REMOVED / secrets.token_hex(8)
    aside.parent.mkdir(exist_ok=True)
    os.rename(folder, aside)
    with suppress(FileNotFoundError):  # another process takes away what it takes for a leftover
        shutil.rmtree(aside)
    shutil.rmtree(aside.parent, ignore_errors=True)
