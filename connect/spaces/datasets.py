"""The datasets of a store that a connection is made from: which are a bridge, which a memory.

first, second = open_spaces(store, ("clip", "clap"), "text", ["captions"], ["imagenet", "audioset"])
for block in first.memory_blocks():  # (rows, D), the other modality of the space
    ...
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmcr.embeddings import Dataset, Key, Modality, list_datasets, open_dataset
from cmcr.embeddings.upkeep.merge import origins
from cmcr.errors import MismatchError, UsageError, near


@dataclass(frozen=True)
class SpaceData:
    """The opened datasets of one space: the bridge, and the other modalities if it has any.

    The pseudo partners come from `memory`, which is of one modality. Of those in `others` it is
    only known where they lie and how they spread.
    """

    name: str
    bridge: tuple[Dataset, ...]
    memory: tuple[Dataset, ...]
    others: tuple[Dataset, ...] = ()
    pool: tuple[Dataset, ...] = ()  # of the bridge modality, pairs unknown

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """Bridge first, then memory, then what else there is; none of them twice."""
        found = {one.key: one for one in self.bridge + self.memory + self.others + self.pool}
        return tuple(found.values())

    @property
    def unpaired(self) -> Mapping[Modality, tuple[Dataset, ...]]:
        """The datasets of each modality but the bridge, the memory's first."""
        found: dict[Modality, tuple[Dataset, ...]] = {}
        for dataset in self.memory + self.others:
            found[dataset.key.modality] = (*found.get(dataset.key.modality, ()), dataset)
        return found

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
        yield from blocks(self.memory)


def blocks(datasets: Iterable[Dataset]) -> Iterator[np.ndarray]:
    """The rows of `datasets`, streamed in blocks of (rows, D)."""
    for dataset in datasets:
        yield from dataset.batches()


Spaces = tuple[SpaceData, SpaceData]


def open_spaces(
    store: Path,
    spaces: tuple[str, str],
    via: Modality,
    train: Sequence[str],
    memory: Sequence[str] = (),
    pool: Sequence[str] = (),
) -> Spaces:
    """Open the datasets `train` of the modality `via` in both spaces, and those of their memory.

    So too `pool`, of the modality `via`: none, or some of each space. An entry of `memory` and
    `pool` is DATASET or SPACE/MODALITY:DATASET. Without `train` the pools are the bridge. Raises
    UsageError for a dataset that is not in the store or an entry that could be two modalities,
    StoreError for a damaged one, MismatchError for one space with two encoders.
    """
    there = list_datasets(store)
    keys = {space: _memory_of(space, store, there, via, memory) for space in spaces}
    pools = {
        space: [key for key in there if (key.space, key.modality) == (space, via)
                and any(_matches(entry, key) for entry in pool)]
        for space in spaces
    }  # fmt: skip
    for entry in pool:
        if not any(_matches(entry, key) for found in pools.values() for key in found):
            raise UsageError(
                f"the pool {entry!r} is no dataset of {via} in {' or '.join(spaces)}",
                where=store,
                fix=near(entry, [str(key) for key in there if key.modality == via]),
            )
    if pool and not all(pools.values()):
        raise UsageError(
            f"the pools are of {' and '.join(space for space in spaces if pools[space])} alone",
            fix="name one of each space: --pool A/MODALITY:DATASET --pool B/MODALITY:DATASET",
        )
    first, second = (
        _open_space(store, space, via, train, keys[space], pools[space]) for space in spaces
    )
    for entry in memory:
        if not any(_matches(entry, key) for found in keys.values() for key in found):
            raise UsageError(
                f"the memory dataset {entry!r} is not in {' or '.join(spaces)} "
                f"under another modality than the bridge, {via}",
                where=store,
                fix=near(entry, [*map(str, there), *(key.dataset for key in there)]),
            )
    return first, second


