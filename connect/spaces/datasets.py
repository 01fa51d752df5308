"""What a connection is made from: the datasets of both spaces, and the bridge pairs in them.

first, second = open_spaces(store, config)
pairs = join(first, second)          # rows of the same id, in both spaces
pairs.first[10:20]                   # (10, D1), read from the shards
for block in first.memory_blocks():  # (rows, D), the other modality of the space
    ...
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cmcr.connect.config import ConnectConfig
from cmcr.embeddings import Dataset, Key, Modality, list_datasets, open_dataset
from cmcr.errors import MismatchError, UsageError, near


@dataclass(frozen=True)
class SpaceData:
    """The opened datasets of one space: the bridge, and the other modality if it has one."""

    name: str
    bridge: tuple[Dataset, ...]
    memory: tuple[Dataset, ...]

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Bridge first, then memory."""
        return self.bridge + self.memory

    @property
    def encoder_identity(self) -> str:
        """Which encoder, checkpoint and preprocessing made every vector here."""
        return self.bridge[0].encoder_identity

    @property
    def dim(self) -> int:
        """D of the space."""
        return self.bridge[0].dim

    @property
    def bridge_modality(self) -> Modality:
        """The modality that both spaces have."""
        return self.bridge[0].key.modality

    @property
    def memory_modality(self) -> Modality | None:
        """The modality of the memory; None for a space that has no memory."""
        return self.memory[0].key.modality if self.memory else None

    def memory_blocks(self) -> Iterator[np.ndarray]:
        """The memory, streamed in blocks of (rows, D)."""
        for dataset in self.memory:
            yield from dataset.batches()


Spaces = tuple[SpaceData, SpaceData]


def open_spaces(store: Path, config: ConnectConfig) -> Spaces:
    """Open every dataset that `config` names.

    Raises UsageError for a dataset that is not in the store or a memory that could be two
    modalities, StoreError for a damaged one, MismatchError for one space with two encoders.
    """
    there = list_datasets(store)
    memory = {space: _memory_keys(store, there, config, space) for space in config.spaces}
    first, second = (_open_space(store, config, name, memory[name]) for name in config.spaces)
    for entry in config.memory:
        if not any(_matches(entry, key) for keys in memory.values() for key in keys):
            raise UsageError(
                f"the memory dataset {entry!r} is not in {' or '.join(config.spaces)} "
                f"under another modality than the bridge, {config.via}",
                where=store,
                cure=near(entry, [*map(str, there), *(key.dataset for key in there)]),
            )
    return first, second


def _memory_keys(store: Path, there: list[Key], config: ConnectConfig, space: str) -> list[Key]:
    keys = [
        key
        for key in there
        if key.space == space
        and key.modality != config.via
        and any(_matches(entry, key) for entry in config.memory)
    ]
    if len({key.modality for key in keys}) > 1:
        raise UsageError(
            f"the memory of {space} could be of two modalities: {', '.join(map(str, keys))}",
            where=store,
            cure="name the one to use in full, as SPACE/MODALITY:DATASET",
        )
    return keys


def _matches(entry: str, key: Key) -> bool:
    return entry in (key.dataset, str(key))


def _open_space(store: Path, config: ConnectConfig, name: str, memory: list[Key]) -> SpaceData:
    bridge = [Key(name, config.via, dataset) for dataset in config.train]
    space = SpaceData(
        name,
        tuple(open_dataset(store, key) for key in bridge),
        tuple(open_dataset(store, key) for key in memory),
    )
    for dataset in space.datasets:
        if (dataset.encoder_identity, dataset.dim) != (space.encoder_identity, space.dim):
            raise MismatchError(
                f"{space.bridge[0].key} and {dataset.key} were made by two different encoders",
                where=dataset.folder,
                cure="extract both with the same encoder, checkpoint and preprocessing",
            )
    return space


@dataclass(frozen=True)
class Bridge:
    """What connects a space with one of those before it."""

    member: str  # the space that has it already
    via: Modality
    train: tuple[str, ...]
    rows: int


def find_bridge(
    store: Path, space: str, members: Sequence[str], settings: Mapping[str, Any]
) -> Bridge:
    """What connects `space` with one of `members`: the modality with the most rows in common.

    Raises UsageError when there is nothing.
    """
    there = set(list_datasets(store))
    shared: dict[tuple[str, Modality], list[str]] = {}
    for key in sorted(there):
        if (
            key.space in members
            and Key(space, key.modality, key.dataset) in there
            and settings.get("via") in (None, key.modality)
            and key.dataset in (settings.get("train") or [key.dataset])
        ):
            shared.setdefault((key.space, key.modality), []).append(key.dataset)
    if not shared:
        raise UsageError(
            f"nothing connects {space} with {' or '.join(members)}: no dataset of one modality "
            "and name is in both",
            where=store,
            cure=near(space, [*sorted({key.space for key in there}), *map(str, sorted(there))]),
        )
    bridges = [
        Bridge(member, via, tuple(datasets), _dataset_rows(store, member, via, datasets))
        for (member, via), datasets in shared.items()
    ]
    return max(bridges, key=lambda bridge: bridge.rows)


def _dataset_rows(store: Path, space: str, via: Modality, datasets: Sequence[str]) -> int:
    return sum(open_dataset(store, Key(space, via, dataset)).rows for dataset in datasets)


def _memory(store: Path, bridge: Bridge, space: str, settings: Mapping[str, Any]) -> list[Key]:
    """The datasets of `memory` that are a memory for this link."""
    return [
        key
        for key in list_datasets(store)
        if key.space in (bridge.member, space)
        and key.modality != bridge.via
        and {key.dataset, str(key)} & set(settings.get("memory") or ())
    ]
