"""`cmcr project`: the embeddings of all spaces in the joint space, as one more space of the store.

    connection = load_connection(store / "connections" / "clip-clap")
    for projected in project_store(store, connection, space="clip-clap"): print(projected)

    clip/text:captions   ─▶  clip-clap/text:clip-captions     both spaces have text:captions
    clap/text:captions   ─▶  clip-clap/text:clap-captions
    clap/audio:esc10     ─▶  clip-clap/audio:esc10

Part k of a dataset becomes part k of its projection, with all columns. Where a dataset changed,
its projection is made anew and takes the place of the one before when it is finished. The space
counts as one, whichever encoder a dataset of it goes back to: what makes it is the connection.

With `hubness="nnn"` there is a column more for each space and modality that the connection has
rows of, `nnn_SPACE_MODALITY`: r of the item for queries of that kind, embeddings/search/hubness.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cmcr.connect.connection.base import JointSpace
from cmcr.connect.connection.record import library_versions
from cmcr.embeddings import (
    Dataset,
    Description,
    Key,
    build_index,
    identity,
    index_is_current,
    list_datasets,
    open_dataset,
)
from cmcr.embeddings.parts import part_metadata, write_part
from cmcr.embeddings.schema import MANIFEST, MODALITIES, read_manifest
from cmcr.embeddings.search.hubness import NNN, Bank, Hubness, correction, open_bank
from cmcr.embeddings.writer import (
    begin,
    begin_fresh,
    begun,
    claim,
    discard_fresh,
    finish,
    held,
    is_complete,
    put_in_place,
)
from cmcr.errors import MismatchError, UsageError
from cmcr.progress import progress


@dataclass(frozen=True)
class Projected:
    """A dataset, its projection, and whether this call made it."""

    source: Key
    dataset: Dataset
    fresh: bool  # False: it was there already, made by the same connection from the same rows

    def __str__(self) -> str:
        state = "projected" if self.fresh else "up to date"
        return f"{state}: {self.source} as {self.dataset.key}, {self.dataset.rows:,} rows"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "source": str(self.source),
            "dataset": str(self.dataset.key),
            "rows": self.dataset.rows,
            "dim": self.dataset.dim,
            "fresh": self.fresh,
        }


def project_store(
    store: Path,
    connection: JointSpace,
    *,
    space: str,
    datasets: Sequence[Key] = (),
    index: str | None = "Flat",
    called: Callable[[Key], str] | None = None,
    hubness: Hubness = "none",
) -> Iterator[Projected]:
    """Project `datasets`, or all of the connection's spaces, into `space`, one after another.

    Works on the connection's device, goes on where an earlier run stopped, and shares the parts
    with another process that does the same. A projection is called as its source; where the store
    has a dataset of that name and modality in both spaces, the name of its own goes in front;
    `called` gives other names. `index` is a FAISS factory string, None for no index.

    Before anything is written it raises UsageError for a connection that was never saved, a
    dataset that is not in the store or a modality that must be named; MismatchError for embeddings
    that the connection was not made for, or a `space` that holds something else; StoreError for
    damaged datasets.
    """
    encoder = _encoder(connection)
    there = list_datasets(store)
    spaces = {record.name for record in connection.record.spaces}
    wanted = datasets or [key for key in there if key.space in spaces]
    sources = [open_dataset(store, key) for key in wanted]
    if not sources:
        raise UsageError(
            f"there is nothing to project: no dataset of {' or '.join(sorted(spaces))}",
            where=store,
            fix="extract some, or name another --store",
        )
    for source in sources:
        connection.check(source.key.space, source.encoder_identity)
        connection.check_modality(source.key.space, source.key.modality)
    _refuse_another_space(store, space, encoder, there)
    named = Counter((key.modality, key.dataset) for key in there if key.space in spaces)
    for source in sources:
        key = source.key
        banks = _banks(store, connection, source) if hubness == NNN else {}
        twice = named[key.modality, key.dataset] > 1
        usual = f"{key.space}-{key.dataset}" if twice else key.dataset
        description = Description(
            space=space,
            modality=key.modality,
            dataset=called(key) if called else usual,
            dim=connection.joint_dim,
            precision=source.manifest.precision,
            part_rows=source.manifest.part_rows,
            columns=(*source.manifest.columns, *banks),
            numbers=(*source.manifest.numbers, *banks),
            encoder=encoder,
            source={
                "kind": "projection",
                "dataset": str(key),
                "fingerprint": source.fingerprint,
                "encoder_identity": source.encoder_identity,
                **({"banks": {name: bank.inputs for name, bank in banks.items()}} if banks else {}),
            },
        )
        fresh = _write(store, connection, source, description, banks)
        with held(store, description.key, alone=False):
            dataset = open_dataset(store, description.key)
            if index is not None and not index_is_current(dataset, index):
                build_index(dataset, index)
        yield Projected(key, dataset, fresh)


def _encoder(connection: JointSpace) -> dict[str, Any]:
    """What makes the space: the weights, and which of them which space and modality goes through.

    It says nothing of the encoders, so that all that one connection projects is one space.
    """
    record = connection.record
    if not record.model_sha256:
        raise UsageError("the connection was never saved", fix="connection.save(folder) first")
    decisive = {"name", "head", "centred", "turned", "whitened"}
    return {
        "encoder": record.model,
        "checkpoint_sha256": record.model_sha256,
        "spaces": [one.model_dump(mode="json", include=decisive) for one in record.spaces],
        "libraries": dict(library_versions()),
    }


def _refuse_another_space(
    store: Path, space: str, encoder: dict[str, Any], there: Sequence[Key]
) -> None:
    """Raise MismatchError when `space` has datasets that something else made."""
    for folder in (key.folder(store) for key in there if key.space == space):
        finished = (folder / MANIFEST).exists()
        if finished and identity(read_manifest(folder).encoder) != identity(encoder):
            raise MismatchError(
                f"the space {space} holds embeddings that were made by something else",
                where=folder,
                fix="give the projections another --space, or delete that one",
            )


def _banks(store: Path, connection: JointSpace, source: Dataset) -> dict[str, Bank]:
    """By the column that they make, the rows of each space and modality, none of `source`.

    Raises UsageError where there are none at all.
    """
    itself = [(source.key, source.table(["id"])["id"])]
    banks = {}
    problem: UsageError | None = None
    for space in connection.record.spaces:
        known = {Key.parse(name).modality for name in space.datasets}
        for modality in sorted(known.union(MODALITIES)):
            keys = connection.unpaired(space.name, modality)
            try:
                banks[f"{NNN}_{space.name}_{modality}"] = open_bank(store, keys, itself)
            except UsageError as error:
                problem = error
    if problem is not None and not banks:
        raise problem
    return banks


def _write(
    store: Path,
    connection: JointSpace,
    source: Dataset,
    description: Description,
    banks: Mapping[str, Bank],
) -> bool:
    """Make the projection, or make it anew where its source changed; False where it was there."""
    key = description.key
    folder = key.folder(store)
    with held(store, key, alone=False):
        if not _is_of_before(folder, description):
            return _write_missing(store, connection, source, description, banks)
    with held(store, key, alone=True):
        if not _is_of_before(folder, description):  # another process did it
            return _write_missing(store, connection, source, description, banks)
        place = begin_fresh(store, key)
        there = begun(key.folder(place))
        if there is not None and there.identity != description.identity:
            discard_fresh(store, key)
            begin_fresh(store, key)
        _write_missing(place, connection, source, description, banks)
        put_in_place(store, key)
    return True


def _is_of_before(folder: Path, description: Description) -> bool:
    """Whether the projection in `folder` is by the same connection of an earlier state of it."""
    there = begun(folder)
    return (
        there is not None
        and there.identity != description.identity
        and identity(there.encoder) == identity(description.encoder)
        and there.source.get("dataset") == description.source["dataset"]
    )


def _write_missing(
    store: Path,
    connection: JointSpace,
    source: Dataset,
    description: Description,
    banks: Mapping[str, Bank],
) -> bool:
    """Write the parts that are not there yet, then the manifest; False where none was missing."""
    folder = begin(store, description)
    if is_complete(folder):
        return False
    parts = len(source.manifest.parts)
    with progress(f"project {source.key}", source.rows, "rows") as advance:
        for wait in (False, True):  # first the parts that nobody has, then what others gave up
            for number, block in enumerate(source.parts()):
                with claim(folder, number, wait=wait) as mine:
                    if mine:
                        _write_part(folder, connection, source, description, banks, number, block)
                        advance(len(block))
    finish(folder, description, parts)
    return True


def _write_part(
    folder: Path,
    connection: JointSpace,
    source: Dataset,
    description: Description,
    banks: Mapping[str, Bank],
    number: int,
    block: np.ndarray,
) -> None:
    path = source.folder / source.manifest.parts[number].name
    others = [name for name in pq.read_schema(path).names if name != "embedding"]
    columns = pq.read_table(path, columns=others, partitioning=None).to_pydict()
    failures = (part_metadata(path) or {}).get("failures", [])
    joint = connection.project(source.key.space, block, source.key.modality).cpu()  # (rows, joint)
    for name, bank in banks.items():
        columns[name] = correction(joint, bank.blocks(connection.project)).tolist()
    write_part(folder, description, number, columns, joint.numpy(), failures)
