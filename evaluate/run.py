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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.connect import Connection, baselines, load_connection, without_data
from cmcr.embeddings import Key, list_datasets, open_dataset
from cmcr.errors import StoreError
from cmcr.evaluate.joint_space import LEAST_POINTS, Cloud, draw_joint_space
from cmcr.evaluate.metrics import METRICS_VERSION
from cmcr.evaluate.neighbours import nearest_neighbours
from cmcr.evaluate.pictures import Curve, draw_precision, draw_training, read_training
from cmcr.evaluate.results import Row, read_results, write_results
from cmcr.evaluate.retrieval import Items, Ranking, Where, rank_both_ways, select
from cmcr.files import replacing, sha256_file
from cmcr.progress import progress

RESULTS = "retrieval.json"
NEIGHBOURS = "neighbours.parquet"
PRECISION = "precision.png"
JOINT_SPACE = "joint-space.png"
TRAINING = "training.png"

_RECORD = "config.json"
_LOG = "training.jsonl"
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Evaluated:
    """Where the results lie, the rows, and whether this call computed them."""

    folder: Path
    rows: list[Row]
    fresh: bool

    def __str__(self) -> str:
        state = "evaluated" if self.fresh else "up to date"
        return f"{state}: {self.rows[0]['query']} and {self.rows[0]['gallery']}: {self.folder}"


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
    is computed again while connection, datasets and filters stay the same. Raises UsageError for a
    dataset, column or value that is not there, MismatchError for embeddings that the connection
    was not made for, StoreError for damaged files, CmcrError when nothing matches.
    """
    connection = load_connection(path)
    folder = out or results_folder(store, path, query, gallery)
    asked = select(open_dataset(store, query), query_where)
    found = select(open_dataset(store, gallery), gallery_where)
    inputs = {
        "metrics_version": METRICS_VERSION,
        "connection": _fingerprints(path, [_RECORD, _LOG]),
        "closed_forms": _training_datasets(store, connection),
        "query": _identity(asked, query_where),
        "gallery": _identity(found, gallery_where),
    }
    if (rows := _up_to_date(folder, inputs)) is not None:
        return Evaluated(folder, rows, fresh=False)
    models = _models(store, connection, [asked.key, found.key])
    with progress("evaluate", total=2 * len(models) + 2, unit="models") as advance:
        rankings = []
        for ranking in rank_both_ways(models, asked, found):
            rankings.append(ranking)
            advance(1)
    files = _draw(folder, path, connection, (asked, found), rankings)
    tables = [
        nearest_neighbours(connection, asked, found),
        nearest_neighbours(connection, found, asked),
    ]
    with replacing(folder / NEIGHBOURS) as unfinished:
        pq.write_table(pa.concat_tables(tables).unify_dictionaries(), unfinished)
    rows = [ranking.row for ranking in rankings]
    write_results(folder / RESULTS, rows, inputs, [*files, NEIGHBOURS])
    return Evaluated(folder, rows, fresh=True)


def results_folder(store: Path, path: Path, query: Key, gallery: Key) -> Path:
    """STORE/results/CONNECTION/SPACE_MODALITY_DATASET--SPACE_MODALITY_DATASET."""
    names = (f"{key.space}_{key.modality}_{key.dataset}" for key in (query, gallery))
    return store / "results" / path.resolve().name / "--".join(names)


def _models(store: Path, connection: Connection, keys: Sequence[Key]) -> dict[str, Connection]:
    """The closed forms that can project `keys`, and last the connection itself.

    Those that are fitted need what the connection was made from to be known, and in the store.
    """
    name, config = connection.model_name, connection.config
    used = {dataset for space in connection.record.spaces for dataset in space.datasets}
    fitting = config is not None and used <= set(map(str, list_datasets(store)))
    others = baselines(store, config) if fitting else without_data(connection.record)
    closed_forms = {
        other: model
        for other, model in others.items()
        if other != name and all(model.knows(key.space, key.modality) for key in keys)
    }
    return {**closed_forms, name: connection}


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
        query, gallery = (_cloud(connection, items) for items in both)
        draw_joint_space((query, gallery), folder / JOINT_SPACE)
        drawn.append(JOINT_SPACE)
    if (path / _LOG).exists():
        draw_training(read_training(path / _LOG), folder / TRAINING)
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


def _up_to_date(folder: Path, inputs: dict[str, Any]) -> list[Row] | None:
    try:
        results = read_results(folder / RESULTS)
    except StoreError:
        return None
    whole = all((folder / name).exists() for name in results["files"])
    return results["results"] if whole and results["inputs"] == inputs else None


def _identity(items: Items, where: Where | None) -> dict[str, Any]:
    return {
        "dataset": str(items.key),
        "fingerprint": items.dataset.fingerprint,
        "where": {column: list(values) for column, values in (where or {}).items()},
    }


def _training_datasets(store: Path, connection: Connection) -> dict[str, str]:
    """The state in `store` of what the connection was made from, and closed forms are made from."""
    used = {name for space in connection.record.spaces for name in space.datasets}
    present = [key.folder(store) for key in list_datasets(store) if str(key) in used]
    return {
        folder.relative_to(store).as_posix(): digest
        for folder in present
        for digest in _fingerprints(folder, [_MANIFEST]).values()
    }


def _fingerprints(folder: Path, names: Sequence[str]) -> dict[str, str]:
    return {name: sha256_file(folder / name) for name in names if (folder / name).exists()}
