"""`cmcr connect`: from a store and a config to a connection on disk.

done = connect(store, config, name="clip-clap", device="cuda")
done.path, done.fresh, done.record.pairs
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cmcr.connect.config import ConnectConfig, read_config
from cmcr.connect.connection.chain import Chain
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.load import chain_content, load_connection, load_pair
from cmcr.connect.connection.record import CARD, CONFIG, MODEL, Record, read_record
from cmcr.connect.distributed import process_group, rank, wait_for_all
from cmcr.connect.methods.auto import METHODS, choose, read_methods
from cmcr.connect.methods.problem import pose
from cmcr.connect.methods.solve import make
from cmcr.connect.project import project_store
from cmcr.connect.replace import NameTakenError, differences, refuse, standing, version_difference
from cmcr.connect.spaces.datasets import _memory, find_bridge, open_spaces
from cmcr.connect.swap import NEW, current, settle, take_place
from cmcr.connect.training.checkpoint import CHECKPOINT
from cmcr.connect.training.log import TRAINING_LOG
from cmcr.embeddings import Key
from cmcr.embeddings.verify import Health, measure
from cmcr.errors import StoreError, UsageError
from cmcr.files import locked


@dataclass(frozen=True)
class Connected:
    """Where a connection lies, what it is, and whether this call made it."""

    path: Path
    record: Record = field(repr=False)
    fresh: bool  # False: it was there already, made from the same config and datasets
    instead: tuple[str, ...] = ()  # how the one differed that it took the place of
    # Of each dataset with two rows or more:
    health: Mapping[Key, Health] = field(default_factory=dict, repr=False)

    @property
    def methods(self) -> dict[str, dict[str, float]]:
        """The validation of each method that `auto` compared; empty where one was named."""
        return read_methods(self.path)

    def __str__(self) -> str:
        first, second = self.record.spaces
        pairs = f"{self.record.pairs:,} {first.bridge} pairs"
        if any(self.record.unmatched):
            pairs += " ({:,} and {:,} rows without partner)".format(*self.record.unmatched)
        memory = ", ".join(
            f"{space.memory or 'no'} memory of {space.name}" for space in (first, second)
        )
        state = "connected" if self.fresh else "up to date"
        if self.instead:
            state += f" anew ({'; '.join(self.instead)})"
        return (
            f"{state}: {first.name} and {second.name} by {self.record.model} "
            f"from {pairs}, {memory}: {self.path}"
        )


def connect(
    store: Path,
    config: ConnectConfig,
    *,
    name: str,
    out: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    replace: bool = False,
    opened: Callable[[Mapping[Key, Health]], None] | None = None,
) -> Connected:
    """Make the connection `name` in STORE/connections, or in the folder `out`.

    One that is up to date is left as it is, one that another process is making is waited for,
    and one that was interrupted goes on. Another one of that name is refused, unless `replace` it
    is: it is kept until the new one is finished. With `tensorboard` the curves also go to
    FOLDER/tensorboard. `opened` is told how well each dataset's embeddings tell its rows apart,
    before anything is trained. Raises UsageError for a dataset that is not in the store or a name
    that another connection has, StoreError for a damaged dataset, MismatchError for spaces that
    have nothing in common, CmcrError for a loss that is not finite.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a connection", cure="use a plain file name")
    folder = out or store / "connections" / name
    spaces = open_spaces(store, config)
    health = {
        dataset.key: found
        for space in spaces
        for dataset in space.datasets
        if (found := measure(dataset)) is not None
    }
    with process_group(torch.device(device)), alone(folder):
        if opened is not None and rank() == 0:
            opened(health)
        others = differences(folder, config, spaces)
        if not replace:
            refuse(folder, others)
        place = folder / NEW if others else folder
        record = None if others else _sound(folder)
        fresh = record is None
        wait_for_all()
        if record is None:
            if rank() == 0:
                _clear(place)
            problem = pose(config, store, spaces, device)
            if config.method == "auto":
                with_curves = partial(make, tensorboard=tensorboard)
                connection = choose(config, problem, place, device, with_curves)
            else:
                connection = make(config, problem, place, device, tensorboard)
            if rank() == 0:
                connection.save(place)
            record = connection.record
        if rank() == 0:
            (place / CHECKPOINT).unlink(missing_ok=True)
            if others:
                take_place(folder)
        wait_for_all()
    return Connected(folder, record, fresh, tuple(others), health)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; of processes that train together the first holds it for all.

    What a killed process began to replace is finished first.
    """
    if rank() > 0:
        wait_for_all()
        yield
        return
    with locked(folder / ".lock", wait=True):
        settle(folder)
        wait_for_all()
        yield


def _sound(folder: Path) -> Record | None:
    """The record of the connection in `folder`; None where it is unfinished or damaged."""
    try:
        return load_connection(folder).record
    except StoreError:
        return None


def _clear(folder: Path) -> None:
    """Take away an older connection and what a killed process left, but not the checkpoint."""
    for name in (CONFIG, MODEL, CARD, TRAINING_LOG, METHODS, CHECKPOINT):
        for unfinished in folder.glob(f".{name}.*"):  # as `cmcr.files.replacing` names them
            unfinished.unlink(missing_ok=True)
    for name in (CONFIG, TRAINING_LOG, METHODS):
        (folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Chained:
    """Where a chain lies, what it is, and whether a link of it was made by this call."""

    path: Path
    record: Record = field(repr=False)
    fresh: bool
    bridges: tuple[str, ...]  # what each link was made from
    methods: dict[str, dict[str, float]]  # "LINK: MODEL" → validation, where `auto` compared
    instead: tuple[str, ...] = ()  # how what it took the place of differed

    def __str__(self) -> str:
        names = " and ".join(space.name for space in self.record.spaces)
        state = "connected" if self.fresh else "up to date"
        if self.instead:
            state += f" anew ({'; '.join(self.instead)})"
        return f"{state}: {names} by {self.record.model}, {'; '.join(self.bridges)}: {self.path}"


@dataclass(frozen=True)
class Plan:
    """What is to be made, wherever it lies until it is finished."""

    store: Path
    spaces: tuple[str, ...]
    settings: Mapping[str, Any]
    name: str
    device: str
    tensorboard: bool
    opened: Callable[[Mapping[Key, Health]], None] | None


def connect_chain(
    store: Path,
    spaces: Sequence[str],
    settings: Mapping[str, Any],
    *,
    name: str,
    out: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    replace: bool = False,
    opened: Callable[[Mapping[Key, Health]], None] | None = None,
) -> Chained:
    """Connect `spaces`, in this order, into one joint space.

    `settings` are fields of `ConnectConfig`; `train`, `via` and `memory` say which datasets and
    modality may be a bridge and what is a memory, for the links they fit. Without `train` all
    datasets are a bridge that two spaces have under one modality and name. Links that are up to
    date are left alone. Another chain or connection of that name is refused, unless `replace` it
    is, as a whole. Raises UsageError when nothing connects a space with those before it, and what
    `connect` raises.
    """
    if len(set(spaces)) < len(spaces):
        raise UsageError(f"a space is named twice: {', '.join(spaces)}")
    folder = out or store / "connections" / name
    plan = Plan(store, tuple(spaces), settings, name, device, tensorboard, opened)
    with process_group(torch.device(device)), alone(folder):
        try:
            refuse(folder, _differences(folder, spaces))
            unfinished = not (folder / CONFIG).exists()
            return _make(plan, folder, folder, replace=unfinished)
        except NameTakenError as taken:
            if not replace:
                raise
            made = _make(plan, folder, folder / NEW, replace=True)
            if rank() == 0:
                take_place(folder)
            wait_for_all()
            return dataclasses.replace(made, instead=taken.others)


def _differences(folder: Path, spaces: Sequence[str]) -> list[str]:
    """What tells the connection in `folder` from a chain of `spaces`; links tell of themselves."""
    others = version_difference(folder)
    there = standing(folder)
    if isinstance(there, Record):
        others.append(f"it is not a chain, but of {' and '.join(s.name for s in there.spaces)}")
    elif there and (old := _chained_spaces(folder)) not in ([], list(spaces)):
        others.append(f"spaces: {','.join(old)} → {','.join(spaces)}")
    return others


def _chained_spaces(folder: Path) -> list[str]:
    """The spaces of the chain in `folder` in their order; none where it is beyond reading."""
    try:
        links, joints = chain_content(current(folder))
        records = [read_record(current(folder) / link) for link in links]
    except StoreError:
        return []
    names = [space.name for record in records for space in record.spaces]
    return [name for name in names if name not in joints]


def _make(plan: Plan, folder: Path, place: Path, *, replace: bool) -> Chained:
    """Make the links in the folder `place`, and the chain of them, which is for `folder`."""
    store, spaces, settings = plan.store, plan.spaces, plan.settings
    links: list[Connection] = []
    joints: list[str] = []
    methods: dict[str, dict[str, float]] = {}
    bridges, fresh = [], False
    for number in range(1, len(spaces)):
        bridge = find_bridge(store, spaces[number], spaces[:number], settings)
        memory = _memory(store, bridge, spaces[number], settings)
        other = bridge.member
        if links:
            other = joints[-1]
            keys = [Key(bridge.member, bridge.via, dataset) for dataset in bridge.train]
            keys += [key for key in memory if key.space == bridge.member]
            so_far = Chain(links, joints)
            for _ in project_store(store, so_far, space=other, datasets=keys, index=None,
                                   called=lambda key: key.dataset):  # fmt: skip
                pass
            memory = [
                Key(other, key.modality, key.dataset) if key.space == bridge.member else key
                for key in memory
            ]
        pair = (bridge.member, spaces[number]) if number == 1 else (spaces[number], other)
        config = read_config(
            dict(settings)
            | {
                "spaces": pair,
                "via": bridge.via,
                "train": bridge.train,
                "memory": [str(key) for key in memory],
            }
        )
        made = connect(store, config, name=f"link-{number}", out=place / f"link-{number}",
                       device=plan.device, tensorboard=plan.tensorboard,
                       replace=replace, opened=plan.opened)  # fmt: skip
        fresh |= made.fresh
        methods |= {f"link-{number}: {model}": one for model, one in made.methods.items()}
        bridges.append(f"{spaces[number]} via {bridge.via} of {bridge.member}")
        links.append(load_pair(made.path))
        joints.append(f"{plan.name}.{number}-{made.record.model_sha256[:8]}")
    chain = Chain(links, joints)
    if rank() == 0 and (fresh or not (place / CONFIG).exists()):
        chain.save(place)
    wait_for_all()
    return Chained(folder, chain.record, fresh, tuple(bridges), methods)
