"""A file that lists the inputs: .txt (one text a line), .csv, .tsv, .jsonl, .parquet.

    source = manifest("image", Path("items.csv"))

    source = media_table("image", Path("train.parquet"), [Path("train.parquet")], "image")

Columns: `path` (absolute, or relative to the manifest) or `text` or `caption`; `id`, `label` (in
JSON and Parquet also a list) and `group` where there are any; every other becomes a column of the
dataset. Duplicate ids are let through: several captions of one image share its id. A .csv or .tsv
of one column may be texts from its first line on.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError
from cmcr.extract.items import Cell, Item, Refused, file_uri
from cmcr.extract.media.readers import is_textual
from cmcr.extract.sources.source import (
    TEXT_COLUMNS,
    HashIds,
    Source,
    as_text,
    columns,
    extra,
    labels,
)
from cmcr.files import sha256_file

LONGEST_LINE = 1 << 24  # characters
LARGEST_GROUP = 512 << 20  # bytes of media in a row group, which a worker holds in memory
_BATCH = 256  # rows of a Parquet file held at a time

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]


def manifest(modality: Modality, where: Path) -> Source:
    """The inputs that the file lists, in its order.

    Raises SourceError for a file that cannot be read to its end or lists nothing, UsageError for
    one without the column that is needed.
    """
    names: dict[str, None] = {}
    total = 0
    ids = HashIds()
    textual = is_textual(modality)
    read = read_lines if textual and _has_no_header(where) else read_rows
    for row in read(where):
        names.update(dict.fromkeys(row))
        ids.add(_id(row, total))
        total += 1
    if not total:
        raise SourceError("the file lists nothing", where=where, fix="write a row for each input")
    wanted = TEXT_COLUMNS if textual else ("path",)
    found = next((name for name in wanted if name in names), None)
    if found is None:
        raise UsageError(
            f"the manifest has no column {' or '.join(wanted)}; it has {', '.join(names)}",
            where=where,
            fix=f"rename the column that holds it to {wanted[0]}; where the file has no header, "
            "write one as the first line",
        )
    return Source(
        modality,
        name=where.stem,
        description={"kind": "manifest", "where": file_uri(where), "sha256": sha256_file(where)},
        items=partial(_items, where, found, read),
        total=total,
        columns=columns(names),
        sealed=found in TEXT_COLUMNS,
        ids=ids.hex,
    )


def media_column(modality: Modality, where: Path) -> str | None:
    """The column of a Parquet file that holds media themselves, as the Hub stores data sets.

    Structs of `bytes` and `path`: the one that is called as the modality, else the only one. None
    where there is none, or a column `path` names files. Raises SourceError for a file that cannot
    be read.
    """
    if where.suffix.lower() != ".parquet" or modality not in ("audio", "image"):
        return None
    try:
        schema = pq.read_schema(where)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"the file cannot be read: {error}", where=where) from error
    found = [field.name for field in schema if _holds_media(field.type)]
    if modality in found:
        return modality
    return found[0] if len(found) == 1 and "path" not in schema.names else None


def _holds_media(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}


def media_table(modality: Modality, where: Path, files: Sequence[Path], column: str) -> Source:
    """The media in a `column` of Parquet files. `where` is the file, or the folder that holds them.

    The id is the path beside the bytes, else the file's name and the row. Numbers that stand for
    classes become their names, where the file says them. The description knows all columns but the
    bytes, and how large those of each row group are: what they hold is known as that of a tar.
    Raises SourceError for a file that cannot be read, holds no row, or more than `LARGEST_GROUP` in
    one of its row groups.
    """
    digest, ids, names, total = hashlib.sha256(), HashIds(), dict[str, None](), 0
    for file in files:
        _refuse_large_groups(file, column)
        digest.update(file_uri(file.name).encode())
        for item, row in _cells(file, column):
            digest.update(repr((item.id, row)).encode())
            ids.add(item.id)
            names.update(dict.fromkeys(row))
            total += 1
        for group in _row_groups(file):
            digest.update(repr(_sizes(group, column)).encode())
    if not total:
        raise SourceError("the file holds no row", where=where)
    return Source(
        modality,
        name=where.stem,
        description={"kind": "table", "where": file_uri(where), "sha256": digest.hexdigest()},
        items=partial(_all_cells, files, column),
        total=total,
        columns=columns(names),
        ids=ids.hex,
    )


def media_cell(where: Path, column: str, number: int) -> Cell | None:
    """The media of one row, found by the footer alone; None where there is no such row.

    Raises SourceError for a file that cannot be read.
    """
    here, row = file_uri(where), number
    for at, group in enumerate(_row_groups(where)):
        if 0 <= row < group.num_rows:
            uri = f"{here}#{number}"
            return Cell(uri, uri, file=here, column=column, row_group=at, row=row)
        row -= group.num_rows
    return None


def _refuse_large_groups(where: Path, column: str) -> None:
    for number, group in enumerate(_row_groups(where)):
        size = sum(_sizes(group, column))
        if size > LARGEST_GROUP:
            raise SourceError(
                f"row group {number} holds {size >> 20:,} MiB of media in {group.num_rows:,} "
                f"rows, and one is read at once: {LARGEST_GROUP >> 20} MiB are the most",
                where=where,
                fix="write it again in smaller ones: pyarrow's write_table(..., "
                "row_group_size=100)",
            )


def _sizes(group: pq.RowGroupMetaData, column: str) -> list[int]:
    """Bytes of what the structs of a column hold, each of their fields by itself."""
    chunks = map(group.column, range(group.num_columns))
    return [one.total_uncompressed_size for one in chunks
            if one.path_in_schema.startswith(f"{column}.")]  # fmt: skip


def _row_groups(where: Path) -> Iterator[pq.RowGroupMetaData]:
    """What the footer says of each. Raises SourceError for a file that cannot be read."""
    try:
        footer = pq.read_metadata(where)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(f"the file cannot be read: {error}", where=where) from error
    return map(footer.row_group, range(footer.num_row_groups))


def _all_cells(files: Sequence[Path], column: str) -> Iterator[Item]:
    for file in files:
        for item, _ in _cells(file, column):
            yield item


def _cells(where: Path, column: str) -> Iterator[tuple[Item, Row]]:
    """An item for each row, and what else the row says."""
    here, number = file_uri(where), 0
    try:
        with pq.ParquetFile(where) as file:
            schema = file.schema_arrow
            classes = _classes(schema)
            kept = [field.name for field in schema if not _is_bulk(field)]
            kept.append(f"{column}.path")
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=kept)
                for at, row in enumerate(table.to_pylist()):
                    path = (row.pop(column, None) or {}).get("path")
                    row |= {name: _named(row[name], classes[name]) for name in classes}
                    item = Cell(
                        id=as_text(row.get("id")) or path or f"{where.stem}-{number}",
                        uri=f"{here}#{number}",
                        label=labels(row.get("label")),
                        group=as_text(row.get("group")) or None,
                        extra=extra(row),
                        file=here,
                        column=column,
                        row_group=group,
                        row=at,
                    )
                    yield item, row
                    number += 1
    except (ValueError, pa.ArrowException, OSError) as error:
        raise SourceError(f"the file cannot be read: {error}", where=where) from error


def _classes(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of each column that has some, as `datasets` writes them down."""
    features: Any = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    for name in ("info", "features"):
        features = features.get(name) if isinstance(features, dict) else None
    if not isinstance(features, dict):
        return {}
    return {
        name: [str(label) for label in one["names"]]
        for name, one in features.items()
        if name in schema.names and isinstance(one, dict) and isinstance(one.get("names"), list)
    }


