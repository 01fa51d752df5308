"""`cmcr evaluate retrieval`: a connection and two datasets in, numbers and figures out.

    done = evaluate_retrieval(store, store / "connections" / "clip-clap", query, gallery)
    done.rows, done.fresh, done.folder

FOLDER/retrieval.json       {"results": [row, ...], "inputs": fingerprints, "files": the others}
       neighbours.parquet   the ten nearest of every query, both ways (neighbours.py)
       per-query.parquet    rank and precision of every query, by every model
       precision.png        precision over recall, beside the closed forms and chance
       joint-space.png      the items before and after, in two dimensions
       training.png         the loss and its terms, for a trained connection

Where nothing says what matches, the rows are of task `hubs`: how a search spreads over the gallery
(evaluate/ranking/hubs.py), and the distance of the two sides. There is neither curve nor per-query
file then.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from torch import Tensor

from cmcr.connect import JointSpace, read_training
from cmcr.devices import threads_for
from cmcr.embeddings import Key
from cmcr.embeddings.index import search
from cmcr.embeddings.search.hubness import (
    NNN,
    Bank,
    Hubness,
    correction,
    open_bank,
    with_correction,
    with_one,
)
from cmcr.embeddings.search.where import RowFilter
from cmcr.evaluate.figures.joint_space import LEAST_POINTS, cloud_of, draw_joint_space
from cmcr.evaluate.figures.plots import RetrievalCurve, draw_precision, draw_training
from cmcr.evaluate.inputs.items import Items, check_pair, select
from cmcr.evaluate.inputs.unrelated import unrelated_cosines
from cmcr.evaluate.ranking.hubs import HUB_K, chance_hubs, hub_metrics, most_found
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.metrics import (
    CUTOFFS,
    MEANS,
    METRICS_VERSION,
    RECALL_LEVELS,
    PerQuery,
    chance_metrics,
    intervals,
    retrieval_metrics,
)
from cmcr.evaluate.ranking.related import false_positive_rate, related_cosines
from cmcr.evaluate.results import UNKNOWN, Inputs, Metrics, Row, Side, model_label, new_row
from cmcr.evaluate.tasks.gap import distance
from cmcr.evaluate.tasks.neighbours import (
    NEIGHBOURS_FILE,
    PER_QUERY_FILE,
    per_query_table,
    write_neighbours,
    write_per_query,
)
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.files import sha256_file

TASK, HUBS_TASK = "retrieval", "hubs"
PRECISION = "precision.png"
JOINT_SPACE = "joint-space.png"
TRAINING = "training.png"

WORST = 20

_MOST_DRAWN = 20_000
_SHOWN = 5  # labels of queries that match nothing


class Described(Side, Protocol):
    """Items and what the store, or whoever has arrays, says of them."""

    @property
    def table(self) -> pa.Table:
        """Their id, label and group, a row an item."""

    def classes(self) -> list[str | None]:
        """The first label of each, None where there is none."""


@dataclass(frozen=True)
class Ranking:
    """A row of results, the mean precision at each of `RECALL_LEVELS`, and what lies behind it."""

    query: Described
    row: Row
    precision: np.ndarray  # (levels,), none where nothing says what matches
    matches: Matches
    per_query: PerQuery | None = None  # none of chance, and where nothing says what matches
    hubs: Sequence[dict[str, Any]] = ()  # where nothing says what matches


def rank_both_ways(
    models: Mapping[str, JointSpace], query: Items, gallery: Items, banks: Sequence[Bank] = ()
) -> list[Ranking]:
    """Search `gallery` for `query`, then the other way: chance, then `models` in their order.

    With a bank of unpaired rows for each of the two ways, a model's row is followed by one of the
    search that they correct for hubs. Raises MismatchError when an encoder is not the one a model
    was made for, UsageError when an item would find itself, CmcrError when nothing matches.
    """
    matches = check_pair(models.values(), query, gallery)
    ways = ((query, gallery, matches), (gallery, query, matches.reverse()))
    rankings = [[rank_by_chance(*way)] for way in ways]
    for name, model in each(models):
        operations = _operations(model, query, gallery)
        with threads_for(operations):
            joint = {id(items): items.projected(model) for items in (query, gallery)}
        for number, (asked, found, relevant) in enumerate(ways):
            vectors = (joint[id(asked)], joint[id(found)])
            with threads_for(operations):
                rankings[number].append(rank_by_model(asked, found, relevant, name, vectors))
            if banks:
                ranking = _corrected(asked, found, relevant, name, vectors, banks[number], model)
                rankings[number].append(ranking)
    return [ranking for way in rankings for ranking in way]


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
    nearest = search(queries.numpy(), gallery.numpy(), HUB_K)[1]  # (queries, ≤ 10)
    metrics = hub_metrics(nearest, len(gallery)) | {"distance": distance(queries, gallery)}
    row = _row(asked, found, relevant, name, metrics)
    most = most_found(nearest, len(gallery), WORST)
    lines = found.table.take([at for at, _ in most]).to_pylist()
    hubs = [
        {"id": line["id"], "label": line["label"], "found": often}
        for line, (_, often) in zip(lines, most, strict=True)
    ]
    return Ranking(asked, row, np.empty(0), relevant, hubs=hubs)


def _operations(model: JointSpace, query: Items, gallery: Items) -> int:
    """Multiply-adds of all cosines between two sets of items."""
    return len(query.rows) * len(gallery.rows) * model.joint_dim


def _corrected(
    asked: Items,
    found: Items,
    relevant: Matches,
    name: str,
    vectors: tuple[Tensor, Tensor],
    bank: Bank,
    model: JointSpace,
) -> Ranking:
    """The same by 2 q·g - r(g): as an inner product of vectors that are one value longer."""
    queries, gallery = vectors
    with threads_for(bank.rows * len(gallery) * model.joint_dim):
        r = correction(gallery, bank.blocks(model.project))  # (gallery,)
    vectors = (with_one(queries), with_correction(gallery, r))
    with threads_for(_operations(model, asked, found)):
        ranking = rank_by_model(asked, found, relevant, name, vectors)
    if not relevant.truth:  # what corrects hubs moves no item
        ranking.row["metrics"]["distance"] = distance(queries, gallery)
    ranking.row["hubness"], ranking.row["bank"] = NNN, bank.summary
    return ranking


def _row(
    query: Described, gallery: Described, matches: Matches, model: str, metrics: Metrics
) -> Row:
    """A row that tells of the queries that nothing matches; without truth one of hubs."""
    if not matches.truth:
        counts = {"queries": matches.queries, "gallery_size": matches.gallery}
        row = new_row(query, gallery, HUBS_TASK, model, metrics | counts)
        row["truth"] = UNKNOWN
        return row
    row = new_row(query, gallery, TASK, model, metrics)
    row["truth"] = matches.truth
    rows = np.flatnonzero(matches.counts() == 0)
    if len(rows):
        table = query.table.take(rows)
        labels = dict.fromkeys(name for names in table["label"].to_pylist() for name in names or ())
        row["unmatched"] = {
            "queries": len(rows),
            "of": matches.queries,
            "first": table["id"][0].as_py(),
            "labels": list(labels)[:_SHOWN],
        }
    return row


def evaluate_retrieval(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
    hubness: Hubness = "none",
    out: Path | None = None,
) -> Evaluated:
    """Evaluate the connection in the folder `path` on two datasets of `store`, both ways.

    With `hubness` "nnn" every model has a second row, of the search that is corrected for hubs by
    rows that the connection was made from (embeddings/search/hubness.py). Results go to the folder
    `out`, which holds one evaluation, else to `results_folder`. Nothing is computed again while
    connection, datasets and filters stay the same. Rows of the connection itself have its metrics
    `per_class` and its `worst` queries too. Raises UsageError for a dataset, column or value that
    is not there, MismatchError for embeddings that the connection was not made for, StoreError for
    damaged files, CmcrError when nothing matches.
    """

    def pose(opened: Opened) -> Task:
        asked, found = select(opened.query, query_where), select(opened.gallery, gallery_where)
        log = opened.training_log
        inputs: Inputs = {
            "metrics_version": METRICS_VERSION,
            "training": None if log is None else sha256_file(log),
            "query": asked.inputs,
            "gallery": found.inputs,
            "hubness": hubness,
        }
        banks = open_banks(opened, (asked, found)) if hubness == NNN else ()
        if banks:
            inputs |= {"banks": [bank.inputs for bank in banks], "chosen": {"hubness": [NNN]}}
        return Task(TASK, inputs, partial(_compute, opened, (asked, found), log, banks))

    return run_task(store, path, query, gallery, pose, out)


def open_banks(opened: Opened, both: tuple[Items, Items]) -> list[Bank]:
    """For each way the rows of the query's modality that the connection was made from.

    None of them is among the items. Raises UsageError where there are none.
    """
    items = [(one.key, one.table["id"].to_pylist()) for one in both]
    return [
        open_bank(opened.store, opened.connection.unpaired(key.space, key.modality), items)
        for key, _ in items
    ]


def _compute(
    opened: Opened,
    both: tuple[Items, Items],
    log: Path | None,
    banks: Sequence[Bank],
    models: Models,
    folder: Path,
) -> tuple[list[Row], list[str]]:
    rankings = rank_both_ways(models.all, *both, banks)
    for ranking in rankings:
        if ranking.row["model"] == models.name:
            tell_what_lies_behind(ranking)
    matches = rankings[0].matches
    files = [NEIGHBOURS_FILE]
    with threads_for(_operations(models.connection, *both)):
        if matches.truth:
            _tell_false_positives(opened, both, rankings)
        write_neighbours(folder / NEIGHBOURS_FILE, models.connection, both, matches, banks)
    if matches.truth:
        write_per_query(folder / PER_QUERY_FILE, per_query(rankings))
        files.append(PER_QUERY_FILE)
    else:
        (folder / PER_QUERY_FILE).unlink(missing_ok=True)
    return [ranking.row for ranking in rankings], [
        *_draw(folder, models, both, rankings, log),
        *files,
    ]


def tell_what_lies_behind(ranking: Ranking) -> None:
    """Give a row its metrics `per_class` and its `worst` queries, or without truth its `hubs`."""
    if ranking.per_query:
        ranking.row["per_class"] = per_class(ranking.per_query, ranking.query.classes())
        ranking.row["worst"] = worst(ranking.per_query, ranking.query)
    elif ranking.hubs:
        ranking.row["hubs"] = [*ranking.hubs]


def _tell_false_positives(
    opened: Opened, both: tuple[Items, Items], rankings: Sequence[Ranking]
) -> None:
    """Give the rows of the connection their `false_positives`, where unpaired rows tell them.

    It is the share of unrelated pairs that score as high as the median related pair.
    """
    connection = opened.connection
    own = [one for one in rankings if one.per_query and one.row["model"] == connection.model_name]
    there, back = (one for one in own if "hubness" not in one.row)
    keys = [items.key for items in both]
    unrelated = unrelated_cosines(opened.store, connection, keys[0], keys[1])
    if unrelated is None:
        return
    query, gallery = (items.projected(connection) for items in both)
    for ranking, sides in ((there, (query, gallery)), (back, (gallery, query))):
        related = related_cosines(*sides, ranking.matches).numpy()
        rate = false_positive_rate(related, unrelated)
        ranking.row["metrics"]["false_positives"] = rate


def per_query(rankings: Sequence[Ranking]) -> Iterator[pa.Table]:
    """How well each query did, a table a model and direction, as per-query.parquet has it.

    Columns: `query`, `gallery`, `model`, `hubness`, the `id` of the query, how many `matches` it
    has, the `first_rank` of one and its `reciprocal_rank`, the average precision `ap`, `hit@k`. Of
    queries without a match the last ones are null.
    """
    for ranking in rankings:
        found = ranking.per_query
        if found is None:
            continue
        counts = ranking.matches.counts()
        there = np.zeros(len(counts), bool)
        there[found.rows] = True

        def whole(values: np.ndarray, there: np.ndarray = there) -> pa.Array:
            every = np.zeros(len(there), values.dtype)
            every[there] = values
            return pa.array(every, mask=~there)

        scores = dict(zip(MEANS, found.scores.T, strict=True))
        measured = {
            "matches": counts,
            "first_rank": whole(found.first_rank),
            "reciprocal_rank": whole(1 / found.first_rank),
            "ap": whole(scores["mAP"]),
            **{f"hit@{k}": whole(scores[f"hit_rate@{k}"] > 0) for k in CUTOFFS},
        }
        yield per_query_table(ranking.row, ranking.query.table["id"], measured)


def _draw(
    folder: Path,
    models: Models,
    both: tuple[Items, Items],
    rankings: Sequence[Ranking],
    log: Path | None,
) -> list[str]:
    """Draw what there is to draw; gives the names of the files."""
    curves = [
        RetrievalCurve(_direction(both, ranking.row), model_label(ranking.row), ranking.precision,
                       ranking.row["metrics"]["mAP"])
        for ranking in rankings
        if ranking.matches.truth
        and ("hubness" not in ranking.row or ranking.row["model"] == models.name)
    ]  # fmt: skip
    drawn = []
    if curves:
        draw_precision(curves, models.name, folder / PRECISION)
        drawn.append(PRECISION)
    if all(len(items.rows) >= LEAST_POINTS for items in both):
        query, gallery = (cloud_of(models.connection, items.spread(_MOST_DRAWN)) for items in both)
        draw_joint_space((query, gallery), folder / JOINT_SPACE)
        drawn.append(JOINT_SPACE)
    if log is not None:
        draw_training(read_training(log), folder / TRAINING)
        drawn.append(TRAINING)
    for name in {PRECISION, JOINT_SPACE, TRAINING}.difference(drawn):
        (folder / name).unlink(missing_ok=True)
    return drawn


def _direction(both: tuple[Items, Items], row: Row) -> str:
    names = {str(items.key): f"{items.key.space} {items.key.modality}" for items in both}
    return f"{names[row['query']]} → {names[row['gallery']]}"


def per_class(found: PerQuery, classes: Sequence[str | None]) -> list[dict[str, Any]]:
    """The metrics over the queries of each class, by name; `classes` has one for every query.

    An item's class is its first label. Queries without one, or without a match, count nowhere.
    """
    names = np.array([classes[row] or "" for row in found.rows])  # (found,)
    return [
        {"label": str(name), "queries": int(own.sum()), "metrics": found.take(own).summary()}
        for name in np.unique(names[names != ""])
        for own in [names == name]
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
