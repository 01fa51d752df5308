"""`cmcr connect` for more than two spaces: one connection after another, each a link of a chain.

done = connect_chain(store, ["clap", "clip", "ulip"], {"memory": ["esc10"]}, name="all")
done.path, done.fresh, done.bridges

Link 1 is made from the datasets of two spaces. For a later one the space that it shares a bridge
with is projected into the joint space of the links before, a space of the store of its own.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cmcr.connect.config import ConnectConfig, read_config
from cmcr.connect.connection.chain import Chain
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.load import chain_content, load_pair
from cmcr.connect.connection.record import CONFIG, Record, current, read_record
from cmcr.connect.distributed import process_group, rank, wait_for_all
from cmcr.connect.make.pair import Connected, Opened, alone, connect, no_more_threads_than_cores
from cmcr.connect.make.project import project_store
from cmcr.connect.make.replace import (
    NEW,
    NameTakenError,
    refuse,
    standing,
    take_place,
    version_difference,
)
from cmcr.connect.spaces.datasets import Bridge, find_bridge
from cmcr.embeddings import Key
from cmcr.embeddings.verify import Health
from cmcr.errors import StoreError, UsageError


@dataclass(frozen=True)
class Plan:
    """What is to be made, wherever it lies until it is finished."""

    store: Path
    spaces: tuple[str, ...]
    settings: Mapping[str, Any]
    name: str
    device: str
    tensorboard: bool
    opened: Opened | None


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
    opened: Opened | None = None,
) -> Connected:
    """Connect `spaces`, in this order, into one joint space.

    `settings` are fields of `ConnectConfig`; `train`, `via` and `memory` say which datasets and
    modality may be a bridge and what is a memory, for the links they fit. Without `train` all
    datasets are a bridge that two spaces have under one modality and name. Links that are up to
    date are left alone. Another chain or connection of that name is refused, unless `replace` it
    is, as a whole. `opened` is told of the datasets of `spaces` as `connect` tells it, link by
    link. Raises UsageError when nothing connects a space with those before it, and what `connect`
    raises.
    """
    if len(set(spaces)) < len(spaces):
        raise UsageError(f"a space is named twice: {', '.join(spaces)}")
    if settings.get("pool"):
        raise UsageError(
            "pools belong to two spaces, and a chain has more",
            fix="connect two with --pool, project them, and connect the joint space with the third",
        )
    folder = out or store / "connections" / name
    plan = Plan(store, tuple(spaces), settings, name, device, tensorboard, opened)
    with no_more_threads_than_cores(), process_group(torch.device(device)), alone(folder):
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


def _make(plan: Plan, folder: Path, place: Path, *, replace: bool) -> Connected:
    """Make the links in the folder `place`, and the chain of them, which is for `folder`."""

    def opened(health: Mapping[Key, Health]) -> None:
        if plan.opened is not None:
            plan.opened(_outer(health, plan.spaces))

    links: list[Connection] = []
    joints: list[str] = []
    methods: dict[str, Mapping[str, float]] = {}
    health: dict[Key, Health] = {}
    bridges, warnings, fresh = [], [], False
    for number, space in enumerate(plan.spaces[1:], 1):
        bridge = find_bridge(plan.store, space, plan.spaces[:number], **_chosen(plan.settings))
        if links:
            _project(plan.store, Chain(links, joints), bridge)
        made = connect(plan.store, _config(plan.settings, bridge, space, joints),
                       name=f"link-{number}", out=place / f"link-{number}",
                       device=plan.device, tensorboard=plan.tensorboard, replace=replace,
                       opened=opened)  # fmt: skip
        fresh |= made.fresh
        methods |= {f"link-{number}: {model}": one for model, one in made.methods.items()}
        warnings += [f"link-{number}: {told}" for told in made.warnings]
        health |= _outer(made.health, plan.spaces)
        bridges.append(f"{space} via {bridge.via} of {bridge.member}")
        links.append(load_pair(made.path))
        joints.append(f"{plan.name}.{number}-{made.record.model_sha256[:8]}")
    chain = Chain(links, joints)
    if rank() == 0 and (fresh or not (place / CONFIG).exists()):
        chain.save(place)
    wait_for_all()
    return Connected(folder, chain.record, fresh, methods, health, bridges=tuple(bridges),
                     warnings=tuple(warnings))  # fmt: skip


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `settings` say of the datasets that may be a bridge or a memory."""
    return {name: settings[name] for name in ("via", "train", "memory") if settings.get(name)}


def _project(store: Path, chain: Chain, bridge: Bridge) -> None:
    """Put what the new link needs of the spaces before into the joint space of `chain`."""
    keys = [Key(bridge.member, bridge.via, dataset) for dataset in bridge.train]
    keys += [key for key in bridge.memory if key.space == bridge.member]
    for _ in project_store(store, chain, space=chain.joints[-1], datasets=keys, index=None,
                           called=lambda key: key.dataset):  # fmt: skip
        pass


def _config(
    settings: Mapping[str, Any], bridge: Bridge, space: str, joints: Sequence[str]
) -> ConnectConfig:
    """The config of the link that takes in `space`; from the second on, into the joint space."""
    member = joints[-1] if joints else bridge.member
    memory = [
        Key(member, key.modality, key.dataset) if key.space == bridge.member else key
        for key in bridge.memory
    ]
    return read_config(
        dict(settings)
        | {
            "spaces": (space, member) if joints else (member, space),
            "via": bridge.via,
            "train": bridge.train,
            "memory": [str(key) for key in memory],
        }
    )


def _outer(health: Mapping[Key, Health], spaces: Sequence[str]) -> dict[Key, Health]:
    """That of the datasets of `spaces`; the joint spaces between them are not the user's."""
    return {key: found for key, found in health.items() if key.space in spaces}
