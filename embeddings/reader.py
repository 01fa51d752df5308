"""Reading: a finished dataset as arrays and columns, checked before the first row is used.

dataset = open_dataset(store, Key("clap", "audio", "esc10"))
dataset.embeddings()                  # (rows, D), a memory map when there is one part
for block in dataset.batches(65536):  # (≤ 65536, D), for datasets larger than memory
    ...
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings.parts import block_of, part_metadata, part_view
from cmcr.embeddings.schema import (
    MANIFEST,
    REMAKE,
    Key,
    Manifest,
    Part,
    all_finite,
    identity,
    read_manifest_bytes,
)
from cmcr.errors import MovedError, StoreError, UsageError, near
from cmcr.files import sha256_file
from cmcr.large.tables import mapped

Stamp = tuple[int, int, int, int]  # of a part: device, inode, size, time of change


@dataclass(frozen=True)
class Dataset:
    """A finished dataset of the store. `open_dataset` makes one.

    Its parts are those that lay there when it was opened, each known by its stamp: reading raises
    StoreError where something else took their place meanwhile.
    """

    folder: Path
    manifest: Manifest
    fingerprint: str
    stamps: tuple[Stamp, ...]

    def __repr__(self) -> str:
        made_by = self.manifest.encoder.get("encoder")
        return f"<Dataset {self.key}, {self.rows:,} rows of {self.dim} by {made_by}: {self.folder}>"

    @property
    def key(self) -> Key:
        """Which dataset this is."""
        return self.manifest.key

    @property
    def dim(self) -> int:
        """D, the number of values of an embedding."""
        return self.manifest.dim

    @property
    def rows(self) -> int:
        """The number of embeddings."""
        return self.manifest.rows

    @property
    def encoder_identity(self) -> str:
        """Hex digest of encoder, checkpoint and preprocessing: which space the vectors lie in."""
        return identity(self.manifest.encoder)

    def parts(self) -> Iterator[np.ndarray]:
        """The embeddings part by part, (rows of the part, D), memory-mapped."""
        for part, stamp in zip(self.manifest.parts, self.stamps, strict=True):
            with self._unchanged(part, stamp):
                block = part_view(self.folder, part, self.manifest)
            yield block

    def embeddings(self) -> np.ndarray:
        """All embeddings, (rows, D) in the stored precision; no copy when there is one part."""
        if len(self.manifest.parts) == 1:
            return next(self.parts())
        whole = np.empty((self.rows, self.dim), self.manifest.precision)
        start = 0
        for block in self.parts():  # one file open at a time
            whole[start : start + len(block)] = block
            start += len(block)
        return whole

    def batches(self, rows: int = 65536) -> Iterator[np.ndarray]:
        """The embeddings in order, at most `rows` at a time, nothing copied."""
        for block in self.parts():
            for start in range(0, len(block), rows):
                yield block[start : start + rows]

    def chosen(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The embeddings of `rows`, numbers that ascend, in blocks of (≤ 65536, D)."""
        start = 0
        for block in self.batches():
            first, last = np.searchsorted(rows, (start, start + len(block)))
            if last - first == len(block):
                yield block
            elif last > first:
                yield block[rows[first:last] - start]
            start += len(block)

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns other than the embedding, one row an embedding, in the same order.

        Many of them lie in a file in TMPDIR, not in memory.
        """
        return mapped(self._tables(list(columns)))

    def lines(self, columns: Sequence[str], rows: np.ndarray) -> list[dict[str, Any]]:
        """The columns of some rows, in any order; no part is read that none of them is in."""
        ascending, places = np.unique(rows, return_inverse=True)
        told: list[dict[str, Any]] = []
        start = 0
        for part, stamp in zip(self.manifest.parts, self.stamps, strict=True):
            first, last = np.searchsorted(ascending, (start, start + part.rows))
            if last > first:
                table = self._table(part, stamp, list(columns))
                told += table.take(ascending[first:last] - start).to_pylist()
            start += part.rows
        return [told[place] for place in places]

    def _tables(self, columns: list[str]) -> Iterator[pa.Table]:
        for part, stamp in zip(self.manifest.parts, self.stamps, strict=True):
            yield self._table(part, stamp, columns)

    def _table(self, part: Part, stamp: Stamp, columns: list[str]) -> pa.Table:
        with self._unchanged(part, stamp):
            table = pq.read_table(self.folder / part.name, columns=columns, partitioning=None)
        return table.replace_schema_metadata()

    @contextmanager
    def _unchanged(self, part: Part, stamp: Stamp) -> Iterator[None]:
        """Read a part in this block. Raises StoreError where it is not the one that was opened."""
        path = self.folder / part.name
        trouble: Exception | None = None
        try:
            yield
        except (OSError, ValueError, pa.ArrowException) as error:
            trouble = error
        # Looked at afterwards: a part that is there now was the one that was read.
        if _stamp(path) != stamp:
            raise StoreError(
                "the dataset changed while it was read",
                where=path,
                fix="run the command again: an update put another in its place",
            ) from trouble
        if trouble is not None:
            raise StoreError(str(trouble), where=path, fix=REMAKE) from trouble

    def ids(self) -> list[str]:
        """The id of every row."""
        ids: list[str] = self.table(["id"])["id"].to_pylist()
        return ids


def open_dataset(store: Path, key: Key, *, check: bool = True) -> Dataset:
    """Open a finished dataset and `check` every part of it: its hash, its making, every value.

    Raises UsageError when the store has no such dataset, StoreError for an unfinished one, a
    missing or altered part, NaN, or a part of another encoder, VersionError for one that
    another version of cmcr wrote.
    """
    folder = key.folder(store)
    if not folder.is_dir():
        fix = near(str(key), map(str, list_datasets(store)))
        raise UsageError(f"the store has no dataset {key}", where=store, fix=fix)
    while True:
        manifest, content = read_manifest_bytes(folder)
        if manifest.key != key:
            raise MovedError(str(manifest.key), str(key), where=folder)
        stamps = tuple(_stamp(folder / part.name) for part in manifest.parts)
        try:
            for part in manifest.parts if check else ():
                check_part(folder, part, manifest)
        except StoreError:
            if read_manifest_bytes(folder)[1] == content:
                raise
        else:
            if tuple(_stamp(folder / part.name) for part in manifest.parts) == stamps:
                return Dataset(folder, manifest, hashlib.sha256(content).hexdigest(), stamps)


def _stamp(path: Path) -> Stamp:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0, 0)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_part(folder: Path, part: Part, manifest: Manifest) -> None:
    """Raise StoreError unless the part on disk is the one in the manifest, and whole."""
    path = folder / part.name
    if not path.exists():
        raise StoreError("a part of the dataset is missing", where=path, fix=REMAKE)
    if path.stat().st_size != part.bytes or sha256_file(path) != part.sha256:
        raise StoreError("a part is not the one that was written", where=path, fix=REMAKE)
    if not manifest.wrote(part_metadata(path)):
        raise StoreError(
            "a part was built with other settings than its dataset", where=path, fix=REMAKE
        )
    if block_of(path, manifest) != (part.rows, part.offset):
        raise StoreError(
            f"the manifest's line for {part.name} is not of that part",
            where=folder / MANIFEST,
            fix="delete it and run the command that made the dataset again: the parts are kept",
        )
    view = part_view(folder, part, manifest)
    if not all_finite(view):
        raise StoreError("an embedding holds NaN or infinity", where=path, fix=REMAKE)


def list_datasets(store: Path) -> list[Key]:
    """The datasets that `store` has a folder for, finished or not, in order."""
    keys = []
    for folder in store.glob("space=*/modality=*/dataset=*"):
        space, modality, dataset = (
            part.partition("=")[2] for part in folder.relative_to(store).parts
        )
        with suppress(UsageError):  # a folder of somebody else's
            keys.append(Key(space, modality, dataset))
    return sorted(keys)


def stray_folders(store: Path) -> dict[str, str]:
    """The folders at the place of a modality or a dataset that `list_datasets` leaves out, and why.

    They are named as they lie in `store`. A folder of hidden files alone, locks of datasets that
    were removed or renamed, is none.
    """
    strays: dict[str, str] = {}
    for folder in sorted(one for one in store.glob("space=*/*") if one.is_dir()):
        name = folder.relative_to(store).as_posix()
        kind, equals, modality = folder.name.partition("=")
        below = [one for one in folder.glob("dataset=*") if one.is_dir()]
        if folder.name.startswith("."):
            continue
        if kind != "modality" or not equals:
            strays[name] = "the folder of a modality is called modality=NAME"
        elif not below and not _only_hidden(folder):
            strays[name] = "it holds no dataset"
        for one in below if equals and kind == "modality" else ():
            try:
                Key(folder.parent.name.partition("=")[2], modality, one.name.partition("=")[2])
            except UsageError as error:
                strays[one.relative_to(store).as_posix()] = error.what
    return strays


def _only_hidden(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir()]
    return bool(names) and all(name.startswith(".") for name in names)
