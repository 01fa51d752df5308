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

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from cmcr.connect import JointSpace, read_training
from cmcr.devices import threads_for
from cmcr.embeddings import Key, open_dataset
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
from cmcr.evaluate.ranking.matches import Matches
from cmcr.evaluate.ranking.metrics import METRICS_VERSION
from cmcr.evaluate.ranking.rankings import (
    TASK,
    Ranking,
    per_query,
    rank_by_chance,
    rank_by_model,
    tell_what_lies_behind,
)
from cmcr.evaluate.ranking.related import distance, false_positive_rate, related_cosines
from cmcr.evaluate.results import Inputs, Row, model_label
from cmcr.evaluate.tasks.neighbours import (
    NEIGHBOURS_FILE,
    PER_QUERY_FILE,
    write_neighbours,
    write_per_query,
)
from cmcr.evaluate.tasks.runner import Evaluated, Models, Opened, Task, each, run_task
from cmcr.files import sha256_file

PRECISION = "precision.png"
JOINT_SPACE = "joint-space.png"
TRAINING = "training.png"

_MOST_DRAWN = 20_000


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
    items = [(one.key, one.table["id"]) for one in both]
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


def why_no_truth(
    store: Path,
    query: Key,
    gallery: Key,
    *,
    query_where: RowFilter | None = None,
    gallery_where: RowFilter | None = None,
) -> str:
    """Why nothing says which rows match, before anything is searched; "" where something does.

    Raises as `evaluate_retrieval` does.
    """
    sides = ((query, query_where), (gallery, gallery_where))
    asked, found = (select(open_dataset(store, key, check=False), where) for key, where in sides)
    return check_pair((), asked, found).unknown


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
    there_is = unrelated_cosines(opened.store, connection, keys[0], keys[1])
    if there_is is None:
        return
    unrelated, least = there_is
    query, gallery = (items.projected(connection) for items in both)
    for ranking, sides in ((there, (query, gallery)), (back, (gallery, query))):
        related = related_cosines(*sides, ranking.matches).numpy()
        rate = false_positive_rate(related, unrelated)
        ranking.row["metrics"]["false_positives"] = rate
        if rate < least:
            ranking.row["false_positives_unknown_below"] = least


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
