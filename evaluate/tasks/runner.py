"""Results that are computed once: what they were made from, and the models they compare.

inputs = connection_inputs(store, path, connection) | {"sounds": dataset_input(sounds)}
done = evaluate_once(folder, "localization.json", inputs, compute)   # compute() if they changed
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmcr.connect import Connection, baselines
from cmcr.embeddings import Key, list_datasets
from cmcr.errors import StoreError
from cmcr.evaluate.results import Row, read_results, write_results
from cmcr.files import sha256_file

Inputs = dict[str, Any]

_RECORD = "config.json"
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


def results_folder(store: Path, path: Path, query: Key, gallery: Key) -> Path:
    """STORE/results/CONNECTION/SPACE_MODALITY_DATASET--SPACE_MODALITY_DATASET."""
    names = (f"{key.space}_{key.modality}_{key.dataset}" for key in (query, gallery))
    return store / "results" / path.resolve().name / "--".join(names)


def evaluate_once(
    folder: Path,
    name: str,
    inputs: Inputs,
    compute: Callable[[], tuple[list[Row], list[str]]],
) -> Evaluated:
    """The rows in FOLDER/NAME if they were made from `inputs`, else those that `compute` gives.

    `compute` gives the rows and the names of the files that it wrote into `folder`.
    """
    try:
        saved = read_results(folder / name)
    except StoreError:
        saved = None
    if (
        saved is not None
        and saved["inputs"] == inputs
        and all((folder / file).exists() for file in saved["files"])
    ):
        return Evaluated(folder, saved["results"], fresh=False)
    folder.mkdir(parents=True, exist_ok=True)
    rows, files = compute()
    write_results(folder / name, rows, inputs, files)
    return Evaluated(folder, rows, fresh=True)


def connection_inputs(store: Path, path: Path, connection: Connection) -> Inputs:
    """The state of the connection in the folder `path`, and of what closed forms are made from."""
    used = {name for space in connection.record.spaces for name in space.datasets}
    folders = [key.folder(store) for key in list_datasets(store) if str(key) in used]
    return {
        "connection": sha256_file(path / _RECORD),
        "closed_forms": {
            folder.relative_to(store).as_posix(): sha256_file(folder / _MANIFEST)
            for folder in folders
            if (folder / _MANIFEST).exists()
        },
    }


def models_for(store: Path, connection: Connection, keys: Sequence[Key]) -> dict[str, Connection]:
    """The closed forms that can project `keys`, by name, and last the connection itself.

    Those that are fitted need what the connection was made from to be known, and in the store.
    """
    name = connection.model_name
    closed_forms = {
        other: model
        for other, model in baselines(store, connection.record).items()
        if other != name and all(model.knows(key.space, key.modality) for key in keys)
    }
    return {**closed_forms, name: connection}
