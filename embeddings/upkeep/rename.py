"""`cmcr rename`: another name for a dataset, its rows as they are.

    rename_dataset(store, Key("clip", "image", "photos"), Key("clip", "image", "pictures"))

A dataset says its name twice: by its folder and in its manifest. Both are changed, no part is. What
its parts were written under stays known (`Description.written_as`), so a part is told from one that
does not belong, and an unfinished dataset goes on under its new name: `cmcr extract` compares
encoder, source and settings, never the name, and finds a renamed dataset finished. `inputs.parquet`
and `failures.parquet` hold no name; the index is of the same rows and says so again.

Whatever else names the dataset is a record of what was done and stays as it is: a connection says
the names that it was made from, results the names that were measured. A connection needs no dataset
to project and to search; where it wants unpaired rows (`--hubness`, `--false-positives`) it looks
for them under the name in its record, and says so where they are not there.

The folder goes first, the manifest last. What is killed between looks like a folder that was moved
by hand, and the same command, or `rename NEW NEW`, ends either.
"""

import hashlib
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from cmcr.embeddings.index import ABOUT, about_index
from cmcr.embeddings.parts import part_metadata
from cmcr.embeddings.reader import list_datasets
from cmcr.embeddings.schema import MANIFEST, Description, Key, Manifest, identity
from cmcr.embeddings.writer import BEGUN, begun, fresh_store, held
from cmcr.errors import CmcrError, MismatchError, StoreError, UsageError, near
from cmcr.files import sha256_file, write_json, write_text


def rename_dataset(store: Path, old: Key, new: Key) -> bool:
    """Call the dataset `old` of `store` by the key `new`; False where it is called so already.

    The space may change where the new one has no rows of another encoder; a modality cannot.
    With `old` equal to `new` the manifest is given the name that the folder has. Waits for
    processes that work on either. Raises UsageError for a dataset that is not there or a name that
    is taken, MismatchError for a space of another encoder, StoreError for a damaged manifest.
    """
    _find(store, old, new)  # before a lock makes folders for a name that is spelt wrong
    with ExitStack() as stack:
        for key in sorted({old, new}):  # in one order, so that two renames never wait in a ring
            stack.enter_context(held(store, key, alone=True))
        old, there = _find(store, old, new)
        _refuse_other_space(store, new, there, old)
        if old != new:
            _move(store, old, new)
        return _call(new.folder(store), there, new)


def _find(store: Path, old: Key, new: Key) -> tuple[Key, Description]:
    """Where the dataset lies, and what it is, finished or not.

    It is under its new name where it was moved before: by hand, or by a rename that was killed.
    """
    there = begun(old.folder(store))
    if there is None and (moved := begun(new.folder(store))) and _was(moved, old):
        old, there = new, moved
    if there is None:
        fix = near(str(old), map(str, list_datasets(store)))
        raise UsageError(f"the store has no dataset {old}", where=store, fix=fix)
    if there.modality != new.modality:
        raise UsageError(
            f"{old} cannot be called {new}: its rows were embedded as {there.modality}",
            where=old.folder(store),
            fix=f"give it a name such as {replace(new, modality=there.modality)}, in whose folder "
            "it has to lie",
        )
    return old, there


def _was(there: Description, key: Key) -> bool:
    """Whether a dataset is called `key` by its manifest, or was before it was renamed."""
    former = there.model_copy(update={"space": key.space, "dataset": key.dataset})
    return former.key == key and former.identity in (there.identity, *there.written_as)


def _refuse_other_space(store: Path, new: Key, there: Description, old: Key) -> None:
    for key in list_datasets(store):
        if key.space != new.space or key in (old, new):
            continue
        try:
            other = begun(key.folder(store))
        except CmcrError:  # damaged: `verify` says so
            continue
        if other is not None and identity(other.encoder) != identity(there.encoder):
            raise MismatchError(
                f"the space {new.space} has rows of another encoder, as in {key}",
                where=key.folder(store),
                fix="give it the name of a space of its own",
            )


def _move(store: Path, old: Key, new: Key) -> None:
    folder, target = old.folder(store), new.folder(store)
    if target.exists():
        raise UsageError(
            f"the store has a dataset {new} already",
            where=target,
            fix=f"give another name, or `cmcr remove {new}` first",
        )
    if old.folder(fresh_store(store)).is_dir():
        raise StoreError(
            "an update of the dataset was not finished",
            where=old.folder(fresh_store(store)),
            fix="run `cmcr extract` with --update again, or delete that folder",
        )
    os.rename(folder, target)


def _call(folder: Path, there: Description, key: Key) -> bool:
    """Give what lies in `folder` the name `key`: False where it has it."""
    if there.key == key:
        return False
    named = there.model_copy(update={"space": key.space, "dataset": key.dataset})
    written = {
        (part_metadata(path) or {}).get("description")
        for path in sorted(folder.glob("part-*.parquet"))
    }
    before = dict.fromkeys((*there.written_as, there.identity))
    former = tuple(one for one in before if one in written - {named.identity})
    named = named.model_copy(update={"written_as": former})
    if not isinstance(there, Manifest):
        write_text(folder / BEGUN, named.model_dump_json())
        return True
    content = named.model_dump_json(indent=2) + "\n"
    about = about_index(folder)
    if about is not None and about["manifest_sha256"] == sha256_file(folder / MANIFEST):
        digest = hashlib.sha256(content.encode()).hexdigest()
        write_json(folder / ABOUT, about | {"manifest_sha256": digest})
    write_text(folder / MANIFEST, content)
    return True
