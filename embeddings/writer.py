"""From parts to a dataset: begin, write parts in any order from any process, finish.

    folder = begin(store, description)
    with claim(folder, 3) as mine: ...        # one process a part
    manifest = finish(folder, description, parts=4)

A dataset is unfinished until its manifest is there, and the manifest is written last. One that is
to replace another is made aside, in `fresh_store`, and exchanged with it by `put_in_place`.
"""

import ctypes
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from cmcr.embeddings.inventory import drop_sidecars, gather_inputs
from cmcr.embeddings.parts import Failure, describe_part, part_metadata, part_name, write_failures
from cmcr.embeddings.schema import (
    FAILURES,
    INCIDENTAL,
    MANIFEST,
    REMAKE,
    Description,
    Key,
    Manifest,
    canonical_json,
    parse_description,
    read_manifest,
    unreadable,
)
from cmcr.errors import MismatchError, StoreError
from cmcr.files import link_or_copy, locked, read_regular, sha256_file, write_text

log = logging.getLogger(__name__)

BEGUN = ".description.json"


def begin(store: Path, description: Description) -> Path:
    """Make or take up the folder of a dataset; gives the folder.

    Raises MismatchError when rows of another encoder, checkpoint, preprocessing or source are
    already there, or the dataset goes on by another plan.
    """
    folder = description.key.folder(store)
    with locked(folder / ".lock", wait=True, needed=False):
        there = begun(folder)
        if there is None:
            write_text(folder / BEGUN, description.model_dump_json())
        else:
            _refuse_to_mix(folder, there, description)
            _note_plan(folder, there, description)
    return folder


