"""The rows of a dataset by the content that they were made from, so that none is made twice.

known = read_known(folder, there, wanted)
known.take(item)             # the row of that content, or None: to be embedded
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cmcr.embeddings import Description, Manifest, Modality
from cmcr.embeddings.inventory import Input, Record, read_inputs
from cmcr.embeddings.parts import describe_part, part_name, part_view
from cmcr.embeddings.schema import Part
from cmcr.embeddings.writer import finished_part
from cmcr.extract.engine.content import digest, digest_text, is_as_recorded, stamp
from cmcr.extract.items import Item
from cmcr.extract.media.crops import PLACES, Crop
from cmcr.extract.media.video import Span

_OPEN = 16  # parts mapped at once


@dataclass(frozen=True, slots=True)
class Taken:
    """A row taken over: the item as it is written, its vector (D,), and its content."""

    item: Item
    vector: np.ndarray
    measured: Input


@dataclass(frozen=True)
class Known:
    """`rows` are numbered through, by content; `record` is what is known of each input.

    Row `starts[k]` is the first of `parts[k]`, whose embeddings are mapped as they are asked for.
    """

    modality: Modality
    block: Callable[[int], np.ndarray]  # (rows of the part, D), memory-mapped
    starts: Sequence[int]
    boxes: Sequence[pa.Table]  # the regions of each part's rows
    rows: Mapping[bytes, int]
    record: Record
    same_regions: bool

    def take(self, item: Item) -> Taken | None:
        """The row that was made from the item's content, which is read where time does not tell."""
        content = stamp(item)
        content = replace(content, sha256=self._on_record(item) or digest(item))
        name = _name(self.modality, item.uri, content.sha256)
        if name is None or (number := self.rows.get(name)) is None:
            return None
        part = bisect_right(self.starts, number) - 1
        row = number - self.starts[part]
        vector = self.block(part)[row].copy()  # a view would keep the part's file open
        return Taken(self._written(item, part, row), vector, content.as_input(item))

    def _on_record(self, item: Item) -> str | None:
        """The digest of an item that size and time of change vouch for."""
        for before in map(self.record.__getitem__, self.record.find(item.id)):
            if before.uri == item.uri and not before.failed and before.sha256:
                same = is_as_recorded(item, before.size, before.mtime_ns, self.same_regions)
                return before.sha256 if same else None
        return None

    def _written(self, item: Item, part: int, row: int) -> Item:
        if isinstance(item, Crop):
            extra = {**item.extra, **self.boxes[part].slice(row, 1).to_pylist()[0]}
            return Item(item.id, item.uri, label=item.label, group=item.group, extra=extra)
        if isinstance(item, Span):
            return Item(item.id, item.uri, label=item.label, group=item.group, extra=item.extra)
        return item if isinstance(item.content, str) else replace(item, content=None)


_TOLD_BY_CONTENT = ("audio", "image", "text")


def read_known(folder: Path, there: Description, wanted: Description) -> Known:
    """What the finished parts in `folder` hold of the source that `wanted` describes.

    Texts are known without an inventory, too.
    """
    parts: list[Part] = []
    starts: list[int] = []
    boxes: list[pa.Table] = []
    rows: dict[bytes, int] = {}
    record = Record()
    lines = {part.name: part for part in there.parts} if isinstance(there, Manifest) else {}
    sizes = {name: part.bytes for name, part in lines.items()} or None
    numbers = sorted(int(path.stem[5:]) for path in folder.glob("part-*.parquet"))
    columns = PLACES if set(PLACES) <= set(there.columns) else ()
    start = 0
    for number, recorded in enumerate(
        read_inputs(folder, range(numbers[-1] + 1 if numbers else 0))
    ):
        path = folder / part_name(number)
        if not finished_part(folder, number, sizes):
            continue
        part = lines.get(path.name) or describe_part(path, there)
        if recorded is None:
            made = _of_texts(path)
        else:
            made = recorded.table.filter(pc.invert(recorded.table["failed"]))
        if len(made) != part.rows:
            continue
        uris, digests = (made[name].to_pylist() for name in ("uri", "sha256"))
        for row, (uri, sha256) in enumerate(zip(uris, digests, strict=True), start):
            if name := _name(there.modality, uri, sha256):
                rows[name] = row
        if recorded is not None:
            record.add(recorded)
        parts.append(part)
        starts.append(start)
        start += part.rows
        boxes.append(pq.read_table(path, columns=list(columns), partitioning=None))
    block = lru_cache(_OPEN)(lambda number: part_view(folder, parts[number], there))
    same_regions = all(
        there.source.get(name) == wanted.source.get(name)
        for name in ("regions", "frames", "windows")
    )
    return Known(there.modality, block, starts, boxes, rows, record, same_regions)


def _of_texts(path: Path) -> pa.Table:
    """URI of each row and digest of its text, where it has one."""
    table = pq.read_table(path, columns=["uri", "text"], partitioning=None)
    texts = table["text"].to_pylist()
    digests = [None if text is None else digest_text(text) for text in texts]
    return pa.table({"uri": table["uri"], "sha256": pa.array(digests, pa.string())})


def _name(modality: Modality, uri: str, sha256: str | None) -> bytes | None:
    """What decides a row: the content, and the suffix where that says how to read it."""
    if sha256 is None:
        return None
    suffix = Path(uri).suffix.lower() if modality not in _TOLD_BY_CONTENT else ""
    return bytes.fromhex(sha256) + suffix.encode()
