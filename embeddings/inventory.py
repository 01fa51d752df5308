"""What a dataset was made from: every input of its source with size, time of change and sha256.

    write_inputs(folder, 3, inputs)         # beside part 3 while the dataset is unfinished: hidden
    gather_inputs(folder, parts=4)          # inputs.parquet, one row group a part
    for known in read_inputs(folder, range(4)): ...     # of part 0, 1, ...; None: not known

`inputs.parquet` has a row for each input in the source's order, those that failed among them, so
the rows of part k are its inputs that did not fail. Datasets made before there were inventories,
and imported ones, have none.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
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


@dataclass(frozen=True)
class Inputs:
    """The inputs of one part, held in columns: an `Input` is made of the one that is asked for."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, row: int) -> Input:
        return Input(*(self.table[name][row].as_py() for name in _SCHEMA.names))

    def column(self, name: str) -> list[Any]:
        """One field of all of them."""
        values: list[Any] = self.table[name].to_pylist()
        return values


class Record:
    """The inputs of several parts, numbered through and found by their ids."""

    def __init__(self) -> None:
        self._parts: list[Inputs] = []
        self._starts: list[int] = []
        self._numbers: dict[str, int | list[int]] = {}  # a list only where an id is repeated
        self._rows = 0

    def add(self, inputs: Inputs) -> None:
        """Take in those of one more part."""
        for number, id in enumerate(inputs.column("id"), self._rows):
            before = self._numbers.setdefault(id, number)
            if isinstance(before, list):
                before.append(number)
            elif before != number:
                self._numbers[id] = [before, number]
        self._parts.append(inputs)
        self._starts.append(self._rows)
        self._rows += len(inputs)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, number: int) -> Input:
        part = bisect_right(self._starts, number) - 1
        return self._parts[part][number - self._starts[part]]

    def find(self, id: str) -> list[int]:
        """The numbers of the inputs of this id, in order."""
        found = self._numbers.get(id, [])
        return [found] if isinstance(found, int) else found


def _beside(folder: Path, index: int) -> Path:
    return folder / f".inputs-{index:05d}.parquet"


def write_inputs(folder: Path, index: int, inputs: Sequence[Input]) -> None:
    """Write down what part `index` is made from. To be called before the part is written."""
    table = pa.Table.from_pylist([asdict(known) for known in inputs], schema=_SCHEMA)
    with replacing(_beside(folder, index)) as unfinished:
        pq.write_table(table, unfinished)


def gather_inputs(folder: Path, parts: int) -> bool:
    """Write `inputs.parquet` from what lies beside the parts; False where some part has nothing."""
    return _write(folder, _read_parts(folder, range(parts)))


def join_inputs(folder: Path, datasets: Sequence[tuple[Path, int]]) -> bool:
    """Write `inputs.parquet` of several datasets, folder and parts each, one after another.

    False, and nothing is written, where those of some part are not known.
    """
    tables = (_read_parts(each, range(parts)) for each, parts in datasets)
    return _write(folder, chain.from_iterable(tables))


def drop_sidecars(folder: Path) -> None:
    """Take away what `gather_inputs` has gathered."""
    for path in folder.glob(".inputs-*.parquet"):
        path.unlink(missing_ok=True)


def read_inputs(folder: Path, parts: Iterable[int]) -> Iterator[Inputs | None]:
    """The inputs of each of `parts` in turn, in the source's order; None where not known."""
    for table in _read_parts(folder, parts):
        yield None if table is None else Inputs(table)


def read_digests(folder: Path, rows: Sequence[int]) -> pa.Array:
    """The sha256 of the input of each row of a finished dataset; null where it is not known.

    `rows` is how many each part has.
    """
    found = []
    for table, count in zip(_read_parts(folder, range(len(rows))), rows, strict=True):
        made = None if table is None else table.filter(pc.invert(table["failed"]))
        if made is None or len(made) != count:
            found.append(pa.nulls(count, pa.string()))
        else:
            found.append(made["sha256"].combine_chunks())
    return pa.concat_arrays(found)


def read_ids(folder: Path, parts: int) -> Iterator[list[str] | None]:
    """The ids alone of the inputs of each part in turn; None where they are not known."""
    for table in _read_parts(folder, range(parts), ["id"]):
        yield None if table is None else table["id"].to_pylist()


def refresh_inputs(folder: Path, parts: int, times: Mapping[int, int | None]) -> None:
    """Write down the times of change of inputs whose content is the same, by their number."""
    _write(folder, _refreshed(_read_parts(folder, range(parts)), times))


def _refreshed(
    tables: Iterator[pa.Table | None], times: Mapping[int, int | None]
) -> Iterator[pa.Table | None]:
    first = 0
    place = _SCHEMA.get_field_index("mtime_ns")
    for table in tables:
        if table is not None:
            known = table["mtime_ns"].to_pylist()
            fresh = [times.get(number, time) for number, time in enumerate(known, first)]
            first += len(known)
            fields = _SCHEMA.field(place), pa.array(fresh, pa.int64())
            table = table.set_column(place, *fields)
        yield table


def _read_parts(
    folder: Path, parts: Iterable[int], columns: Sequence[str] | None = None
) -> Iterator[pa.Table | None]:
    """What lies beside each part, else its row group of `inputs.parquet`, which is opened once."""
    with ExitStack() as opened:
        gathered: pq.ParquetFile | None = None
        for index in parts:
            table = _read_beside(folder, index, columns)
            if table is None and gathered is None:
                with suppress(OSError, pa.ArrowException):
                    gathered = opened.enter_context(pq.ParquetFile(folder / INPUTS))
            if table is None and gathered is not None and index < gathered.num_row_groups:
                with suppress(OSError, pa.ArrowException):
                    table = gathered.read_row_group(index, columns)
            yield table


def _read_beside(folder: Path, index: int, columns: Sequence[str] | None) -> pa.Table | None:
    path = _beside(folder, index)
    if not path.exists():  # gathered
        return None
    with suppress(OSError, pa.ArrowException):  # cut short
        return pq.read_table(path, columns=columns, schema=_SCHEMA, partitioning=None)
    return None


class _UnknownError(Exception):
    """The inputs of a part are not known."""


def _write(folder: Path, tables: Iterator[pa.Table | None]) -> bool:
    """Write `inputs.parquet`, a row group each; False, and nothing, where one is not known."""
    try:
        with (
            replacing(folder / INPUTS) as unfinished,
            pq.ParquetWriter(unfinished, _SCHEMA, compression="zstd") as writer,
        ):
            for table in tables:
                if table is None:
                    raise _UnknownError
                writer.write_table(table, row_group_size=max(len(table), 1))
    except _UnknownError:
        return False
    return True