def _named(value: Any, names: Sequence[str]) -> Any:
    """The class that a number stands for; -1 and the like are none."""
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else None


def _items(where: Path, column: str, read: Reader) -> Iterator[Item]:
    here = file_uri(where)
    for number, row in enumerate(read(where)):
        value = as_text(row.get(column)) or ""
        item = Item(
            id=_id(row, number),
            uri=f"{here}#{number}",
            content=value if column in TEXT_COLUMNS else None,
            label=labels(row.get("label")),
            group=as_text(row.get("group")) or None,
            extra=extra(row),
        )
        if column in TEXT_COLUMNS:
            yield item
        elif value:
            yield replace(item, uri=file_uri(where.parent / value))
        else:
            yield Refused(item.id, item.uri, why=f"the row has no {column}")


def _id(row: Row, number: int) -> str:
    return as_text(row.get("id")) or str(number)


def read_rows(where: Path) -> Iterator[Row]:
    """The rows of a file of `READERS`, one at a time. Raises SourceError where it is damaged."""
    yield from _told(where, READERS[where.suffix.lower()])


def read_lines(where: Path) -> Iterator[Row]:
    """The rows of a .csv or .tsv without a header, a text each. Raises as `read_rows`."""
    delimiter = _DELIMITERS[where.suffix.lower()]
    yield from _told(where, partial(_delimited, delimiter=delimiter, columns=TEXT_COLUMNS[:1]))


