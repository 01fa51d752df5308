"""A source laid out by parts in one Parquet file, so that no part needs those before it.

    write_plan(Path("photos.plan.parquet"), source, part_rows=8192)
    source = open_plan("image", Path("photos.plan.parquet"))
    for item in source.part(3): ...          # of row group 3, and nothing before it

A row says of its item what a worker needs: id, uri, label, group, the text itself or which bytes
of a tar; of a region or a span also which picture or film, and its box or its seconds. The file's
metadata have the source's description, so a dataset made by a plan has the parts that the source
gives without it, byte for byte; the digest of all rows, by which shards know that they work by one
plan; and size and time of change of every file that rows point into, which a part goes by.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings import Modality
from cmcr.embeddings.schema import canonical_json
from cmcr.errors import SourceError, UsageError
from cmcr.extract.items import Cell, Item, Refused, Slice, local_path
from cmcr.extract.media.crops import Crop, Picture
from cmcr.extract.media.video import Recording, Span
from cmcr.extract.sources.source import Source
from cmcr.files import replacing

SUFFIX = ".plan.parquet"
FORMAT = 2
_KEY = b"cmcr-plan"
_BATCH = 256  # rows held at a time
_AGAIN = "make it again with `cmcr plan`"


def write_plan(target: Path, source: Source, part_rows: int) -> str:
    """Write the items of `source`, `part_rows` in a row group; gives the digest of all rows.

    Raises UsageError for media that have no place of their own to be read from, SourceError where
    the source changes meanwhile.
    """
    states: dict[str, list[int]] = {}  # by the uri of the file, as `_state` gives them
    schema = _schema(source)
    digest = hashlib.sha256()
    items, counted, wholes = source.items(), 0, _Wholes()
    with replacing(target) as unfinished:
        with pq.ParquetWriter(
            unfinished, schema, compression="zstd", use_dictionary=["label", "file", "column"],
            write_statistics=False,
        ) as writer:  # fmt: skip
            while rows := [_row(item, wholes) for item in itertools.islice(items, part_rows)]:
                digest.update(canonical_json(rows).encode())
                for file in {row["file"] for row in rows if "file" in row} - states.keys():
                    states[file] = _state(file)
                counted += len(rows)
                table = pa.Table.from_pylist(rows, schema=schema)
                writer.write_table(table, row_group_size=len(rows))
            told = {
                "format": FORMAT,
                "modality": source.modality,
                "name": source.name,
                "description": source.description,
                "columns": source.columns,
                "numbers": source.numbers,
                "sealed": source.sealed,
                "total": counted,
                "part_rows": part_rows,
                "sha256": digest.hexdigest(),
                "files": states,
            }
            writer.add_key_value_metadata({_KEY: canonical_json(told).encode()})
        changed = [file for file, state in states.items() if _state(file) != state]
        if changed or counted != source.total:
            raise SourceError(
                f"the source changed while it was planned: {source.total:,} items when it was "
                f"opened, {counted:,} now"
                + (f", and {len(changed):,} files are others by now" if changed else ""),
                where=source.description["where"],
                fix="plan it again when it is at rest",
            )
    return digest.hexdigest()


def _state(file: str) -> list[int]:
    """Size in bytes and time of change in ns. Raises OSError where there is no such file."""
    status = local_path(file).stat()
    return [status.st_size, status.st_mtime_ns]


def is_plan(path: Path) -> bool:
    """Whether a file is a plan, by its name and by what it says of itself."""
    return path.name.endswith(SUFFIX) and path.is_file() and _KEY in _metadata(path)


def open_plan(modality: Modality, where: Path) -> Source:
    """The source that was planned; its `part` reads one row group.

    Raises UsageError for a plan of another modality, SourceError for one that is damaged.
    """
    told = json.loads(_metadata(where)[_KEY])
    if told["format"] != FORMAT:
        raise SourceError(
            f"the plan is of format {told['format']}, this cmcr reads {FORMAT}",
            where=where,
            fix=_AGAIN,
        )
    if told["modality"] != modality:
        raise UsageError(
            f"this is a plan of {told['modality']}, not of {modality}",
            where=where,
            fix=f"--source {told['modality']}={where}",
        )
    up = told["description"].get("up", "y")
    part = partial(_part, where, told["sha256"], modality, up)
    parts = -(-told["total"] // told["part_rows"])
    return Source(
        modality,
        name=told["name"],
        description={**told["description"], "plan": told["sha256"]},
        items=partial(_items, part, parts),
        total=told["total"],
        columns=tuple(told["columns"]),
        numbers=tuple(told["numbers"]),
        sealed=told["sealed"],
        part=part,
        part_rows=told["part_rows"],
    )


def _items(part: Callable[[int], Iterator[Item]], parts: int) -> Iterator[Item]:
    return itertools.chain.from_iterable(map(part, range(parts)))


def _schema(source: Source) -> pa.Schema:
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("label", pa.list_(pa.string())),
        pa.field("group", pa.string()),
        pa.field("file", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("size", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("why", pa.string()),
        pa.field("whole", pa.int64()),
        pa.field("number", pa.int32()),
        pa.field("box", pa.list_(pa.float64())),
    ]
    if source.columns:
        own = [(name, _kind(name, source)) for name in source.columns]
        fields.append(pa.field("fields", pa.struct(own)))
    return pa.schema(fields)


def _kind(name: str, source: Source) -> pa.DataType:
    return pa.float64() if name in source.numbers else pa.string()


class _Wholes:
    """Pictures and films numbered through as their regions and spans come by."""

    def __init__(self) -> None:
        self._last: Picture | Recording | None = None
        self._number = -1

    def number(self, whole: Picture | Recording) -> int:
        """That of `whole`, which comes by with all that is its own."""
        if whole is not self._last:
            self._last, self._number = whole, self._number + 1
        return self._number


def _row(item: Item, wholes: _Wholes) -> dict[str, Any]:
    """An item as a row; what is not said is null."""
    row: dict[str, Any] = {"id": item.id, "uri": item.uri}
    read = item
    if isinstance(item, Crop):
        read, row["whole"] = item.picture.item, wholes.number(item.picture)
        row |= {"number": item.number, "box": list(item.box)}
    elif isinstance(item, Span):
        read, row["whole"] = item.recording.item, wholes.number(item.recording)
    if isinstance(read.content, bytes):
        raise UsageError(
            "media that no worker can read by themselves cannot be planned",
            where=item.uri,
            fix="unpack a compressed tar once: gzip -dc NAME.tar.gz > NAME.tar; what ships with "
            "cmcr is small enough without a plan",
        )
    given: dict[str, Any] = {
        "text": read.content,
        "label": list(item.label),
        "group": item.group,
        "why": read.why if isinstance(read, Refused) else None,
        "fields": dict(item.extra),
    }
    if isinstance(read, Slice):
        given |= {"file": read.file, "offset": read.offset, "size": read.size}
    if isinstance(read, Cell):
        given |= {"file": read.file, "column": read.column}
        given |= {"offset": read.row_group, "size": read.row}
    return row | {name: value for name, value in given.items() if value not in (None, [], {})}


def _item(
    row: dict[str, Any], whole: Picture | Recording | None, modality: Modality, up: Any
) -> Item:
    """What `_row` made a row of. A region and a span share the `whole` that they are of."""
    extra = {name: it for name, it in (row.get("fields") or {}).items() if it is not None}
    of_row = {
        "id": row["id"],
        "uri": row["uri"],
        "label": tuple(row["label"] or ()),
        "group": row["group"],
        "extra": extra,
    }
    if isinstance(whole, Picture):
        return Crop(**of_row, picture=whole, number=row["number"], box=tuple(row["box"]))
    if isinstance(whole, Recording):
        start, end = extra["start"], extra["end"]
        return Span(**of_row, recording=whole, modality=modality, start=start, end=end)
    if row["why"] is not None:
        return Refused(**of_row, up=up, why=row["why"])
    if row["column"] is not None:
        at = {"row_group": row["offset"], "row": row["size"]}
        return Cell(**of_row, up=up, file=row["file"], column=row["column"], **at)
    if row["file"] is not None:
        place = {name: row[name] for name in ("file", "offset", "size")}
        return Slice(**of_row, up=up, **place)
    return Item(**of_row, up=up, content=row["text"])


def _part(where: Path, sha256: str, modality: Modality, up: Any, part: int) -> Iterator[Item]:
    """The items of one row group.

    Raises SourceError where another plan lies there by now, or a file that rows point into changed.
    """
    status = where.stat()
    file, told = _opened(where, status.st_size, status.st_mtime_ns, status.st_ino)
    if told["sha256"] != sha256:
        raise SourceError(
            "another plan was written there since this one was opened",
            where=where,
            fix="run the command again",
        )
    number: int | None = None
    whole: Picture | Recording | None = None
    unchanged: set[str | None] = {None}
    for row in _rows(where, file, part):
        if row["file"] not in unchanged:
            _refuse_changed(row["file"], told["files"][row["file"]])
            unchanged.add(row["file"])
        if row["whole"] != number or number is None:
            number, whole = row["whole"], _whole(row, modality, up)
        yield _item(row, whole, modality, up)


def _refuse_changed(file: str, planned: list[int]) -> None:
    """Raise SourceError where `file` is not the one that rows count bytes or rows of."""
    try:
        now = _state(file)
    except OSError as error:
        raise SourceError(
            f"a file of the plan cannot be read: {error.strerror}",
            where=local_path(file),
            fix="put it back, or plan what is there: `cmcr plan`",
        ) from error
    if now != planned:
        what = "size" if now[0] != planned[0] else "time of change"
        raise SourceError(
            f"this changed since it was planned: its {what} is another",
            where=local_path(file),
            fix="plan it again with `cmcr plan`; a copy of the same bytes keeps its time with "
            "`cp -p` or `rsync -t`",
        )


def _rows(where: Path, file: pq.ParquetFile, part: int) -> Iterator[dict[str, Any]]:
    try:
        for batch in file.iter_batches(_BATCH, row_groups=[part]):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(where, error) from error


def _whole(row: dict[str, Any], modality: Modality, up: Any) -> Picture | Recording | None:
    if row["whole"] is None:
        return None
    item = _item({**row, "label": None, "group": None, "fields": None}, None, modality, up)
    return Recording(item) if row["box"] is None else Picture(item)


@lru_cache(maxsize=1)  # the footer of a plan of many parts takes longer to read than a part
def _opened(where: Path, *_: int) -> tuple[pq.ParquetFile, dict[str, Any]]:
    file = pq.ParquetFile(where)
    return file, json.loads(file.metadata.metadata[_KEY])


def _metadata(path: Path) -> dict[bytes, bytes]:
    try:
        return pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SourceError:
    why = str(error).partition("\n")[0]
    return SourceError(f"the plan cannot be read: {why}", where=path, fix=_AGAIN)
