"""What a dataset was made from: every input of its source with size, time of change and sha256.

    write_inputs(folder, 3, inputs)         # beside part 3 while the dataset is unfinished: hidden
    gather_inputs(folder, parts=4)          # inputs.parquet, one row group a part
    for known in read_inputs(folder, 4): ...    # the inputs of part 0, 1, ...; None: not known

`inputs.parquet` has a row for each input in the source's order, those that failed among them, so
the rows of part k are its inputs that did not fail. Datasets made before there were inventories,
and imported ones, have none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.files import replacing

INPUTS = "inputs.parquet"

_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("sha256", pa.string()),
        pa.field("failed", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Input:
    """One input as it was when it was read; None where there was nothing to measure or hash."""

    id: str
    uri: str
    size: int | None
    mtime_ns: int | None
    sha256: str | None
    failed: bool = False


def _beside(folder: Path, index: int) -> Path:
    return folder / f".inputs-{index:05d}.parquet"


def write_inputs(folder: Path, index: int, inputs: Sequence[Input]) -> None:
    """Write down what part `index` is made from. To be called before the part is written."""
    table = pa.Table.from_pylist([asdict(known) for known in inputs], schema=_SCHEMA)
    with replacing(_beside(folder, index)) as unfinished:
        pq.write_table(table, unfinished)


def gather_inputs(folder: Path, parts: int) -> bool:
    """Write `inputs.parquet` from what lies beside the parts; False where some part has nothing."""
    tables = [_read_part(folder, index) for index in range(parts)]
    known = [table for table in tables if table is not None]
    if len(known) < parts:
        return False
    _write(folder, known)
    return True


def drop_sidecars(folder: Path) -> None:
    """Take away what `gather_inputs` has gathered."""
    for path in folder.glob(".inputs-*.parquet"):
        path.unlink(missing_ok=True)


def read_inputs(folder: Path, parts: int) -> Iterator[list[Input] | None]:
    """The inputs of each part in turn, in the source's order; None where they are not known."""
    for index in range(parts):
        table = _read_part(folder, index)
        yield None if table is None else [Input(**row) for row in table.to_pylist()]


def refresh_inputs(folder: Path, parts: int, times: Mapping[int, int | None]) -> None:
    """Write down the times of change of inputs whose content is the same, by their number."""
    tables: list[pa.Table] = []
    for index in range(parts):
        table = _read_part(folder, index)
        if table is None:
            return
        first = sum(len(before) for before in tables)
        known = table["mtime_ns"].to_pylist()
        fresh = [times.get(first + row, time) for row, time in enumerate(known)]
        place = table.schema.get_field_index("mtime_ns")
        tables.append(table.set_column(place, _SCHEMA.field(place), pa.array(fresh, pa.int64())))
    _write(folder, tables)


def _read_part(folder: Path, index: int) -> pa.Table | None:
    with suppress(OSError, pa.ArrowException):  # gathered, or cut short
        return pq.read_table(_beside(folder, index), schema=_SCHEMA, partitioning=None)
    try:
        with pq.ParquetFile(folder / INPUTS) as file:
            return file.read_row_group(index) if index < file.num_row_groups else None
    except (OSError, pa.ArrowException):
        return None


def _write(folder: Path, tables: Sequence[pa.Table]) -> None:
    with (
        replacing(folder / INPUTS) as unfinished,
        pq.ParquetWriter(unfinished, _SCHEMA, compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table, row_group_size=max(len(table), 1))
