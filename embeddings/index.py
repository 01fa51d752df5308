"""The FAISS index beside the parts: the same vectors, searchable, derived and rebuildable.

build_index(dataset, "Flat")     # writes index.faiss and index.json
index = open_index(dataset)      # memory-mapped; refused when it is not of this dataset
"""

import json
from typing import Any

import numpy as np

from cmcr.embeddings.dataset import Dataset
from cmcr.errors import StoreError, UsageError
from cmcr.files import replacing, sha256_file, write_json

INDEX = "index.faiss"
ABOUT = "index.json"
_TRAINING_ROWS = 262_144


def build_index(dataset: Dataset, factory: str = "Flat") -> None:
    """Build the inner-product index that the FAISS factory string names, row i = embedding i.

    Raises UsageError for a factory string that FAISS does not know or cannot train on so few
    rows.
    """
    import faiss

    try:
        index = faiss.index_factory(dataset.dim, factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(_sample(dataset))
        for block in dataset.batches():
            index.add(np.ascontiguousarray(block, dtype=np.float32))  # (batch, D)
    except RuntimeError as error:
        raise UsageError(
            f"FAISS cannot build an index {factory!r} on {dataset.rows} rows of {dataset.dim}: "
            f"{str(error).splitlines()[-1]}",
            where=dataset.folder,
            cure="another --index, such as Flat or HNSW32, or none",
        ) from error
    with replacing(dataset.folder / INDEX) as unfinished:
        faiss.write_index(index, str(unfinished))
    write_json(
        dataset.folder / ABOUT,
        {
            "factory": factory,
            "metric": "inner product",
            "rows": dataset.rows,
            "manifest_sha256": dataset.fingerprint,
            "sha256": sha256_file(dataset.folder / INDEX),
        },
    )


def index_is_current(dataset: Dataset, factory: str) -> bool:
    """Whether the index there was built by `factory` from these very rows."""
    about = about_index(dataset)
    return (
        about is not None
        and about["factory"] == factory
        and about["manifest_sha256"] == dataset.fingerprint
        and (dataset.folder / INDEX).exists()
    )


def about_index(dataset: Dataset) -> dict[str, Any] | None:
    """What `index.json` says; None where there is no index, or one that this cmcr cannot tell."""
    path = dataset.folder / ABOUT
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    known = isinstance(about, dict) and about.keys() >= {"factory", "manifest_sha256", "sha256"}
    return about if known else None


def open_index(dataset: Dataset) -> Any:
    """The `faiss.Index` of the dataset, memory-mapped where FAISS can.

    Raises StoreError when there is none, or one of other rows.
    """
    import faiss

    about = about_index(dataset)
    if about is None or about["manifest_sha256"] != dataset.fingerprint:
        raise StoreError(
            "the dataset has no index of its present rows",
            where=dataset.folder / INDEX,
            cure="run the extract command again; it rebuilds the index from the parts",
        )
    try:
        return faiss.read_index(str(dataset.folder / INDEX), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise StoreError(
            "the index cannot be read",
            where=dataset.folder / INDEX,
            cure="delete it and run the extract command again; it rebuilds the index",
        ) from error


def _sample(dataset: Dataset) -> np.ndarray:
    """Rows spread evenly over the dataset for an index to train on, (≤ 262144, D) float32."""
    step = max(1, dataset.rows // _TRAINING_ROWS)
    picked = [block[::step] for block in dataset.parts()]
    return np.concatenate(picked, dtype=np.float32)
