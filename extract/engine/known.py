"""The rows of a dataset by the content that they were made from, so that none is made twice.

known = read_known(folder, there)
known.take(item)             # the row of that content, or None: to be embedded
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cmcr.embeddings import Description, Manifest, Modality
from cmcr.embeddings.inventory import Input, read_inputs
from cmcr.embeddings.parts import describe_part, part_name, part_view
from cmcr.embeddings.writer import finished_part
from cmcr.extract.engine.content import digest, is_as_recorded, stamp
from cmcr.extract.items import Item
from cmcr.extract.media.crops import PLACES, Crop


@dataclass(frozen=True, slots=True)
class Taken:
    """A row taken over: the item as it is written, its vector (D,), and its content."""

    item: Item
    vector: np.ndarray
    measured: Input


@dataclass(frozen=True)
class Known:
    """`rows` are part and row by content, `inputs` what is on record by id and uri."""

    modality: Modality
    blocks: Sequence[np.ndarray]  # (rows of the part, D) each, memory-mapped
    boxes: Sequence[Sequence[Mapping[str, Any]]]  # the regions of each part's rows
    rows: Mapping[str, tuple[int, int]]
    inputs: Mapping[tuple[str, str], Input]
    same_regions: bool

    def take(self, item: Item) -> Taken | None:
        """The row that was made from the item's content, which is read where time does not tell."""
        before = self.inputs.get((item.id, item.uri))
        content = stamp(item)
        if before is not None and before.sha256 and is_as_recorded(item, before, self.same_regions):
            content = replace(content, sha256=before.sha256)
        else:
            content = replace(content, sha256=digest(item))
        name = _name(self.modality, item.uri, content.sha256)
        if name is None or (place := self.rows.get(name)) is None:
            return None
        part, row = place
        return Taken(self._written(item, part, row), self.blocks[part][row], content.as_input(item))

    def _written(self, item: Item, part: int, row: int) -> Item:
        if isinstance(item, Crop):
            extra = {**item.extra, **self.boxes[part][row]}
            return Item(item.id, item.uri, label=item.label, group=item.group, extra=extra)
        return item if self.modality == "text" else replace(item, content=None)


def read_known(folder: Path, there: Description, wanted: Description) -> Known:
    """What the finished parts in `folder` hold of the source that `wanted` describes.

    Texts are known without an inventory, too.
    """
    blocks: list[np.ndarray] = []
    boxes: list[list[dict[str, Any]]] = []
    rows: dict[str, tuple[int, int]] = {}
    inputs: dict[tuple[str, str], Input] = {}
    lines = {part.name: part for part in there.parts} if isinstance(there, Manifest) else {}
    numbers = sorted(int(path.stem[5:]) for path in folder.glob("part-*.parquet"))
    columns = PLACES if set(PLACES) <= set(there.columns) else ()
    sizes = {name: part.bytes for name, part in lines.items()} or None
    for number, recorded in enumerate(read_inputs(folder, numbers[-1] + 1 if numbers else 0)):
        path = folder / part_name(number)
        if not finished_part(folder, number, sizes):
            continue
        table = pq.read_table(path, columns=["uri", "text", *columns], partitioning=None)
        made = _embedded(recorded, table.select(["uri", "text"]).to_pylist())
        if len(made) != len(table):
            continue
        for row, (uri, sha256) in enumerate(made):
            if name := _name(there.modality, uri, sha256):
                rows[name] = len(blocks), row
        inputs |= {(known.id, known.uri): known for known in recorded or [] if not known.failed}
        blocks.append(part_view(folder, lines.get(path.name) or describe_part(path, there), there))
        boxes.append(table.select(columns).to_pylist() if columns else [])
    same_regions = there.source.get("regions") == wanted.source.get("regions")
    return Known(there.modality, blocks, boxes, rows, inputs, same_regions)


def _embedded(
    recorded: list[Input] | None, rows: list[dict[str, Any]]
) -> list[tuple[str, str | None]]:
    """URI and sha256 of the input that each row was made from."""
    if recorded is not None:
        return [(known.uri, known.sha256) for known in recorded if not known.failed]
    texts = [row["text"] for row in rows]
    return [
        (row["uri"], None if text is None else hashlib.sha256(text.encode()).hexdigest())
        for row, text in zip(rows, texts, strict=True)
    ]


def _name(modality: Modality, uri: str, sha256: str | None) -> str | None:
    """What decides a row: the content, and for point clouds the suffix that says how to read it."""
    if sha256 is None or modality != "pointcloud":
        return sha256
    return sha256 + Path(uri).suffix.lower()
