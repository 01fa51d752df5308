"""One direction of a search as a row of results, and what lies behind it: vectors and matches in.

    ranking = rank_by_model(asked, found, matches, "ridge", (queries, gallery))   # unit vectors
    tell_what_lies_behind(ranking)              # classes and worst queries, or hubs, into its row
    per_query([ranking, ...])                   # tables with a line for each query

Nothing here knows a store, a connection or a file, so arrays go the same way (evaluate/arrays.py).
Where nothing says what matches, the rows are of task `hubs`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from cmcr.embeddings.index import search
from cmcr.evaluate.ranking.hubs import HUB_K, chance_hubs, hub_metrics, most_found
from cmcr.evaluate.ranking.matches import Matches, first_labels
from cmcr.evaluate.ranking.metrics import (
    CUTOFFS,
    MEANS,
    RECALL_LEVELS,
    PerQuery,
    chance_metrics,
    intervals,
    retrieval_metrics,
)
from cmcr.evaluate.ranking.related import distance
from cmcr.evaluate.results import UNKNOWN, Metrics, Row, Side, new_row
from cmcr.large.arrays import room_for

TASK, HUBS_TASK = "retrieval", "hubs"
WORST = 20

_BLOCK = 65_536  # queries
_SHOWN = 5  # labels of queries that match nothing


class Described(Side, Protocol):
    """Items and what the store, or whoever has arrays, says of them."""

    @property
    def table(self) -> pa.Table:
        """Their id, label and group, a row an item."""


@dataclass(frozen=True)
class Ranking:
    """A row of results, the mean precision at each of `RECALL_LEVELS`, and what lies behind it."""

    query: Described
    row: Row
    precision: np.ndarray  # (levels,), none where nothing says what matches
    matches: Matches
    per_query: PerQuery | None = None  # none of chance, and where nothing says what matches
    hubs: Sequence[dict[str, Any]] = ()  # where nothing says what matches


def rank_by_chance(asked: Described, found: Described, relevant: Matches) -> Ranking:
    """What a random order of the gallery gives on average."""
    if not relevant.truth:
        row = _row(
            asked, found, relevant, "chance", chance_hubs(relevant.queries, relevant.gallery)
        )
        return Ranking(asked, row, np.empty(0), relevant)
    chance = chance_metrics(relevant.counts(), relevant.gallery)
    precision = np.full(len(RECALL_LEVELS), chance["mAP"])
    row = _row(asked, found, relevant, "chance", chance)
    return Ranking(asked, row, precision, relevant)


def rank_by_model(
    asked: Described,
    found: Described,
    relevant: Matches,
    name: str,
    vectors: tuple[Tensor, Tensor],
) -> Ranking:
    """How well `asked` finds `found`, whose unit vectors are (queries, joint), (gallery, joint)."""
    if not relevant.truth:
        return _spread(asked, found, relevant, name, vectors)
    measured = retrieval_metrics(*vectors, relevant)
    row = _row(asked, found, relevant, name, measured.metrics)
    row["intervals"] = intervals(measured.per_query)
    return Ranking(asked, row, measured.precision, relevant, measured.per_query)


def _spread(
    asked: Described,
    found: Described,
    relevant: Matches,
    name: str,
    vectors: tuple[Tensor, Tensor],
) -> Ranking:
    """How the answers spread over the gallery, and which of its items are the hubs."""
    queries, gallery = vectors
    nearest = room_for((len(queries), min(HUB_K, len(gallery))), np.int64)  # (queries, ≤ 10)
    for start in range(0, len(queries), _BLOCK):
        rows = slice(start, start + _BLOCK)
        nearest[rows] = search(queries[rows].numpy(), gallery.numpy(), HUB_K)[1]
    metrics = hub_metrics(nearest, len(gallery)) | {"distance": distance(queries, gallery)}
    row = _row(asked, found, relevant, name, metrics)
    most = most_found(nearest, len(gallery), WORST)
    lines = found.table.take([at for at, _ in most]).to_pylist()
    hubs = [
        {"id": line["id"], "label": line["label"], "found": often}
        for line, (_, often) in zip(lines, most, strict=True)
    ]
    return Ranking(asked, row, np.empty(0), relevant, hubs=hubs)


def _row(
    query: Described, gallery: Described, matches: Matches, model: str, metrics: Metrics
) -> Row:
    """A row that tells of the queries that nothing matches; without truth one of hubs."""
    if not matches.truth:
        metrics = metrics | {"queries": matches.queries, "gallery_size": matches.gallery}
    row = new_row(query, gallery, TASK if matches.truth else HUBS_TASK, model, metrics)
    tell_truth(row, matches)
    rows = np.flatnonzero(matches.counts() == 0)
    if matches.truth and len(rows):
        table = query.table.take(rows)
        labels = pc.list_flatten(table["label"].cast(pa.list_(pa.string()))).unique()
        row["unmatched"] = {
            "queries": len(rows),
            "of": matches.queries,
            "first": table["id"][0].as_py(),
            "labels": labels[:_SHOWN].to_pylist(),
        }
    return row


def tell_truth(row: Row, matches: Matches) -> None:
    """Give a row what matching items share, or why nothing says it."""
    row["truth"] = matches.truth or UNKNOWN
    if not matches.truth:
        row["unknown"] = matches.unknown


def tell_what_lies_behind(ranking: Ranking) -> None:
    """Give a row its metrics `per_class` and its `worst` queries, or without truth its `hubs`."""
    if ranking.per_query:
        ranking.row["per_class"] = per_class(ranking.per_query, first_labels(ranking.query.table))
        ranking.row["worst"] = worst(ranking.per_query, ranking.query)
    elif ranking.hubs:
        ranking.row["hubs"] = [*ranking.hubs]


def per_class(found: PerQuery, classes: pa.Array) -> list[dict[str, Any]]:
    """The metrics over the queries of each class, by name; `classes` has one for every query.

    An item's class is its first label. Queries without one, or without a match, count nowhere.
    """
    coded = classes.take(found.rows).dictionary_encode()  # (found,)
    number = coded.indices.fill_null(-1).to_numpy()
    order = np.argsort(number, kind="stable")
    names = coded.dictionary.to_pylist()
    starts = np.searchsorted(number[order], np.arange(len(names) + 1))
    return [
        {"label": name, "queries": len(own), "metrics": found.take(own).summary()}
        for name, at in sorted(zip(names, range(len(names)), strict=True))
        for own in [order[starts[at] : starts[at + 1]]]
        if name
    ]


def worst(found: PerQuery, queries: Described) -> list[dict[str, Any]]:
    """The twenty queries whose first match ranks last: their id, label and that rank.

    Queries whose first match comes first are no failures and not listed.
    """
    order = np.argsort(-found.first_rank, kind="stable")[:WORST]
    order = order[found.first_rank[order] > 1]
    ids = queries.table["id"].take(found.rows[order]).to_pylist()
    labels = queries.table["label"].take(found.rows[order]).to_pylist()
    return [
        {"id": name, "label": label, "first_rank": int(rank)}
        for name, label, rank in zip(ids, labels, found.first_rank[order], strict=True)
    ]


def per_query(rankings: Sequence[Ranking]) -> Iterator[pa.Table]:
    """How well each query did, tables for each model and direction, as per-query.parquet has it.

    Columns: `query`, `gallery`, `model`, `hubness`, the `id` of the query, how many `matches` it
    has, the `first_rank` of one and its `reciprocal_rank`, the average precision `ap`, `hit@k`. Of
    queries without a match the last ones are null.
    """
    for ranking in rankings:
        found = ranking.per_query
        if found is None:
            continue
        ids, counts = ranking.query.table["id"], ranking.matches.counts()
        for start in range(0, len(counts), _BLOCK):
            block = counts[start : start + _BLOCK]
            some = found.take(slice(*np.searchsorted(found.rows, (start, start + len(block)))))
            measured = {"matches": block, **_measured(some, block > 0)}
            yield per_query_table(ranking.row, ids.slice(start, len(block)), measured)


def _measured(found: PerQuery, there: np.ndarray) -> dict[str, pa.Array]:
    """The columns of queries that have a match `there`, null for the others."""

    def whole(values: np.ndarray) -> pa.Array:
        every = np.zeros(len(there), values.dtype)
        every[there] = values
        return pa.array(every, mask=~there)

    scores = dict(zip(MEANS, found.scores.T, strict=True))
    return {
        "first_rank": whole(found.first_rank),
        "reciprocal_rank": whole(1 / found.first_rank),
        "ap": whole(scores["mAP"]),
        **{f"hit@{k}": whole(scores[f"hit_rate@{k}"] > 0) for k in CUTOFFS},
    }


def per_query_table(
    row: Row, ids: pa.Array, measured: Mapping[str, np.ndarray | pa.Array]
) -> pa.Table:
    """A line for each query of one row of results: what the row is of, the id, what was measured.

    `measured` are columns of (queries,).
    """
    named = {
        "query": row["query"],
        "gallery": row["gallery"],
        "model": row["model"],
        "hubness": row.get("hubness", "none"),
    }
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        name: pa.array([value], pa.string()).dictionary_encode().take(np.zeros(len(ids), np.int32))
        for name, value in named.items()
    }
    return pa.table({**columns, "id": ids, **measured})
