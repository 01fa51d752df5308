"""The FAISS index beside the parts: the same vectors, searchable, derived and rebuildable.

build_index(dataset, "Flat")     # writes index.faiss and index.json
index = open_index(dataset)      # memory-mapped; refused when it is not of this dataset
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cmcr.embeddings.reader import Dataset
from cmcr.errors import StoreError, UsageError
from cmcr.files import locked, read_regular, replacing, sha256_file, write_json
from cmcr.progress import progress
from cmcr.typed import typed

INDEX = "index.faiss"
ABOUT = "index.json"
_TRAINING_ROWS = 262_144


def check_factory(dim: int, factory: str) -> None:
    """Raise UsageError for a factory string that FAISS does not know for vectors of `dim`."""
    import faiss

    try:
        faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UsageError(
            f"FAISS knows no index {factory!r}: {_reason(error)}",
            fix="another --index, such as Flat or HNSW32, or none",
        ) from error


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its own source."""
    return re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error).splitlines()[-1])


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
            f"{_reason(error)}",
            where=dataset.folder,
            fix="another --index, such as Flat or HNSW32, or none",
        ) from error
    with locked(dataset.folder / ".lock", wait=True, needed=False):  # the two belong together
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
    about = about_index(dataset.folder)
    return (
        about is not None
        and about["factory"] == factory
        and about["manifest_sha256"] == dataset.fingerprint
        and (dataset.folder / INDEX).exists()
    )


def about_index(folder: Path) -> dict[str, Any] | None:
    """What `index.json` says; None where there is no index, or one that this cmcr cannot tell."""
    path = folder / ABOUT
    if not path.exists():
        return None
    try:
        about = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(about, dict) and about.keys() >= {"factory", "manifest_sha256", "sha256"}
    return about if known else None


def open_index(dataset: Dataset) -> Any:
    """The `faiss.Index` of the dataset, memory-mapped where FAISS can.

    Raises StoreError when there is none, or one of other rows.
    """
    import faiss

    about = about_index(dataset.folder)
    if about is None or about["manifest_sha256"] != dataset.fingerprint:
        raise StoreError(
            "the dataset has no index of its present rows",
            where=dataset.folder / INDEX,
            fix="run the extract command again; it rebuilds the index from the parts",
        )
    try:
        if not (dataset.folder / INDEX).is_file():  # a pipe would never answer
            raise RuntimeError("no file")
        return faiss.read_index(str(dataset.folder / INDEX), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise StoreError(
            "the index cannot be read",
            where=dataset.folder / INDEX,
            fix="delete it and run the extract command again; it rebuilds the index",
        ) from error


def _sample(dataset: Dataset) -> np.ndarray:
    """Rows spread evenly over the dataset for an index to train on, (≤ 262144, D) float32."""
    step = max(1, dataset.rows // _TRAINING_ROWS)
    picked = [block[::step].astype(np.float32) for block in dataset.parts()]  # copies: files close
    return np.concatenate(picked)


_FLAT_BYTES_PER_SECOND = 8e9
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LEAST_PQ = 8
_ITEMS_PER_CELL = 39  # what FAISS wants to train on


@dataclass(frozen=True)
class Budget:
    """What an index may take; None: as much as it wants."""

    memory: int | None = None  # bytes
    query_seconds: float | None = None


def parse_budget(max_memory: str | None, max_query_time: str | None) -> Budget:
    """A budget from what the command line takes: `4G` (K, M, G, T: powers of 1024), `10ms`.

    Raises UsageError for anything else, and for nothing.
    """
    memory = seconds = None
    if max_memory is not None:
        number, unit = _number(max_memory, _UNITS, "--max-memory 4G")
        memory = int(number * _UNITS[unit])
    if max_query_time is not None:
        number, unit = _number(max_query_time, _SECONDS, "--max-query-time 10ms")
        seconds = number * _SECONDS[unit]
    return Budget(memory, seconds)


def choose_factory(items: int, dim: int, budget: Budget) -> str:
    """The FAISS factory string for `items` vectors of `dim` values.

    Raises UsageError when none fits into the memory.
    """
    memory = math.inf if budget.memory is None else budget.memory
    seconds = math.inf if budget.query_seconds is None else budget.query_seconds
    flat = 4 * dim * items  # bytes
    if flat <= memory and flat / _FLAT_BYTES_PER_SECOND <= seconds:
        return "Flat"
    if flat + 272 * items <= memory:
        return "HNSW32"
    cells = max(1, min(4 * math.isqrt(items), items // _ITEMS_PER_CELL))
    beside = 4 * dim * cells + 8 * items  # centroids and ids
    if flat + beside <= memory:
        return f"IVF{cells},Flat"
    tables = 4 * dim * 256
    for size in _sketches(dim):
        least = size * items + beside + tables
        if least <= memory:
            return f"IVF{cells},PQ{size}"
    raise UsageError(
        f"no index of {items:,} items of {dim} dims fits into {memory:,.0f} bytes",
        fix=f"--max-memory {math.ceil(least / 2**20)}M is the least",
    )


def _sketches(dim: int) -> list[int]:
    """Bytes a vector that product quantisation can take: halves of `dim` that divide it."""
    sizes = [dim // 2**halving for halving in range(1, dim.bit_length()) if dim % 2**halving == 0]
    return [size for size in sizes if size >= _LEAST_PQ] or [dim]


def _number(text: str, units: dict[str, float] | dict[str, int], example: str) -> tuple[float, str]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text)
    if not found or found[2] not in units or not float(found[1]):
        raise UsageError(
            f"{text!r} is no amount above zero with a unit of {', '.join(u for u in units if u)}",
            fix=f"such as {example}",
        )
    return float(found[1]), found[2]


_BLOCK_ROWS = 65_536


def train_index(vectors: np.ndarray, factory: str) -> Any:
    """The `faiss.Index` of unit vectors, (items, dim) float32, by inner product, on the CPU.

    Raises UsageError for a factory string that FAISS does not know or cannot train on so few.
    """
    import faiss

    items, dim = vectors.shape
    try:
        index = on_gpus(faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT))
        if not index.is_trained:
            index.train(np.ascontiguousarray(vectors[:: max(1, items // _TRAINING_ROWS)]))
        with progress(f"index {factory}", total=items) as advance:
            for start in range(0, items, _BLOCK_ROWS):
                block = vectors[start : start + _BLOCK_ROWS]  # (block, dim)
                index.add(block)
                advance(len(block))
    except RuntimeError as error:
        raise UsageError(
            f"FAISS cannot build an index {factory!r} on {items:,} rows of {dim}: {_reason(error)}",
            fix="another --index, such as Flat or HNSW32",
        ) from error
    return faiss.index_gpu_to_cpu(index) if faiss.get_num_gpus() else index


def on_gpus(index: Any) -> Any:
    """`index` on every GPU that FAISS sees; as it is where there is none or none for its kind."""
    import faiss

    if not faiss.get_num_gpus():
        return index
    try:
        return faiss.index_cpu_to_all_gpus(index)
    except RuntimeError:
        return index


_BLOCK_QUERIES = 65_536


@typed
def search(
    queries: Float[np.ndarray, "queries dim"], gallery: Float[np.ndarray, "gallery dim"], k: int
) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
    """Inner products and rows of the `k` nearest gallery items, or of all where there are fewer."""
    import faiss

    scores, rows = faiss.knn(
        queries, gallery, min(k, len(gallery)), metric=faiss.METRIC_INNER_PRODUCT
    )  # (queries, k), (queries, k)
    return scores, rows