def _memory_of(
    space: str, store: Path, there: Sequence[Key], via: Modality, memory: Sequence[str]
) -> list[Key]:
    """What the entries name in `space`: datasets of the modality that is named first, first."""
    able = [key for key in there if key.space == space and key.modality != via]
    order: dict[Modality, None] = {}
    for entry in memory:
        fitting = [key for key in able if _matches(entry, key)]
        if len(fitting) > 1:
            raise UsageError(
                f"the memory of {space} could be of two modalities: {', '.join(map(str, fitting))}",
                where=store,
                fix="name the one to use in full, as SPACE/MODALITY:DATASET, or both",
            )
        order.update(dict.fromkeys(key.modality for key in fitting))
    keys = [key for key in able if any(_matches(entry, key) for entry in memory)]
    return sorted(keys, key=lambda key: list(order).index(key.modality))


def _matches(entry: str, key: Key) -> bool:
    return entry in (key.dataset, str(key))


def _open_space(
    store: Path,
    name: str,
    via: Modality,
    train: Sequence[str],
    memory: Sequence[Key],
    pool: Sequence[Key],
) -> SpaceData:
    first = [key for key in memory if key.modality == memory[0].modality]
    bridge = [Key(name, via, dataset) for dataset in train] or pool
    space = SpaceData(
        name,
        tuple(open_dataset(store, key) for key in bridge),
        tuple(open_dataset(store, key) for key in first),
        tuple(open_dataset(store, key) for key in memory if key not in first),
        tuple(open_dataset(store, key) for key in pool),
    )
    for dataset in space.datasets:
        if (dataset.encoder_identity, dataset.dim) != (space.encoder_identity, space.dim):
            raise MismatchError(
                f"{space.bridge[0].key} and {dataset.key} were made by two different encoders",
                where=dataset.folder,
                fix="extract both with the same encoder, checkpoint and preprocessing",
            )
    return space


@dataclass(frozen=True)
class Bridge:
    """What connects a space with one of those before it."""

    member: str  # the space that has it already
    via: Modality
    train: tuple[str, ...]
    memory: tuple[Key, ...]  # of both spaces, under another modality


def find_bridge(
    store: Path,
    space: str,
    members: Sequence[str],
    *,
    via: Modality | None = None,
    train: Sequence[str] = (),
    memory: Sequence[str] = (),
) -> Bridge:
    """What connects `space` with one of `members`: the modality with the most rows in common.

    It is `via` alone where that is named, and of the datasets `train` where they are. Of datasets
    that were merged and what they were merged from the largest is taken, so that no item is two
    pairs. Raises UsageError when there is nothing.
    """
    there = list_datasets(store)
    shared: dict[tuple[str, Modality], list[Key]] = {}
    for key in sorted(there):
        if (
            key.space in members
            and Key(space, key.modality, key.dataset) in there
            and via in (None, key.modality)
            and key.dataset in (train or [key.dataset])
        ):
            shared.setdefault((key.space, key.modality), []).append(key)
    if not shared:
        raise UsageError(
            f"nothing connects {space} with {' or '.join(members)}: no dataset of one modality "
            "and name is in both",
            where=store,
            fix=near(space, [*sorted({key.space for key in there}), *map(str, sorted(there))]),
        )
    distinct = {one: _distinct(store, space, keys) for one, keys in shared.items()}
    rows = {one: sum(dataset.rows for dataset in found) for one, found in distinct.items()}
    member, modality = most = max(distinct, key=lambda one: rows[one])
    return Bridge(
        member,
        modality,
        tuple(sorted(dataset.key.dataset for dataset in distinct[most])),
        tuple(
            key
            for key in there
            if key.space in (member, space)
            and key.modality != modality
            and any(_matches(entry, key) for entry in memory)
        ),
    )


def _distinct(store: Path, space: str, keys: Sequence[Key]) -> list[Dataset]:
    """Those of `keys`, the largest first, of whose rows none was merged into one before."""
    datasets = [open_dataset(store, key) for key in keys]
    taken: list[Dataset] = []
    seen: set[str] = set()
    for dataset in sorted(datasets, key=lambda one: -one.rows):
        key = dataset.key
        partner = open_dataset(store, Key(space, key.modality, key.dataset), check=False)
        own = origins(dataset) | origins(partner)
        if own.isdisjoint(seen):
            taken.append(dataset)
            seen |= own
    return taken
