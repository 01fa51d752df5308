"""`cmcr evaluate retrieval`: a connection and two datasets in, numbers and pictures out.

    done = evaluate_retrieval(store, store / "connections" / "clip-clap", query, gallery)
    done.rows, done.fresh, done.folder

FOLDER/retrieval.json       {"results": [row, ...], "inputs": fingerprints, "files": the others}
       neighbours.parquet   the ten nearest of every query, both ways
       precision.png        precision over recall, beside the closed forms and chance
       joint-space.png      the items before and after, in two dimensions
       training.png         the loss and its terms, for a trained connection
"""

from collections.abc import Sequence
from pathlib import Path

from cmcr.connect import Connection, load_connection
from cmcr.connect.checkpoint import LOG
from cmcr.embeddings import Key, open_dataset
from cmcr.evaluate.breakdown import per_class, worst
from cmcr.evaluate.joint_space import LEAST_POINTS, Cloud, draw_joint_space
from cmcr.evaluate.metrics import METRICS_VERSION
from cmcr.evaluate.neighbours import write_neighbours
from cmcr.evaluate.pictures import Curve, draw_precision, draw_training, read_training
from cmcr.evaluate.results import Row
from cmcr.evaluate.retrieval import Items, Ranking, Where, rank_both_ways, select
from cmcr.evaluate.reuse import (
    Evaluated,
    connection_inputs,
    evaluate_once,
    models_for,
    results_folder,
)
from cmcr.files import sha256_file

RESULTS = "retrieval.json"
NEIGHBOURS = "neighbours.parquet"
PRECISION = "precision.png"
JOINT_SPACE = "joint-space.png"
TRAINING = "training.png"

_MOST_DRAWN = 20_000


def evaluate_retrieval(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    *,
    query_where: Where | None = None,
    gallery_where: Where | None = None,
    out: Path | None = None,
) -> Evaluated:
    """Evaluate the connection in the folder `path` on two datasets of `store`, both ways.

    Results go to the folder `out`, which holds one evaluation, else to `results_folder`. Nothing
    is computed again while connection, datasets and filters stay the same. Rows of the connection
    itself have its metrics `per_class` and its `worst` queries too. Raises UsageError for a
    dataset, column or value that is not there, MismatchError for embeddings that the connection
    was not made for, StoreError for damaged files, CmcrError when nothing matches.
    """
    connection = load_connection(path)
    folder = out or results_folder(store, path, query, gallery)
    asked = select(open_dataset(store, query), query_where)
    found = select(open_dataset(store, gallery), gallery_where)
    inputs = connection_inputs(store, path, connection) | {
        "metrics_version": METRICS_VERSION,
        "training": _log(path),
        "query": asked.inputs,
        "gallery": found.inputs,
    }

    def compute() -> tuple[list[Row], list[str]]:
        models = models_for(store, connection, [asked.key, found.key])
        rankings = rank_both_ways(models, asked, found)
        for ranking in rankings:
            if ranking.row["model"] == connection.model_name and ranking.per_query:
                ranking.row["per_class"] = per_class(ranking.per_query, ranking.query.classes())
                ranking.row["worst"] = worst(ranking.per_query, ranking.query)
        files = _draw(folder, path, connection, (asked, found), rankings)
        write_neighbours(folder / NEIGHBOURS, connection, (asked, found))
        return [ranking.row for ranking in rankings], [*files, NEIGHBOURS]

    return evaluate_once(folder, RESULTS, inputs, compute)


def _draw(
    folder: Path,
    path: Path,
    connection: Connection,
    both: tuple[Items, Items],
    rankings: Sequence[Ranking],
) -> list[str]:
    """Draw what there is to draw; gives the names of the files."""
    curves = [
        Curve(_direction(both, ranking.row), ranking.row["model"], ranking.precision,
              ranking.row["metrics"]["mAP"])
        for ranking in rankings
    ]  # fmt: skip
    draw_precision(curves, folder / PRECISION)
    drawn = [PRECISION]
    if all(len(items.rows) >= LEAST_POINTS for items in both):
        query, gallery = (_cloud(connection, items.spread(_MOST_DRAWN)) for items in both)
        draw_joint_space((query, gallery), folder / JOINT_SPACE)
        drawn.append(JOINT_SPACE)
    if (path / LOG).exists():
        draw_training(read_training(path / LOG), folder / TRAINING)
        drawn.append(TRAINING)
    for name in {JOINT_SPACE, TRAINING}.difference(drawn):
        (folder / name).unlink(missing_ok=True)
    return drawn


def _cloud(connection: Connection, items: Items) -> Cloud:
    after = items.projected(connection).numpy()  # (items, joint)
    return Cloud(items.key.space, items.key.modality, items.classes(), items.embeddings(), after)


def _direction(both: tuple[Items, Items], row: Row) -> str:
    names = {str(items.key): f"{items.key.space} {items.key.modality}" for items in both}
    return f"{names[row['query']]} → {names[row['gallery']]}"


def _log(path: Path) -> str | None:
    log = path / LOG
    return sha256_file(log) if log.exists() else None
