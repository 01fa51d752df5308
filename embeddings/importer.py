"""Embeddings that somebody already has, made into a dataset of the store (`cmcr import`).

    import_embeddings(store, key, Path("clip.npy"), Path("items.csv"))

Arrays: .npy and .npz (never pickled), .parquet with a column `embedding`, .safetensors.
Metadata: .parquet, .csv, .tsv or .jsonl, one row an embedding, with any of id, uri, text,
label, group and columns of its own.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings.index import build_index, index_is_current
from cmcr.embeddings.parts import write_part
from cmcr.embeddings.reader import Dataset, list_datasets, open_dataset
from cmcr.embeddings.schema import Description, Key, Precision, read_manifest
from cmcr.embeddings.writer import begin, claim, finish, held
from cmcr.errors import MismatchError, SourceError, StoreError, UsageError
from cmcr.files import sha256_file
from cmcr.large.arrays import numbers, room_for
from cmcr.large.tables import mapped, most_repeated

PART_ROWS = 65_536
_ROUNDING = 1e-3  # of a unit vector
_OWN = ("id", "uri", "text", "label", "group")


def import_embeddings(
    store: Path,
    key: Key,
    array: Path,
    metadata: Path | None = None,
    *,
    precision: Precision = "float16",
    index: str | None = "Flat",
) -> Dataset:
    """Write the rows of `array`, made unit vectors, and their metadata as a dataset.

    Rows without metadata get their number as id. Raises SourceError for an array that is not
    (rows, D) of finite, non-zero vectors, metadata of another length, or ids that occur twice,
    MismatchError for vectors of another length than the space has.
    """
    matrix = read_array(array)  # (rows, D)
    table = read_metadata(metadata) if metadata else pa.table({})
    table = _whole(table, len(matrix), metadata or array)
    description = Description(
        space=key.space,
        modality=key.modality,
        dataset=key.dataset,
        dim=matrix.shape[1],
        precision=precision,
        part_rows=PART_ROWS,
        columns=tuple(name for name in table.column_names if name not in _OWN),
        encoder={"encoder": key.space, "imported": True},
        source={
            "kind": "import",
            "array_sha256": sha256_file(array),
            "metadata_sha256": sha256_file(metadata) if metadata else None,
        },
    )
    check_vectors(matrix, array)
    _refuse_other_dim(store, key, matrix.shape[1], array)
    with held(store, key, alone=False):
        folder = begin(store, description)
        parts = -(-len(matrix) // PART_ROWS)
        for part in range(parts):
            rows = slice(part * PART_ROWS, (part + 1) * PART_ROWS)
            with claim(folder, part, wait=True) as mine:
                if mine:
                    block = unit(matrix[rows])  # (rows of the part, D)
                    cut = _columns(table.slice(rows.start, len(block)))
                    write_part(folder, description, part, cut, block)
        finish(folder, description, parts)
        dataset = open_dataset(store, key)
        if index is not None and not index_is_current(dataset, index):
            build_index(dataset, index)
    return dataset


def _refuse_other_dim(store: Path, key: Key, dim: int, array: Path) -> None:
    for other in list_datasets(store):
        if other.space != key.space or other == key:
            continue
        try:
            known = read_manifest(other.folder(store)).dim
        except StoreError:  # unfinished or damaged: `verify` says so
            continue
        if known != dim:
            raise MismatchError(
                f"the space {key.space} has vectors of {known} values, as in {other}, these have "
                f"{dim}",
                where=array,
                fix="give them another --space or --store",
            )


def read_array(path: Path) -> np.ndarray:
    """The one (rows, D) floating-point array of a file, memory-mapped where the format allows.

    Raises SourceError for a file that cannot be read without unpickling, or holds something else.
    """
    readers: Mapping[str, Callable[[Path], np.ndarray]] = {
        ".npy": lambda file: np.load(file, mmap_mode="r", allow_pickle=False),
        ".npz": _read_npz,
        ".safetensors": _read_safetensors,
        ".parquet": _read_parquet,
    }
    if path.suffix not in readers:
        raise UsageError(
            f"embeddings are not read from {path.suffix or 'a file without suffix'}",
            where=path,
            fix=f"one of: {', '.join(readers)}",
        )
    try:
        array = readers[path.suffix](path)
    except FileNotFoundError:
        raise UsageError("there is no such file", where=path, fix="name one that is") from None
    except (
        OSError, ValueError, TypeError, pa.ArrowException, KeyError, EOFError, AttributeError,
        BadZipFile, zlib.error,
    ) as error:  # fmt: skip
        raise SourceError(
            f"the array cannot be read: {error}",
            where=path,
            fix="save a plain floating-point array, without pickled objects",
        ) from error
    if not isinstance(array, np.ndarray):
        raise SourceError("the file holds something else than arrays", where=path)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise SourceError(
            f"embeddings are a (rows, D) array of floats, this is {array.dtype} {array.shape}",
            where=path,
            fix="save one row an input, as float16, float32 or float64",
        )
    return array


def check_vectors(matrix: np.ndarray, path: Path) -> None:
    """Raise SourceError when a row of `matrix` cannot be made a unit vector."""
    lengths = np.concatenate(
        [
            np.linalg.norm(unit(matrix[start : start + PART_ROWS]), axis=1)
            for start in range(0, len(matrix), PART_ROWS)
        ]
    )  # (rows,)
    bad = np.flatnonzero(~(np.abs(lengths - 1) < _ROUNDING))
    if len(bad):
        raise SourceError(
            f"{len(bad)} of {len(matrix)} rows hold NaN or infinity or are zero, "
            f"the first is row {bad[0]}",
            where=path,
            fix="leave those rows out of the array and of its metadata",
        )


def unit(block: np.ndarray) -> np.ndarray:
    """(rows, D) of any length as float32 unit vectors; NaN or zero where there is no direction.

    Divided by its largest value first, no row is too long or too short for its norm.
    """
    exact = block.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        exact /= np.abs(exact).max(axis=1, keepdims=True)
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return exact.astype(np.float32)


def read_metadata(path: Path) -> pa.Table:
    """Metadata as a table of its file's columns. Raises SourceError when it cannot be read."""
    import pyarrow.csv
    import pyarrow.json

    tabs = pyarrow.csv.ParseOptions(delimiter="\t")
    readers: Mapping[str, Callable[[Path], pa.Table]] = {
        ".parquet": _read_table,
        ".csv": pyarrow.csv.read_csv,
        ".tsv": lambda file: pyarrow.csv.read_csv(file, parse_options=tabs),
        ".jsonl": pyarrow.json.read_json,
    }
    if path.suffix not in readers:
        raise UsageError(
            f"metadata is not read from {path.suffix or 'a file without suffix'}",
            where=path,
            fix=f"one of: {', '.join(readers)}",
        )
    try:
        return readers[path.suffix](path)
    except FileNotFoundError:
        raise UsageError("there is no such file", where=path, fix="name one that is") from None
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"the metadata cannot be read: {error}", where=path) from error


