"""Items that are searched for, or searched in, and where rows of a dataset lie in a joint space.

speech = select(open_dataset(store, Key("clap", "audio", "esc50")), {"fold": ["5"]})
photos = select(open_dataset(store, Key("clip", "image", "imagenet")))
matches = check_pair([connection], speech, photos)
speech.projected(connection)               # (items, joint), unit norm

What matches is said by groups and labels where both sides have some. Where neither has any, items
of the same id are pairs; but ids that are mere row numbers, as of arrays imported without metadata,
pair datasets of equal length only: 5,000 captions and 1,000 pictures share numbers, not items.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from cmcr.connect import JointSpace
from cmcr.devices import float32
from cmcr.embeddings import Dataset
from cmcr.embeddings.search.where import RowFilter
from cmcr.errors import CmcrError, StoreError, UsageError
from cmcr.evaluate.inputs.selection import Selection, choose_rows
from cmcr.evaluate.ranking.matches import (
    Matches,
    find_matches,
    first_labels,
    match_ids,
    unknown_matches,
)
from cmcr.large.arrays import room_for
from cmcr.large.tables import most_repeated, partners

_BLOCK = 65_536  # ids that are compared at a time


@dataclass(frozen=True)
class Items(Selection):
    """Rows of a dataset that are searched for, or searched in."""

    table: pa.Table  # their id, label and group, a row an item

    @property
    def described(self) -> bool:
        """Whether any of them has a label or a group."""
        groups = pc.binary_length(self.table["group"].cast(pa.string()))
        labels = pc.list_value_length(self.table["label"].cast(pa.list_(pa.string())))
        return any((pc.max(lengths).as_py() or 0) > 0 for lengths in (groups, labels))

    @property
    def numbered(self) -> bool:
        """Whether their ids are the numbers of their rows, and so no names."""
        ids = self.table["id"]
        return all(
            ids.slice(start, _BLOCK).equals(_as_ids(self.rows[start : start + _BLOCK]))
            for start in range(0, len(ids), _BLOCK)
        )

    def embeddings(self) -> np.ndarray:
        """Their embeddings, (items, D), in the stored precision."""
        return np.concatenate(list(self.dataset.chosen(self.rows)))

    def spread(self, most: int) -> "Items":
        """At most `most` of them, evenly spread."""
        if len(self.rows) <= most:
            return self
        picked = np.linspace(0, len(self.rows) - 1, most).astype(np.int64)  # (most,)
        return replace(self, rows=self.rows[picked], table=self.table.take(picked))

    def projected(self, model: JointSpace | None) -> Tensor:
        """Their place in the joint space of `model`, see `project_rows`."""
        return project_rows(self.dataset, self.rows, model)


def project_rows(dataset: Dataset, rows: np.ndarray, model: JointSpace | None) -> Tensor:
    """The place of `rows`, ascending, in the joint space of `model`: (rows, joint), unit norm.

    Without a model it is their own space. Of many rows it lies in a file (`room_for`).
    """
    vectors = torch.empty(0)
    done = 0
    for joint in project_blocks(dataset, rows, model):
        if not done:
            vectors = torch.from_numpy(room_for((len(rows), joint.shape[1])))  # (rows, joint)
        vectors[done : done + len(joint)] = joint
        done += len(joint)
    return vectors


def project_blocks(
    dataset: Dataset, rows: np.ndarray, model: JointSpace | None
) -> Iterator[Tensor]:
    """The same a block at a time, (block, joint) float32, as the store is read."""
    for block in dataset.chosen(rows):
        if model is None:
            yield F.normalize(float32(block, "cpu"), dim=1)  # (block, D)
        else:
            yield model.project(dataset.key.space, block, dataset.key.modality)  # (block, joint)


def select(dataset: Dataset, where: RowFilter | None = None) -> Items:
    """The rows of `dataset` that have, in each column of `where`, one of the values given.

    Raises what `choose_rows` raises, StoreError when an id occurs more than once.
    """
    chosen = choose_rows(dataset, where)
    table = dataset.table(["id", "label", "group"])
    if len(chosen.rows) < dataset.rows:
        table = table.take(chosen.rows)
    _refuse_equal_ids(dataset, table)
    return Items(dataset, chosen.rows, chosen.where, table)


def check_pair(models: Iterable[JointSpace], query: Items, gallery: Items) -> Matches:
    """What matches between two sets of items that `models` can search in each other.

    The `truth` of the matches is "" where nothing says what matches. Raises MismatchError when an
    encoder is not the one a model was made for, UsageError when an item would find itself,
    CmcrError when both have labels or groups and share none.
    """
    for model in models:
        for items in (query, gallery):
            model.check(items.key.space, items.dataset.encoder_identity)
    _refuse_items_that_find_themselves(query, gallery)
    described = [items.described for items in (query, gallery)]
    if all(described):
        matches = find_matches(query.table, gallery.table)
        if not matches.truth:
            raise _nothing_in_common(query, gallery)
        return matches
    if not any(described) and _ids_pair(query, gallery):
        return match_ids(query.table["id"], gallery.table["id"])
    why = (
        "labels or groups on one side alone"
        if any(described)
        else "no labels or groups, and no equal ids but row numbers"
    )
    return unknown_matches(len(query.rows), len(gallery.rows), why)


def _ids_pair(query: Items, gallery: Items) -> bool:
    """Whether some id of the two is the same, and no chance of counting."""
    numbers = query.numbered and gallery.numbered
    if numbers and query.dataset.rows != gallery.dataset.rows:
        return False
    return bool((partners(query.table["id"], gallery.table["id"]) >= 0).any())


def _as_ids(rows: np.ndarray) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows).cast(pa.string())])


def _refuse_equal_ids(dataset: Dataset, table: pa.Table) -> None:
    if repeated := most_repeated(table["id"]):
        name, most = repeated
        raise StoreError(
            f"ids of {dataset.key} occur more than once, {name!r} {most} times: "
            "results name items by id",
            where=dataset.folder,
            fix="give each input an id of its own, and extract or import it again",
        )


def _refuse_items_that_find_themselves(query: Items, gallery: Items) -> None:
    if query.key == gallery.key and len(np.intersect1d(query.rows, gallery.rows)):
        raise UsageError(
            f"query and gallery share rows of {query.key}: an item would find itself",
            fix="keep them apart with --query-where and --gallery-where, or name two datasets",
        )


def _nothing_in_common(query: Items, gallery: Items) -> CmcrError:
    return CmcrError(
        "no query has a match in the gallery",
        where=f"{_examples(query)}; {_examples(gallery)}",
        fix="items match by a shared `group`, or by a shared `label` where one has no group: "
        "use the same names in both datasets",
    )


def _examples(items: Items) -> str:
    groups = items.table["group"].drop_null().unique().to_pylist()[:3]
    labels = [name for name in first_labels(items.table).unique().to_pylist() if name][:3]
    named = [
        f"{column} such as {', '.join(map(repr, values))}"
        for column, values in (("group", groups), ("label", labels))
        if values
    ]
    return f"{items.key} has {' and '.join(named)}"
