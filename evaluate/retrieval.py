"""Retrieval between two datasets, both ways, by every model that is given.

    speech = select(open_dataset(store, Key("clap", "audio", "esc50")), {"fold": ["5"]})
    photos = select(open_dataset(store, Key("clip", "image", "imagenet")))
    models = {"ridge": baselines(store, config)["ridge"], "c-mcr": connection}
    for ranking in rank_both_ways(models, speech, photos): print(ranking.row)

The first rows of a direction are `chance`, what a random order is expected to give.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from cmcr.connect import Connection
from cmcr.embeddings import Dataset, Key
from cmcr.errors import CmcrError, UsageError
from cmcr.evaluate.metrics import RECALL_LEVELS, Measured, chance_metrics, retrieval_metrics
from cmcr.evaluate.relevance import Matches, find_matches
from cmcr.evaluate.results import Row

Where = Mapping[str, Sequence[str]]

_COLUMNS = ("id", "uri", "text", "label", "group")


@dataclass(frozen=True)
class Items:
    """Rows of a dataset that are searched for, or searched in."""

    dataset: Dataset
    rows: np.ndarray  # (items,) numbers of the rows
    table: pa.Table  # their id, label and group

    @property
    def key(self) -> Key:
        """The dataset they are of."""
        return self.dataset.key

    def embeddings(self) -> np.ndarray:
        """Their embeddings, (items, D), in the stored precision."""
        embeddings: np.ndarray = self.dataset.embeddings()[self.rows]  # (items, D)
        return embeddings

    def classes(self) -> list[str | None]:
        """The first label of each, None where there is none."""
        return [labels[0] if labels else None for labels in self.table["label"].to_pylist()]

    def projected(self, model: Connection) -> Tensor:
        """Their place in the joint space of `model`, (items, joint), unit norm."""
        return model.project(self.key.space, self.embeddings(), self.key.modality)


@dataclass(frozen=True)
class Ranking:
    """A row of results, and the mean precision at each of `RECALL_LEVELS` that goes with it."""

    row: Row
    precision: np.ndarray  # (levels,)


def parse_where(filters: Sequence[str]) -> dict[str, list[str]]:
    """`COLUMN=VALUE[,VALUE...]` strings as columns and the values to keep.

    Raises UsageError for a string without "=" or a column that is named twice.
    """
    where: dict[str, list[str]] = {}
    for text in filters:
        column, equals, values = text.partition("=")
        if not equals or not column:
            raise UsageError(f"{text!r} selects nothing", cure="write COLUMN=VALUE[,VALUE...]")
        if column in where:
            raise UsageError(
                f"the column {column!r} is named twice", cure=f"write {column}=VALUE,VALUE"
            )
        where[column] = values.split(",")
    return where


def select(dataset: Dataset, where: Where | None = None) -> Items:
    """The rows of `dataset` that have, in each column of `where`, one of the values given.

    Raises UsageError for a column that is not there or when no row is left, CmcrError when no
    row has a label or a group.
    """
    where = where or {}
    there = (*_COLUMNS, *dataset.manifest.columns)
    for column in where:
        if column not in there:
            raise UsageError(
                f"{dataset.key} has no column {column!r}",
                where=dataset.folder,
                cure=f"one of: {', '.join(there)}",
            )
    kept = np.ones(dataset.rows, bool)
    for column, wanted in where.items():
        values = dataset.table([column])[column].to_pylist()
        kept &= np.fromiter((_has_one(value, wanted) for value in values), bool, dataset.rows)
    rows = np.flatnonzero(kept)
    if not len(rows):
        filters = " and ".join(f"{column}={','.join(where[column])}" for column in where)
        raise UsageError(
            f"no row of {dataset.key} has {filters}" if where else f"{dataset.key} has no rows",
            where=dataset.folder,
        )
    table = dataset.table(["id", "label", "group"]).take(rows)
    if not any(table["group"].to_pylist()) and not any(table["label"].to_pylist()):
        raise CmcrError(
            f"{dataset.key} has neither labels nor groups, so nothing says what matches",
            where=dataset.folder,
            cure="extract a folder of class folders or a manifest with a column `label` or "
            "`group`, or import with --metadata that has one",
        )
    return Items(dataset, rows, table)


def rank_both_ways(
    models: Mapping[str, Connection], query: Items, gallery: Items
) -> Iterator[Ranking]:
    """Search `gallery` for `query`, then the other way: chance, then `models` in their order.

    Raises MismatchError when an encoder is not the one a model was made for, UsageError when an
    item would find itself, CmcrError when nothing matches.
    """
    for model in models.values():
        for items in (query, gallery):
            model.check(items.key.space, items.dataset.encoder_identity)
    _refuse_items_that_find_themselves(query, gallery)
    matches = find_matches(query.table, gallery.table)
    if not matches.counts().any():
        raise _nothing_in_common(query, gallery)
    yield from _rank(models, query, gallery, matches)
    yield from _rank(models, gallery, query, matches.reverse())


def _rank(
    models: Mapping[str, Connection], query: Items, gallery: Items, matches: Matches
) -> Iterator[Ranking]:
    names = dict.fromkeys(sorted([query.key.dataset, gallery.key.dataset]))

    def ranking(model: str, measured: Measured) -> Ranking:
        row = Row(
            dataset="+".join(names),
            model=model,
            task="retrieval",
            query=str(query.key),
            gallery=str(gallery.key),
            metrics=measured.metrics,
        )
        return Ranking(row, measured.precision)

    chance = chance_metrics(matches.counts(), matches.gallery)
    yield ranking("chance", Measured(chance, np.full(len(RECALL_LEVELS), chance["mAP"])))
    for name, model in models.items():
        projected = (query.projected(model), gallery.projected(model))
        yield ranking(name, retrieval_metrics(*projected, matches))


def _has_one(value: str | list[str] | None, wanted: Sequence[str]) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(one in wanted for one in values)


def _refuse_items_that_find_themselves(query: Items, gallery: Items) -> None:
    if query.key == gallery.key and len(np.intersect1d(query.rows, gallery.rows)):
        raise UsageError(
            f"query and gallery share rows of {query.key}: an item would find itself",
            cure="keep them apart with --query-where and --gallery-where, or name two datasets",
        )


def _nothing_in_common(query: Items, gallery: Items) -> CmcrError:
    return CmcrError(
        "no query has a match in the gallery",
        where=f"{_examples(query)}; {_examples(gallery)}",
        cure="items match by a shared `group`, or by a shared `label` where one has no group: "
        "use the same names in both datasets",
    )


def _examples(items: Items) -> str:
    groups = items.table["group"].drop_null().unique().to_pylist()[:3]
    labels = list(dict.fromkeys(name for name in items.classes() if name))[:3]
    named = [
        f"{column} such as {', '.join(map(repr, values))}"
        for column, values in (("group", groups), ("label", labels))
        if values
    ]
    return f"{items.key} has {' and '.join(named)}"
