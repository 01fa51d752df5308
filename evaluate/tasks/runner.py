"""What every task goes through: open, look whether it is up to date, compute, write.

    def evaluate_something(store, path, query, gallery):
        def pose(opened: Opened) -> Task:
            return Task("something", {"version": 1, ...}, compute)

        return run_task(store, path, query, gallery, pose)

A task says its inputs, its rows and its files. Connection, training log, closed forms, progress
and the folder of the results are looked after here.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cmcr.connect import TRAINING_LOG, JointSpace, baselines, load_connection
from cmcr.embeddings import Dataset, Key, list_datasets, open_dataset
from cmcr.embeddings.schema import MANIFEST, canonical_json
from cmcr.errors import StoreError
from cmcr.evaluate.figures.style import saved_later
from cmcr.evaluate.results import (
    Filters,
    Inputs,
    Row,
    filters_line,
    filters_of,
    read_results,
    write_results,
)
from cmcr.files import sha256_file
from cmcr.progress import progress

RECORD = "config.json"
ROWS = 3  # what a row of results says; older ones are made again
_LONGEST_NAME = 40  # of the readable part of a filter's


@dataclass(frozen=True)
class Evaluated:
    """Where the results lie, the rows, and whether this call computed them."""

    folder: Path
    rows: list[Row]
    fresh: bool

    def __str__(self) -> str:
        state = "evaluated" if self.fresh else "up to date"
        return f"{state}: {self.rows[0]['query']} and {self.rows[0]['gallery']}: {self.folder}"


@dataclass(frozen=True)
class Opened:
    """A connection of the store, and two datasets whose encoders it was made for."""

    store: Path
    path: Path  # the folder of the connection
    connection: JointSpace
    query: Dataset
    gallery: Dataset

    @property
    def fingerprint(self) -> str:
        """Hex digest of all that the connection is."""
        return sha256_file(self.path / RECORD)

    @property
    def training_log(self) -> Path | None:
        """Where the connection's training is written down; None where it was not trained."""
        log = self.path / TRAINING_LOG
        return log if log.exists() else None


@dataclass(frozen=True)
class Models:
    """The connection that is evaluated, and the closed forms that it is compared with."""

    connection: JointSpace
    baselines: Mapping[str, JointSpace]

    @property
    def name(self) -> str:
        """How the connection is called in a table."""
        return self.connection.model_name

    @property
    def all(self) -> dict[str, JointSpace]:
        """Every model by its name, in the order of a table."""
        return {**self.baselines, self.name: self.connection}


@dataclass(frozen=True)
class Task:
    """What is to be computed, and when it has to be computed again.

    `inputs` decide the rows, beside the connection and the closed forms; what of them chose among
    the rows of the datasets (`filters_of`) names the folder too. `compute` gives the rows and the
    names of the files that it wrote into the folder.
    """

    name: str
    inputs: Inputs
    compute: Callable[[Models, Path], tuple[list[Row], list[str]]]
    with_baselines: bool = True


def run_task(
    store: Path,
    path: Path,
    query: Key,
    gallery: Key,
    pose: Callable[[Opened], Task],
    out: Path | None = None,
) -> Evaluated:
    """The rows of the task that `pose` gives, those in FOLDER/NAME.json if its inputs are the same.

    FOLDER is `out`, else `results_folder`. Raises UsageError for a dataset that is not there,
    MismatchError for embeddings that the connection in `path` was not made for, StoreError for
    damaged files.
    """
    datasets = [open_dataset(store, key) for key in (query, gallery)]
    opened = Opened(store, path, load_connection(path), *datasets)
    for dataset in datasets:
        opened.connection.check(dataset.key.space, dataset.encoder_identity)
    task = pose(opened)
    inputs: Inputs = {"connection": opened.fingerprint, "rows": ROWS}
    if task.with_baselines:
        inputs |= {"closed_forms": _closed_form_inputs(opened)}
    inputs |= task.inputs
    folder = out or results_folder(store, path, query, gallery, filters_of(inputs))
    file = folder / f"{task.name}.json"
    try:
        saved = read_results(file)
    except StoreError:
        saved = None
    if (
        saved is not None
        and saved["inputs"] == inputs
        and all((folder / name).exists() for name in saved["files"])
    ):
        return Evaluated(folder, saved["results"], fresh=False)
    folder.mkdir(parents=True, exist_ok=True)
    models = Models(opened.connection, _baselines(opened) if task.with_baselines else {})
    with saved_later() as pictures:
        rows, files = task.compute(models, folder)
    for picture in pictures:  # else one of other numbers would count as drawn if this ends early
        picture.unlink(missing_ok=True)
    write_results(file, rows, inputs, files)
    for save in pictures.values():  # numbers first: what is not drawn is made the next time
        save()
    return Evaluated(folder, rows, fresh=True)


def each(models: Mapping[str, JointSpace]) -> Iterator[tuple[str, JointSpace]]:
    """The models by their names, one after another, with progress."""
    with progress("evaluate", total=len(models), unit="models") as advance:
        for name, model in models.items():
            yield name, model
            advance(1)


def results_folder(
    store: Path, path: Path, query: Key, gallery: Key, filters: Filters | None = None
) -> Path:
    """STORE/results/CONNECTION/SPACE_MODALITY_DATASET--SPACE_MODALITY_DATASET[--FILTERS].

    FILTERS are words that tell what was chosen, and a digest of all of it. They have no "=", which
    would make the folder a column to whoever reads Parquet in it.
    """
    parts = [f"{key.space}_{key.modality}_{key.dataset}" for key in (query, gallery)]
    if filters:
        words = re.sub(r"[^A-Za-z0-9.]+", "_", filters_line(filters))[:_LONGEST_NAME].strip("_")
        digest = hashlib.sha256(canonical_json(filters).encode()).hexdigest()[:8]
        parts.append(f"{words}-{digest}")
    return store / "results" / path.resolve().name / "--".join(parts)


def _closed_form_inputs(opened: Opened) -> dict[str, str]:
    """The state of each dataset that closed forms are fitted on."""
    used = _used(opened)
    folders = [key.folder(opened.store) for key in list_datasets(opened.store) if str(key) in used]
    return {
        folder.relative_to(opened.store).as_posix(): sha256_file(folder / MANIFEST)
        for folder in folders
        if (folder / MANIFEST).exists()
    }


def _baselines(opened: Opened) -> dict[str, JointSpace]:
    """The closed forms that can project both datasets, by name.

    Those that are fitted need what the connection was made from to be known, and in the store.
    """
    connection, keys = opened.connection, (opened.query.key, opened.gallery.key)
    return {
        name: model
        for name, model in baselines(opened.store, connection.record).items()
        if name != connection.model_name
        and all(model.knows(key.space, key.modality) for key in keys)
    }


def _used(opened: Opened) -> set[str]:
    """The datasets that the connection was made from."""
    return {name for space in opened.connection.record.spaces for name in space.datasets}