def is_text(header: Sequence[str]) -> bool:
    """Whether the first line of a list is no header but a text: one field of several words."""
    return len(header) == 1 and " " in header[0].strip()


def _has_no_header(where: Path) -> bool:
    if where.suffix.lower() not in _DELIMITERS:
        return False
    first = next(read_rows(where), None)
    return first is not None and is_text(list(first))


def _told(where: Path, read: Reader) -> Iterator[Row]:
    try:
        yield from read(where)
    except (ValueError, csv.Error, pa.ArrowException, OSError, RecursionError) as error:
        raise SourceError(
            f"the file cannot be read: {error}", where=where, fix="mend it, or save it in UTF-8"
        ) from error


def _open(where: Path, newline: str | None = None) -> TextIO:
    return where.open(encoding="utf-8-sig", newline=newline)


def _lines(file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise ValueError(f"line {number} is longer than {LONGEST_LINE >> 20} Mi characters")
        yield line


def _texts(where: Path) -> Iterator[Row]:
    with _open(where) as file:
        for number, line in enumerate(_lines(file)):
            if line.strip():
                yield {"id": str(number), "text": line.strip()}


def _delimited(
    where: Path, *, delimiter: str, columns: Sequence[str] | None = None
) -> Iterator[Row]:
    with _open(where, newline="") as file:
        reader = csv.DictReader(_lines(file), columns, delimiter=delimiter)
        try:
            for row in reader:
                if None in row or None in row.values():
                    shown = str(list(row.values()))[:200]
                    raise ValueError(
                        f"a row has another number of fields than the header: {shown}, which "
                        f"ends at line {reader.line_num}"
                    )
                yield row
        except csv.Error as error:
            raise ValueError(
                f"after line {reader.line_num}: {error}; is a quotation mark left open?"
            ) from error


def _json_lines(where: Path) -> Iterator[Row]:
    with _open(where) as file:
        for number, line in enumerate(_lines(file), start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is not a JSON object: {line[:80]!r}")
            yield row


def _parquet(where: Path) -> Iterator[Row]:
    with pq.ParquetFile(where) as file:
        kept = [field.name for field in file.schema_arrow if not _is_bulk(field)]
        for batch in file.iter_batches(_BATCH, columns=kept):
            yield from batch.to_pylist()


def _is_bulk(field: pa.Field) -> bool:
    """Whether a column holds bytes or nested values, which would become unreadable text."""
    nested = pa.types.is_nested(field.type) and field.name != "label"
    return bool(nested or field.type in (pa.binary(), pa.large_binary()))


_DELIMITERS = {".csv": ",", ".tsv": "\t"}
READERS: Mapping[str, Reader] = {
    ".txt": _texts,
    **{suffix: partial(_delimited, delimiter=one) for suffix, one in _DELIMITERS.items()},
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
