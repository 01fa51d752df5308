"""One part: a Parquet file whose embedding column is a plain (rows, D) block of bytes.

    write_part(folder, description, 3, columns, embeddings, failures)
    part_view(folder, part, description)      # the block, memory-mapped, nothing copied

The embedding column is neither compressed nor dictionary-encoded and lies in one data page of
one row group, so its values end where its column chunk ends: that is where the view is cut.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings.schema import (
    FAILURE_SCHEMA,
    FAILURES,
    METADATA_KEY,
    REMAKE,
    Description,
    Part,
    all_finite,
    arrow_schema,
    canonical_json,
)
from cmcr.errors import StoreError
from cmcr.files import replacing, sha256_file

Failure = dict[str, Any]
RELIST = "delete it and run the command that made the dataset again: the parts say what failed"
_ONE_PAGE = 2**31 - 1


def part_name(index: int) -> str:
    """File name of part `index`."""
    return f"part-{index:05d}.parquet"


def write_part(
    folder: Path,
    description: Description,
    index: int,
    columns: Mapping[str, Sequence[Any]],
    embeddings: np.ndarray,
    failures: Sequence[Failure] = (),
) -> None:
    """Write one part, whole or not at all.

    `columns` maps names of `arrow_schema` to one value a row (a column left out is null);
    `embeddings` is (rows, D); `failures` travel in the file's metadata until the manifest is
    written. Raises StoreError for a value that is not finite.
    """
    path = folder / part_name(index)
    rows = len(columns["id"])
    if embeddings.shape != (rows, description.dim):
        raise StoreError(
            f"{rows} rows of {description.dim} values were promised, {embeddings.shape} given",
            where=path,
        )
    block = np.ascontiguousarray(embeddings, dtype=description.precision)  # (rows, D)
    if not all_finite(block):
        raise StoreError("an embedding holds NaN or infinity", where=path)
    schema = arrow_schema(
        description.dim, description.precision, description.columns, description.numbers
    )
    arrays = [
        pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), type=field.type)
        if field.name == "embedding"
        else pa.array(columns.get(field.name, [None] * rows), type=field.type)
        for field in schema
    ]
    metadata = {
        "description": description.identity,
        "space": description.space,
        "modality": description.modality,
        "dataset": description.dataset,
        "schema_version": description.schema_version,
        "encoder": description.encoder,
        "part": index,
        "failures": list(failures),
    }
    table = pa.Table.from_arrays(
        arrays, schema=schema.with_metadata({METADATA_KEY: canonical_json(metadata)})
    )
    others = [name for name in schema.names if name != "embedding"]
    with replacing(path) as unfinished:
        pq.write_table(
            table,
            unfinished,
            row_group_size=max(rows, 1),
            use_dictionary=[name for name in others if name != "id"],
            compression=dict.fromkeys(others, "zstd") | {"embedding": "none"},
            write_statistics=["id"],
            data_page_size=_ONE_PAGE,
            write_batch_size=max(rows, 1),
            max_rows_per_page=max(rows, 1),
        )


def part_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_part` wrote into the file's metadata; None for a file it did not finish."""
    try:
        metadata = pq.read_metadata(path).metadata
    except (OSError, pa.ArrowException):
        return None
    if not metadata or METADATA_KEY not in metadata:
        return None
    try:
        loaded = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError):
        return None
    return loaded if isinstance(loaded, dict) else None


def part_contents(path: Path) -> tuple[int, list[Failure]]:
    """The number of rows of a finished part, and its failures."""
    footer = pq.read_metadata(path)
    failures: list[Failure] = json.loads(footer.metadata[METADATA_KEY])["failures"]
    return footer.num_rows, failures


def failures_so_far(folder: Path) -> list[Failure]:
    """The failures of all parts that are in `folder`."""
    paths = sorted(folder.glob("part-*.parquet"))
    return [failure for path in paths for failure in part_contents(path)[1]]


def describe_part(path: Path, description: Description) -> Part:
    """The manifest's line for a finished part. Raises StoreError when it holds NaN."""
    rows, offset = block_of(path, description)
    part = Part(
        name=path.name,
        rows=rows,
        bytes=path.stat().st_size,
        sha256=sha256_file(path),
        offset=offset,
    )
    if not all_finite(part_view(path.parent, part, description)):
        raise StoreError("an embedding holds NaN or infinity", where=path, fix=REMAKE)
    return part


def block_of(path: Path, description: Description) -> tuple[int, int]:
    """The rows of a part, and the byte at which the block of its embeddings starts.

    Raises StoreError where its footer does not say.
    """
    try:
        footer = pq.read_metadata(path)
        rows: int = footer.num_rows
        if not rows:
            return 0, 0
        chunk = footer.row_group(0).column(footer.schema.names.index("element"))
        size = rows * description.dim * np.dtype(description.precision).itemsize
        offset: int = chunk.data_page_offset + chunk.total_compressed_size - size
    except (OSError, pa.ArrowException, ValueError, IndexError) as error:
        raise StoreError(f"a part is damaged: {error}", where=path, fix=REMAKE) from None
    if not 0 <= offset <= path.stat().st_size - size:
        raise StoreError("a part is damaged: its embeddings are cut", where=path, fix=REMAKE)
    return rows, offset


def part_view(folder: Path, part: Part, description: Description) -> np.ndarray:
    """The embeddings of a part, (rows, D), as a read-only memory map."""
    shape = (part.rows, description.dim)
    if not part.rows:
        return np.empty(shape, dtype=description.precision)
    return np.memmap(
        folder / part.name, dtype=description.precision, mode="r", offset=part.offset, shape=shape
    )


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write `failures.parquet`: inputs that could not be embedded (no rows when all could)."""
    table = pa.Table.from_pylist(list(failures), schema=FAILURE_SCHEMA)
    with replacing(path) as unfinished:
        pq.write_table(table, unfinished)


def read_failures(folder: Path) -> list[Failure]:
    """What `failures.parquet` lists. Raises StoreError where it cannot be read."""
    path = folder / FAILURES
    try:
        failures: list[Failure] = pq.read_table(path, partitioning=None).to_pylist()
    except (OSError, pa.ArrowException):
        raise StoreError("the list of failures cannot be read", where=path, fix=RELIST) from None
    return failures
