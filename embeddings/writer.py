"""From parts to a dataset: begin, write parts in any order from any process, finish.

    folder = begin(store, description)
    with claim(folder, 3) as mine: ...        # one process a part
    manifest = finish(folder, description, parts=4)

A dataset is unfinished until its manifest is there, and the manifest is written last.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from cmcr.embeddings.inventory import drop_sidecars, gather_inputs
from cmcr.embeddings.parts import (
    REMAKE,
    Failure,
    describe_part,
    part_metadata,
    part_name,
    write_failures,
)
from cmcr.embeddings.schema import (
    INCIDENTAL,
    SCHEMA_VERSION,
    Description,
    Manifest,
    canonical_json,
)
from cmcr.errors import MismatchError, StoreError, VersionError
from cmcr.files import locked, write_text

Described = TypeVar("Described", bound=Description)

MANIFEST = "manifest.json"
FAILURES = "failures.parquet"
_BEGUN = ".description.json"


def begin(store: Path, description: Description) -> Path:
    """Make or take up the folder of a dataset; gives the folder.

    Raises MismatchError when rows of another encoder, checkpoint, preprocessing or source are
    already there.
    """
    folder = description.key.folder(store)
    with locked(folder / ".lock", wait=True):
        there = begun(folder)
        if there is None:
            write_text(folder / _BEGUN, description.model_dump_json())
        else:
            _refuse_to_mix(folder, there, description)
    return folder


def begun(folder: Path) -> Description | None:
    """What the dataset in `folder` is made from, finished or not; None where there is none."""
    if (folder / MANIFEST).exists():
        return read_manifest(folder)
    if (folder / _BEGUN).exists():
        return _read(Description, folder / _BEGUN)
    return None


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
    if changed:
        raise MismatchError(
            f"the dataset {wanted.key} was built with different settings: {', '.join(changed)}",
            where=folder,
            cure="give the new rows another --dataset or --store, or delete that folder",
        )


@contextmanager
def claim(folder: Path, index: int, *, wait: bool = False) -> Iterator[bool]:
    """Take part `index` for this process: True when it is free and still to be made."""
    with locked(folder / ".locks" / part_name(index), wait=wait) as free:
        yield free and not finished_part(folder, index)


def finished_part(folder: Path, index: int) -> bool:
    """Whether part `index` is there and whole; one that is cut short is taken away."""
    path = folder / part_name(index)
    if not path.exists():
        return False
    whole = part_metadata(path) is not None and _as_in_manifest(folder, path)
    if not whole:
        (folder / MANIFEST).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return whole


def _as_in_manifest(folder: Path, path: Path) -> bool:
    if not (folder / MANIFEST).exists():
        return True
    sizes = {part.name: part.bytes for part in read_manifest(folder).parts}
    return sizes.get(path.name) == path.stat().st_size


def is_complete(folder: Path) -> bool:
    """Whether the dataset has its manifest and every part in it its size.

    Looks at all parts: `finished_part` takes away each that is cut short.
    """
    if not (folder / MANIFEST).exists():
        return False
    parts = range(len(read_manifest(folder).parts))
    whole = [finished_part(folder, index) for index in parts]
    return all(whole)


def finish(folder: Path, description: Description, parts: int) -> Manifest | None:
    """Write the lists of failures and inputs, and the manifest; None while parts are missing.

    Raises StoreError when a part is damaged or of another description.
    """
    paths = [folder / part_name(index) for index in range(parts)]
    if not all(path.exists() for path in paths):
        return None
    failures: list[Failure] = []
    for path in paths:
        metadata = part_metadata(path)
        if metadata is None:
            raise StoreError("a part is damaged", where=path, cure=REMAKE)
        if metadata["description"] != description.identity:
            raise StoreError(
                "a part was built with other settings than its dataset", where=path, cure=REMAKE
            )
        failures += metadata["failures"]
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
    (folder / _BEGUN).unlink(missing_ok=True)
    if gathered:
        drop_sidecars(folder)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the dataset in `folder`. Raises StoreError when there is none to read."""
    try:
        return _read(Manifest, folder / MANIFEST)
    except FileNotFoundError:
        raise StoreError(
            "the dataset is unfinished: it has no manifest",
            where=folder,
            cure="run the command that was making it again; it goes on where it stopped",
        ) from None


def _read(kind: type[Described], path: Path) -> Described:
    """A description in a file, its version before its fields: a newer one may have others."""
    content = path.read_bytes()
    try:
        fields = json.loads(content)
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version != SCHEMA_VERSION:
            raise VersionError(version, SCHEMA_VERSION, where=path)
        return kind.model_validate_json(content)
    except ValueError as error:
        raise StoreError(
            f"the manifest cannot be read: {str(error).splitlines()[0]}", where=path, cure=REMAKE
        ) from None
