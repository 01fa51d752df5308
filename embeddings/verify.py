"""Look at a whole store: what there is (`cmcr info`), and whether it is sound (`cmcr verify`)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings.dataset import Dataset, list_datasets, open_dataset
from cmcr.embeddings.index import ABOUT, INDEX, about_index
from cmcr.embeddings.schema import Key
from cmcr.embeddings.writer import FAILURES, read_manifest
from cmcr.errors import CmcrError, StoreError, UsageError
from cmcr.files import sha256_file


class Verdict(NamedTuple):
    """One checked dataset; `problem` is None when it is sound."""

    key: Key
    rows: int
    problem: CmcrError | None


def check_store(store: Path) -> None:
    """Raise UsageError for a folder that is not there or holds nothing of a store."""
    if not store.is_dir():
        raise UsageError("there is no store", where=store, cure="`cmcr extract` makes one")
    if not _is_store(store):
        below = [str(folder) for folder in sorted(store.iterdir()) if _is_store(folder)]
        raise UsageError(
            "the folder is no store: it has no space=… in it, nor connections or results",
            where=store,
            cure=f"name one of: {', '.join(below)}" if below else "`cmcr extract` makes one",
        )


def _is_store(folder: Path) -> bool:
    return any(folder.glob("space=*")) or any(
        (folder / name).is_dir() for name in ("connections", "results")
    )


def describe_store(store: Path) -> list[dict[str, Any]]:
    """One line a dataset: space, modality, dataset, rows, failures, dim, encoder, checkpoint.

    One that cannot be read has its `problem` instead. Raises UsageError for what is no store.
    """
    check_store(store)
    lines: list[dict[str, Any]] = []
    for key in list_datasets(store):
        line: dict[str, Any] = {
            "space": key.space,
            "modality": key.modality,
            "dataset": key.dataset,
        }
        try:
            manifest = read_manifest(key.folder(store))
        except StoreError as error:
            lines.append(line | {"problem": error.what})
            continue
        lines.append(
            line
            | {
                "rows": manifest.rows,
                "failures": manifest.failures,
                "dim": manifest.dim,
                "encoder": manifest.encoder.get("encoder"),
                "checkpoint": manifest.encoder.get("checkpoint_sha256"),
            }
        )
    return lines


def verify_store(store: Path) -> Iterator[Verdict]:
    """Re-hash and check every dataset: parts, norms, ids, failures, index. Stops at none."""
    check_store(store)
    for key in list_datasets(store):
        try:
            dataset = open_dataset(store, key)
            _check_rows(dataset)
            _check_failures(dataset)
            _check_index(dataset)
        except CmcrError as problem:
            yield Verdict(key, 0, problem)
        else:
            yield Verdict(key, dataset.rows, None)


def _check_rows(dataset: Dataset) -> None:
    for part, block in zip(dataset.manifest.parts, dataset.parts(), strict=True):
        norms = np.linalg.norm(block.astype(np.float32), axis=1)  # (rows,)
        if np.abs(norms - 1).max(initial=0) > 1e-2:
            raise StoreError("an embedding is not a unit vector", where=dataset.folder / part.name)
    ids = dataset.ids()
    if len(ids) != len(set(ids)):
        raise StoreError(
            f"{len(ids) - len(set(ids))} ids occur twice",
            where=dataset.folder,
            cure="give each input an id of its own and extract again",
        )


def _check_failures(dataset: Dataset) -> None:
    path = dataset.folder / FAILURES
    try:
        recorded = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowException):
        raise StoreError("the list of failures cannot be read", where=path, cure=_REFRESH) from None
    if recorded != dataset.manifest.failures:
        raise StoreError(
            f"{recorded} failures are listed, the manifest counts {dataset.manifest.failures}",
            where=path,
            cure=_REFRESH,
        )


def _check_index(dataset: Dataset) -> None:
    about = about_index(dataset)
    path = dataset.folder / INDEX
    if about is None:
        if path.exists():
            raise StoreError("an index without its description", where=path, cure=_REBUILD)
        return
    if about["manifest_sha256"] != dataset.fingerprint:
        raise StoreError("the index is of other rows", where=dataset.folder / ABOUT, cure=_REBUILD)
    if not path.exists() or sha256_file(path) != about["sha256"]:
        raise StoreError("the index is not the one that was built", where=path, cure=_REBUILD)


_REFRESH = "delete manifest.json beside it and run the extract command again"
_REBUILD = "delete index.json and index.faiss and run the extract command again"
