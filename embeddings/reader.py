"""Reading: a finished dataset as arrays and columns, checked before the first row is used.

dataset = open_dataset(store, Key("clap", "audio", "esc10"))
dataset.embeddings()                  # (rows, D), a memory map when there is one part
for block in dataset.batches(65536):  # (≤ 65536, D), for datasets larger than memory
    ...
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings.parts import part_metadata, part_view
from cmcr.embeddings.schema import (
    MANIFEST,
    MODALITIES,
    REMAKE,
    Key,
    Manifest,
    Part,
    all_finite,
    identity,
    read_manifest,
)
from cmcr.errors import StoreError, UsageError, near
from cmcr.files import sha256_file


@dataclass(frozen=True)
class Dataset:
    """A finished dataset of the store. `open_dataset` makes one."""

    folder: Path
    manifest: Manifest
    fingerprint: str

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
        for part in self.manifest.parts:
            yield part_view(self.folder, part, self.manifest)

    def embeddings(self) -> np.ndarray:
        """All embeddings, (rows, D) in the stored precision; no copy when there is one part."""
        blocks = list(self.parts())
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def batches(self, rows: int = 65536) -> Iterator[np.ndarray]:
        """The embeddings in order, at most `rows` at a time, nothing copied."""
        for block in self.parts():
            for start in range(0, len(block), rows):
                yield block[start : start + rows]

    def table(self, columns: Sequence[str]) -> pa.Table:
        """Columns other than the embedding, one row an embedding, in the same order."""
        try:
            return pa.concat_tables(
                pq.read_table(self.folder / part.name, columns=list(columns), partitioning=None)
                for part in self.manifest.parts
            )
        except pa.ArrowInvalid as error:
            raise StoreError(str(error), where=self.folder, cure=REMAKE) from error

    def ids(self) -> list[str]:
        """The id of every row."""
        ids: list[str] = self.table(["id"])["id"].to_pylist()
        return ids


def open_dataset(store: Path, key: Key) -> Dataset:
    """Open a finished dataset and check every part of it.

    Raises UsageError when the store has no such dataset, StoreError for an unfinished one, a
    missing or altered part, NaN, or a part of another encoder, VersionError for one that
    another version of cmcr wrote.
    """
    folder = key.folder(store)
    if not folder.is_dir():
        cure = near(str(key), map(str, list_datasets(store)))
        raise UsageError(f"the store has no dataset {key}", where=store, cure=cure)
    manifest = read_manifest(folder)
    if manifest.key != key:
        raise StoreError(
            f"the manifest is of {manifest.key}, the folder of {key}",
            where=folder,
            cure="move the folder back to where it was made",
        )
    for part in manifest.parts:
        check_part(folder, part, manifest)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    return Dataset(folder, manifest, digest)


def check_part(folder: Path, part: Part, manifest: Manifest) -> None:
    """Raise StoreError unless the part on disk is the one in the manifest, and sound."""
    path = folder / part.name
    if not path.exists():
        raise StoreError("a part of the dataset is missing", where=path, cure=REMAKE)
    if path.stat().st_size != part.bytes or sha256_file(path) != part.sha256:
        raise StoreError("a part is not the one that was written", where=path, cure=REMAKE)
    metadata = part_metadata(path)
    if metadata is None or metadata["description"] != manifest.identity:
        raise StoreError(
            "a part was built with other settings than its dataset", where=path, cure=REMAKE
        )
    view = part_view(folder, part, manifest)
    if not all_finite(view):
        raise StoreError("an embedding holds NaN or infinity", where=path, cure=REMAKE)


def list_datasets(store: Path) -> list[Key]:
    """The datasets that `store` has a folder for, finished or not, in order."""
    keys = []
    for folder in store.glob("space=*/modality=*/dataset=*"):
        space, modality, dataset = (
            part.partition("=")[2] for part in folder.relative_to(store).parts
        )
        if modality in MODALITIES:
            keys.append(Key(space, modality, dataset))
    return sorted(keys)
