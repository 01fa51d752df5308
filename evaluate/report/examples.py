"""Queries with what they found, and pictures with the region that was chosen.

    for gallery in galleries(store, folder, rows, find_media): ...       # neighbours.parquet
    answers(store, folder, "localization", row, find_media)              # localization.parquet

Of each direction a few queries are shown that lie evenly spread, and those that fail worst.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.embeddings import Key, open_dataset
from cmcr.errors import CmcrError, StoreError
from cmcr.evaluate.inputs.scenes import CORNERS
from cmcr.evaluate.report.previews import Find, Shown, show
from cmcr.evaluate.results import Row, rows_of_connection
from cmcr.evaluate.tasks.counterfactual import LOCALISED
from cmcr.evaluate.tasks.neighbours import NEIGHBOURS_FILE

SPREAD, WORST = 3, 3  # queries of a direction
NEAREST = 5
PAIRS = 6  # of sounds and pictures

Box = Sequence[float]


@dataclass(frozen=True)
class Neighbour:
    """An item that a query found."""

    item: Shown
    rank: int
    cosine: float
    match: bool | None  # None where nothing says it


@dataclass(frozen=True)
class Example:
    """A query and its nearest, and why it is shown."""

    query: Shown
    why: str
    neighbours: Sequence[Neighbour]


@dataclass(frozen=True)
class Gallery:
    """Some queries of one direction."""

    title: str
    model: str
    queries: Sequence[Example]


@dataclass(frozen=True)
class Answer:
    """A sound, the picture it was looked for in, and the region that was chosen.

    Boxes are fractions of the picture; `heard` is None where nothing says where that is.
    """

    sound: Shown
    picture: Shown
    chosen: Box
    heard: Sequence[Box] | None
    cosine: float
    ciou: float
    visible: bool

    @property
    def right(self) -> bool:
        """Whether the region is where the sound comes from."""
        return self.visible and self.ciou >= LOCALISED


def galleries(store: Path, folder: Path, rows: Sequence[Row], find: Find) -> Iterator[Gallery]:
    """A gallery for each direction that neighbours.parquet knows, by the connection itself."""
    path = folder / NEIGHBOURS_FILE
    if not path.exists():
        return
    for row in rows_of_connection(rows):
        query, gallery = row["query"], row["gallery"]
        one = [("query", "=", query), ("gallery", "=", gallery)]
        if "hubness" in pq.read_schema(path).names:
            one.append(("hubness", "=", "none"))
        first = pq.read_table(
            path, columns=["query_id"], filters=[*one, ("rank", "=", 1)], partitioning=None
        )
        reasons = _chosen(first["query_id"].to_pylist(), row)
        near = pq.read_table(
            path,
            columns=["query_id", "gallery_id", "rank", "cosine", "match"],
            filters=[*one, ("rank", "<=", NEAREST), ("query_id", "in", list(reasons))],
            partitioning=None,
        )
        if not near.num_rows:
            continue
        asked = show(store, Key.parse(query), reasons, find)
        found = show(store, Key.parse(gallery), near["gallery_id"].to_pylist(), find)
        neighbours = near.to_pylist()
        yield Gallery(
            f"{query} → {gallery}",
            row["model"],
            [
                Example(
                    asked[name],
                    why,
                    [
                        Neighbour(found[one["gallery_id"]], one["rank"], one["cosine"],
                                  one["match"])
                        for one in sorted(neighbours, key=lambda one: one["rank"])
                        if one["query_id"] == name
                    ],
                )
                for name, why in reasons.items()
            ],
        )  # fmt: skip


def answers(store: Path, folder: Path, task: str, row: Row, find: Find) -> list[Answer]:
    """Pairs of a sound and a picture: right answers, then wrong ones."""
    path = folder / f"{task}.parquet"
    if not path.exists():
        return []
    columns = ["sound", "image", "visible", "region", *CORNERS, "cosine", "ciou"]
    table = pq.read_table(path, columns=columns, partitioning=None)
    chosen = table.take(_surest(table, task)).to_pylist()
    sounds, regions = Key.parse(row["query"]), Key.parse(row["gallery"])
    heard = _heard(store, sounds, [pair["sound"] for pair in chosen])
    asked = show(store, sounds, (pair["sound"] for pair in chosen), find)
    pictures = show(store, regions, (pair["region"] for pair in chosen), find, whole=True)
    return [
        Answer(
            asked[pair["sound"]],
            pictures[pair["region"]],
            [pair[name] for name in CORNERS],
            heard.get(pair["sound"]),
            pair["cosine"],
            pair["ciou"],
            pair["visible"],
        )
        for pair in chosen
    ]


def _chosen(queries: Sequence[str], row: Row) -> dict[str, str]:
    """The ids of the queries to show, and why they are shown."""
    spread = np.linspace(0, len(queries) - 1, min(SPREAD, len(queries))).astype(int)
    reasons = {queries[at]: "one of many" for at in spread}
    for failure in row.get("worst", [])[:WORST]:
        rank = f"{failure['first_rank']:,}"
        reasons[failure["id"]] = f"among the worst: its first match ranks {rank}"
    return reasons


def _surest(table: pa.Table, task: str) -> np.ndarray:
    """Rows of a table of answers: the surest right ones, then the surest wrong ones.

    Of counterfactual recognition the wrong ones are those to sounds that are not in the picture.
    """
    order = np.argsort(-table["cosine"].to_numpy(), kind="stable")
    visible = np.array(table["visible"].to_pylist(), bool)[order]
    right = visible & (table["ciou"].to_numpy()[order] >= LOCALISED)
    wrong = ~visible if task == "counterfactual" else ~right
    return np.concatenate([order[right][: PAIRS // 2], order[wrong][: PAIRS // 2]])


def _heard(store: Path, sounds: Key, ids: Sequence[str]) -> Mapping[str, list[Box]]:
    """Where sounds are heard, as far as their own columns say it."""
    import pyarrow.compute as pc

    try:
        dataset = open_dataset(store, sounds)
        if "boxes" not in dataset.manifest.columns:
            return {}
        table = dataset.table(["id", "boxes"])
    except CmcrError:
        return {}
    rows: list[dict[str, Any]] = table.filter(
        pc.is_in(table["id"], pa.array(ids, pa.string()))
    ).to_pylist()
    try:
        return {row["id"]: json.loads(row["boxes"]) for row in rows if row["boxes"]}
    except ValueError as error:
        raise StoreError(f"the boxes of {sounds} cannot be read", where=dataset.folder) from error
