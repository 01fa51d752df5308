"""`cmcr upgrade STORE`: what each dataset and connection is written in, and the old made new.

    for found in upgrade_store(store): print(found.name, found.format, found.state)

Datasets have had one format. Connections of format 1 say less than those of format 2 and have the
same weights, so their record is written anew (docs/formats.md says what differs).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.load import load_connection
from cmcr.connect.connection.model_card import model_card
from cmcr.connect.connection.record import (
    CARD,
    CONFIG,
    FORMAT,
    REMAKE,
    Record,
    SpaceRecord,
    current,
)
from cmcr.connect.make.replace import settle
from cmcr.embeddings import check_store, list_datasets
from cmcr.embeddings.schema import MANIFEST, SCHEMA_VERSION, read_manifest
from cmcr.errors import CmcrError, StoreError, VersionError
from cmcr.files import locked, write_text

State = Literal["current", "upgraded", "unfinished", "newer", "damaged"]


class Found(NamedTuple):
    """A dataset or a connection; `format` is what it was written in, None where nothing says."""

    kind: Literal["dataset", "connection"]
    name: str
    format: int | None
    state: State
    problem: CmcrError | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do about it."""
        return self.problem is None


def upgrade_store(store: Path) -> Iterator[Found]:
    """Look at all that `store` holds, and bring what is older to the format of today.

    What is damaged or newer is left alone and stops nothing. Raises UsageError for a folder that
    is no store.
    """
    check_store(store)
    for key in list_datasets(store):
        yield _dataset(str(key), key.folder(store))
    for record in sorted(store.glob(f"connections/*/{CONFIG}")):
        yield upgrade_connection(record.parent)


def upgrade_connection(folder: Path) -> Found:
    """Bring the connection in `folder` to today's format, if it is older and can be."""
    with locked(folder / ".lock", wait=True):
        settle(folder)
        found = _format(folder / CONFIG)
        state: State = "current"
        try:
            if found is not None and found < FORMAT:
                record = _upgraded(folder)
                write_text(folder / CARD, model_card(record))
                write_text(folder / CONFIG, record.model_dump_json(indent=2) + "\n")
                state = "upgraded"
            load_connection(folder)
        except CmcrError as error:
            return Found("connection", folder.name, found, _state(error), error)
    return Found("connection", folder.name, found, state)


def _dataset(name: str, folder: Path) -> Found:
    if not (folder / MANIFEST).exists():
        return Found("dataset", name, None, "unfinished")
    try:
        read_manifest(folder)
    except CmcrError as error:
        found = error.found if isinstance(error, VersionError) else None
        return Found("dataset", name, found, _state(error), error)
    return Found("dataset", name, SCHEMA_VERSION, "current")


def _state(error: CmcrError) -> State:
    return "newer" if isinstance(error, VersionError) and error.newer else "damaged"


def _format(record: Path) -> int | None:
    try:
        content = json.loads(record.read_bytes())
    except ValueError:
        return None
    found = content.get("format") if isinstance(content, dict) else None
    return found if isinstance(found, int) else None


def _upgraded(folder: Path) -> Record:
    """The record of a connection of format 1, as format 2 has it: nothing was held out then."""
    try:
        old: dict[str, Any] = json.loads((current(folder) / CONFIG).read_bytes())
        then = {"validation": 0.0, "centric": ("bridge",)}
        config = ConnectConfig.model_validate(old["config"] | then)
        kept = ("joint_dim", "pairs", "unmatched", "device", "versions", "model_sha256")
        return Record.model_validate(
            {name: old[name] for name in kept}
            | {
                "model": config.model_name,
                "via": config.via,
                "config": config,
                "requested": config,
                "spaces": tuple(
                    _space(space, config, number) for number, space in enumerate(old["spaces"])
                ),
            }
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise StoreError(
            f"the connection's record of format 1 cannot be read: {str(error).splitlines()[0]}",
            where=folder / CONFIG,
            fix=REMAKE,
        ) from None


def _space(old: dict[str, Any], config: ConnectConfig, number: int) -> SpaceRecord:
    modalities = (old["bridge"], old["memory"]) if config.centre else ()
    centred = tuple(modality for modality in modalities if modality is not None)
    return SpaceRecord.model_validate(old | {"head": config.heads[number], "centred": centred})