def _read_table(path: Path) -> pa.Table:
    """Its columns but the embedding; many rows lie in a file."""
    with pq.ParquetFile(path) as file:
        columns = [name for name in file.schema_arrow.names if name != "embedding"]
        batches = file.iter_batches(PART_ROWS, columns=columns)
        empty = file.schema_arrow.empty_table().select(columns)
        return mapped(chain([empty], (pa.Table.from_batches([batch]) for batch in batches)))


def _whole(table: pa.Table, rows: int, path: Path) -> pa.Table:
    """Metadata of `rows` embeddings, with an id each, which is a row's number where none is told.

    Raises SourceError for another number of rows, and for ids that are missing or not unique.
    """
    if table.num_columns and table.num_rows != rows:
        raise SourceError(
            f"{rows} embeddings, but metadata for {table.num_rows}",
            where=path,
            fix="give one row of metadata an embedding, in the same order",
        )
    if doubled := [name for name, count in Counter(table.column_names).items() if count > 1]:
        raise SourceError(
            f"the metadata has the column {doubled[0]} more than once",
            where=path,
            fix="give each column a name of its own",
        )
    columns = {name: table[name] for name in table.column_names if name != "embedding"}
    table = pa.table({"id": pa.array(numbers(rows))} | columns)
    try:
        ids = table["id"].cast(pa.string())
    except pa.ArrowException as error:
        raise SourceError(f"ids are not read from {table['id'].type}", where=path) from error
    if ids.null_count or most_repeated(ids):
        raise SourceError(
            "ids are missing or occur twice", where=path, fix="give each row an id of its own"
        )
    return table


def _columns(table: pa.Table) -> dict[str, list[Any]]:
    """Rows of the metadata as lists; numbers become text, a label becomes a list."""
    columns: dict[str, list[Any]] = {}
    for name in table.column_names:
        values = table[name].to_pylist()
        if name == "label":
            columns[name] = [_labels(value) for value in values]
        else:
            columns[name] = [None if value is None else str(value) for value in values]
    return columns


def _labels(value: Any) -> list[str] | None:
    if value is None:
        return None
    return [str(label) for label in value] if isinstance(value, list) else [str(value)]


def _only(arrays: Mapping[str, np.ndarray], path: Path) -> np.ndarray:
    if "embeddings" in arrays:
        return arrays["embeddings"]
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    raise SourceError(
        f"the file holds several arrays: {', '.join(arrays)}",
        where=path,
        fix="name the one to import `embeddings`",
    )


def _read_npz(path: Path) -> np.ndarray:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return _only(dict(arrays), path)


def _read_safetensors(path: Path) -> np.ndarray:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _only(load_file(path), path)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_parquet(path: Path) -> np.ndarray:
    array, done = np.empty((0, 0)), 0
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(PART_ROWS, columns=["embedding"]):
            column = batch["embedding"]
            values = column.flatten()
            rows, dim = len(column), len(values) // len(column)
            if not done:
                kind = values.type.to_pandas_dtype()
                array = room_for((file.metadata.num_rows, dim), kind)  # (rows, D)
            if column.null_count or values.null_count or len(values) != rows * array.shape[1]:
                raise ValueError("the column `embedding` has rows of different lengths")
            array[done : done + rows] = values.to_numpy(zero_copy_only=False).reshape(rows, dim)
            done += rows
    return array