def begun(folder: Path) -> Description | None:
    """What the dataset in `folder` is made from, finished or not; None where there is none."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    try:
        content = read_regular(folder / BEGUN)
    except (FileNotFoundError, NotADirectoryError):
        # Another process may have finished the dataset since.
        return read_manifest(folder) if (folder / MANIFEST).exists() else None
    except OSError as error:
        raise unreadable(error.strerror or str(error), folder / BEGUN) from None
    return parse_description(Description, content, folder / BEGUN)


def _refuse_to_mix(folder: Path, begun: Description, wanted: Description) -> None:
    changed = [
        name
        for name in ("schema_version", "dim", "precision", "part_rows", "columns")
        if getattr(begun, name) != getattr(wanted, name)
    ]
    for name in ("encoder", "source"):
        old, new = (
            {field: canonical_json(value) for field, value in getattr(one, name).items()}
            for one in (begun, wanted)
        )
        changed += [
            f"{name}.{field}"
            for field in sorted(old.keys() | new.keys())
            if field not in INCIDENTAL and old.get(field) != new.get(field)
        ]
    plans = [one.source.get("plan") for one in (begun, wanted)]
    if not isinstance(begun, Manifest) and all(plans) and plans[0] != plans[1]:
        changed.append("source.plan")  # of one source that lies elsewhere by now
    if changed:
        other = any(name.startswith("encoder.") for name in changed)
        raise MismatchError(
            f"the dataset {wanted.key} was built with different settings: {', '.join(changed)}",
            where=folder,
            fix=f"give the new rows another {'--space' if other else '--dataset'} or --store, or "
            "delete that folder",
        )


def _note_plan(folder: Path, begun: Description, wanted: Description) -> None:
    """Have the first plan on record by which a dataset goes on that was begun without one."""
    plan = wanted.source.get("plan")
    if plan and not begun.source.get("plan") and not isinstance(begun, Manifest):
        noted = begun.model_copy(update={"source": begun.source | {"plan": plan}})
        write_text(folder / BEGUN, noted.model_dump_json())


@contextmanager
def claim(folder: Path, index: int, *, wait: bool = False) -> Iterator[bool]:
    """Take part `index` for this process: True when it is free and still to be made."""
    with locked(folder / ".locks" / part_name(index), wait=wait) as free:
        yield free and not finished_part(folder, index)


def finished_part(folder: Path, index: int, sizes: Mapping[str, int] | None = None) -> bool:
    """Whether part `index` is there and whole; one that is cut short is taken away.

    `sizes` are its manifest's, where it has one and that was read already (`part_sizes`).
    """
    path = folder / part_name(index)
    if not path.exists():
        return False
    sizes = part_sizes(folder) if sizes is None else sizes
    whole = part_metadata(path) is not None
    if sizes is not None:
        whole = whole and sizes.get(path.name) == path.stat().st_size
    if not whole:
        reopen(folder)
        path.unlink(missing_ok=True)
    return whole


def reopen(folder: Path) -> None:
    """Make a finished dataset an unfinished one, which still says what it is made from."""
    if (folder / MANIFEST).exists():
        there = read_manifest(folder).model_dump(include=set(Description.model_fields))
        write_text(folder / BEGUN, Description.model_validate(there).model_dump_json())
        (folder / MANIFEST).unlink(missing_ok=True)


def part_sizes(folder: Path) -> dict[str, int] | None:
    """Bytes of each part by its name, as the manifest has them; None where there is none."""
    if not (folder / MANIFEST).exists():
        return None
    return {part.name: part.bytes for part in read_manifest(folder).parts}


def is_complete(folder: Path) -> bool:
    """Whether the dataset has its manifest, every part in it its size, and its list of failures.

    Where it has not, it is made an unfinished one, and what is cut short is taken away.
    """
    sizes = part_sizes(folder)
    if sizes is None:
        return False
    whole = [finished_part(folder, index, sizes) for index in range(len(sizes))]
    if not (folder / FAILURES).exists():
        reopen(folder)
        return False
    return all(whole)


def finish(folder: Path, description: Description, parts: int) -> Manifest | None:
    """Write the lists of failures and inputs, and the manifest; None while parts are missing.

    Two hosts without a common lock may do it at once: both write the same, every file whole, and
    what is taken away was gathered before. Raises StoreError when a part is damaged or of another
    description.
    """
    with locked(folder / ".lock", wait=True, needed=False):
        return _finish(folder, description, parts)


def _finish(folder: Path, description: Description, parts: int) -> Manifest | None:
    paths = [folder / part_name(index) for index in range(parts)]
    if not all(path.exists() for path in paths):
        return None
    if there := begun(folder):  # who goes on knows nothing of names that it had before
        description = description.model_copy(update={"written_as": there.written_as})
    failures: list[Failure] = []
    for path in paths:
        metadata = part_metadata(path)
        if metadata is None:
            raise StoreError("a part is damaged", where=path, fix=REMAKE)
        if not description.wrote(metadata):
            raise StoreError(
                "a part was built with other settings than its dataset", where=path, fix=REMAKE
            )
        failures += metadata.get("failures", [])
    lines = [describe_part(path, description) for path in paths]
    manifest = Manifest(
        **description.model_dump(),
        rows=sum(line.rows for line in lines),
        failures=len(failures),
        parts=lines,
    )
    write_failures(folder / FAILURES, failures)
    gathered = gather_inputs(folder, parts)
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    (folder / BEGUN).unlink(missing_ok=True)
    if gathered:
        drop_sidecars(folder)
    return manifest


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
    while True:  # another process may take away parents that are empty between two steps of this
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            break
    (folder / _FRESH).touch()
    return fresh_store(store)


def discard_fresh(store: Path, key: Key) -> None:
    """Take away what lies in the other store under this name, and that store where it is empty."""
    folder = key.folder(fresh_store(store))
    (folder / _FRESH).unlink(missing_ok=True)  # first: without it, what is left goes next time
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
    _carry_regions(folder, fresh)
    try:
        _exchange(folder, fresh)
    except OSError:  # not Linux, or a file system that cannot: the window is one rename long
        os.rename(folder, _aside(fresh))
        os.rename(fresh, folder)
        shutil.rmtree(_aside(fresh))
    (folder / _FRESH).unlink(missing_ok=True)
    discard_fresh(store, key)


def _carry_regions(folder: Path, fresh: Path) -> None:
    """Give the new dataset the detector's boxes that it was made from; they are made but once."""
    used = read_manifest(fresh).source.get("regions", {}).get("sha256")
    for boxes in folder.glob("regions-*.jsonl"):
        if used == sha256_file(boxes) and not (fresh / boxes.name).exists():
            link_or_copy(boxes, fresh / boxes.name)


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


@contextmanager
def held(store: Path, key: Key, *, alone: bool) -> Iterator[None]:
    """The dataset, for this process `alone` or with others; waits for those that have it."""
    folder = key.folder(store)
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock, needed=alone) as free:
        if free:  # else another process is at it, and has put right what there was
            recover(store, key)
    for wait in (False, True):
        with locked(lock, wait=wait, shared=not alone, needed=alone) as free:
            if free:
                yield
                return
        log.warning("%s: waiting for another process that works on it", key)


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
