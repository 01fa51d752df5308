"""What a store holds: datasets and what failed, connections, and results.

    inventory = take_inventory(store)
    inventory.datasets, inventory.connections

Nothing that is damaged or unfinished stops it: a `problem` says what is wrong instead.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cmcr.connect import TRAINING_LOG, JointSpace, load_connection, read_training
from cmcr.embeddings import Key, Manifest, check_store, list_datasets
from cmcr.embeddings.schema import FAILURES, read_manifest
from cmcr.embeddings.search.where import RowFilter
from cmcr.errors import CmcrError, UsageError, near
from cmcr.evaluate.results import Filters, Inputs, Row, filters_of, read_results
from cmcr.evaluate.tasks.runner import RECORD

TASKS = ("retrieval", "index", "zero-shot", "localization", "counterfactual", "gap")
_EXAMPLES = 3


@dataclass(frozen=True)
class FailureGroup:
    """Inputs of a dataset that failed for the same reason."""

    error: str
    message: str
    count: int
    examples: Sequence[str]  # ids


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset of the store. Without a manifest there is a `problem` instead."""

    key: Key
    manifest: Manifest | None = None
    failures: Sequence[FailureGroup] = ()
    problem: str = ""

    @property
    def source(self) -> str:
        """Where its items came from, in words."""
        if self.manifest is None:
            return ""
        described = self.manifest.source
        where = str(described.get("where") or described.get("kind") or "")
        regions = described.get("regions")
        return f"{where}, regions: {regions['kind']}" if isinstance(regions, dict) else where


@dataclass(frozen=True)
class Evaluation:
    """The results of one task on one pair of datasets, and the folder that they lie in."""

    task: str
    folder: Path
    rows: Sequence[Row]
    problem: str = ""
    inputs: Inputs = field(default_factory=dict)

    @property
    def filters(self) -> Filters:
        """What chose among the rows of the two datasets; empty where all of them count."""
        return filters_of(self.inputs)

    def where(self, side: str) -> RowFilter:
        """The rows of the `query` or the `gallery` that count."""
        where: Mapping[str, Sequence[str]] = self.inputs.get(side, {}).get("where", {})
        return where


@dataclass(frozen=True)
class ConnectionFacts:
    """A connection, its training and its results. Results may outlive the connection."""

    name: str
    connection: JointSpace | None
    training: Sequence[dict[str, float]]
    evaluations: Sequence[Evaluation]
    problem: str = ""


@dataclass(frozen=True)
class Inventory:
    """All that a report speaks of."""

    store: Path
    datasets: Sequence[DatasetFacts]
    connections: Sequence[ConnectionFacts]


def take_inventory(store: Path, connection: str | None = None) -> Inventory:
    """What `store` holds; of its connections only `connection` where one is named.

    Raises UsageError for a folder that is no store or a connection that is not there.
    """
    check_store(store)
    names = sorted(
        {path.parent.name for path in store.glob(f"connections/*/{RECORD}")}
        | {path.name for path in store.glob("results/*") if path.is_dir()}
    )
    if connection is not None:
        if connection not in names:
            raise UsageError(
                f"there is no connection {connection!r}",
                where=store / "connections",
                fix=near(connection, names),
            )
        names = [connection]
    return Inventory(
        store,
        [_dataset(store, key) for key in list_datasets(store)],
        [_connection(store, name) for name in names],
    )


def _dataset(store: Path, key: Key) -> DatasetFacts:
    folder = key.folder(store)
    try:
        return DatasetFacts(key, read_manifest(folder), _failures(folder / FAILURES))
    except CmcrError as error:
        return DatasetFacts(key, problem=error.what)
    except (OSError, pa.ArrowException) as error:
        return DatasetFacts(key, problem=f"its failures cannot be read: {error}")


def _failures(path: Path) -> list[FailureGroup]:
    if not path.exists():
        return []
    table = pq.read_table(path, columns=["id", "error", "message"], partitioning=None)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    for name, *reason in zip(*(column.to_pylist() for column in table.columns), strict=True):
        error, message = reason
        counts[error, message] += 1
        if len(known := examples.setdefault((error, message), [])) < _EXAMPLES:
            known.append(name)
    return [FailureGroup(*why, count, examples[why]) for why, count in counts.most_common()]


def _connection(store: Path, name: str) -> ConnectionFacts:
    folder = store / "connections" / name
    connection, training, problem = None, [], ""
    try:
        connection = load_connection(folder)
        if (folder / TRAINING_LOG).exists():
            training = read_training(folder / TRAINING_LOG)
    except CmcrError as error:
        problem = error.what
    found = [
        (place, [task for task in TASKS if (place / f"{task}.json").exists()])
        for place in sorted((store / "results" / name).glob("*"))
    ]
    found.sort(key=lambda one: [TASKS.index(task) for task in one[1]])  # retrieval first
    evaluations = [
        _evaluation(task, place / f"{task}.json") for place, tasks in found for task in tasks
    ]
    return ConnectionFacts(name, connection, training, evaluations, problem)


def _evaluation(task: str, path: Path) -> Evaluation:
    try:
        read = read_results(path)
        return Evaluation(task, path.parent, read["results"], inputs=read["inputs"])
    except CmcrError as error:
        return Evaluation(task, path.parent, [], error.what)
