"""More than two spaces in one: each next one is connected with the joint space of those before.

    done = connect_chain(store, ["clap", "clip", "ulip"], {"method": "c-mcr"}, name="all")
    chain = load_connection(done.path)
    chain.project("clap", embeddings, "audio")      # through link 1, then through link 2

A link is an ordinary connection. Its bridge is a modality that the next space shares with one of
those connected already: the datasets that both have embedded. The joint space so far is written
into the store for it, as NAME.1-DIGEST, NAME.2-DIGEST, a space like any other.

NAME/config.json       the links in their order; written last
NAME/link-1/, link-2/  connections
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cmcr.connect.config import read_config
from cmcr.connect.connection import (
    CONFIG,
    REMAKE,
    Connection,
    load_connection,
    read_content,
    read_record,
)
from cmcr.connect.parallel import process_group, rank, wait_for_all
from cmcr.connect.project import project_store
from cmcr.connect.record import FORMAT, Record, SpaceRecord
from cmcr.connect.replace import NameTakenError, refuse, standing, version_difference
from cmcr.connect.run import alone, connect
from cmcr.connect.swap import NEW, current, take_place
from cmcr.embeddings import Key, Modality, list_datasets, open_dataset
from cmcr.embeddings.health import Health
from cmcr.errors import StoreError, UsageError, near
from cmcr.files import write_json


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


@dataclass(frozen=True)
class Bridge:
    """What connects a space with one of those before it."""

    member: str  # the space that has it already
    via: Modality
    train: tuple[str, ...]
    rows: int


class Chain(Connection):
    """Several connections, one after another. `joints` are the names of the spaces between."""

    def __init__(self, links: Sequence[Connection], joints: Sequence[str]) -> None:
        self.links, self.joints = list(links), list(joints)
        last = links[-1].record
        spaces: dict[str, SpaceRecord] = {
            space.name: space
            for link in links
            for space in link.record.spaces
            if space.name not in joints
        }
        self.record = Record(
            model=last.model,
            via=None,
            config=None,
            spaces=tuple(spaces.values()),
            joint_dim=last.joint_dim,
            validation=last.validation,
            model_sha256=last.model_sha256,
        )
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "Chain":
        """Move to `device`; returns itself."""
        self.device = torch.device(device)
        for link in self.links:
            link.to(device)
        return self

    def knows(self, space: str, modality: Modality) -> bool:
        """Whether the first link that `space` goes through can project `modality`."""
        return any(link.knows(space, modality) for link in self.links)

    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for."""
        self._first(space).check(space, encoder_identity)

    def check_modality(self, space: str, modality: Modality | None) -> None:
        """Raise UsageError or MismatchError for a modality that cannot be projected."""
        self._first(space).check_modality(space, modality)

    def joined(self, space: str, block: Tensor, modality: Modality | None) -> Tensor:
        """Embeddings of `space`, (n, D), in the joint space of all, (n, joint), unit norm.

        A joint space on its way through a later link is treated as its bridge modality is where
        that link does not know `modality`: the links before have closed the gap between them.
        """
        first = self.links.index(self._first(space))
        joined = self.links[first].joined(space, block, modality)  # (n, joint)
        for link, joint in zip(self.links[first + 1 :], self.joints[first:], strict=False):
            bridge = next(side.bridge for side in link.record.spaces if side.name == joint)
            known = modality is not None and link.knows(joint, modality)
            joined = link.joined(joint, joined, modality if known else bridge)
        return joined

    def save(self, path: Path) -> None:
        """Write the links into folders of `path`, and their order last."""
        (path / CONFIG).unlink(missing_ok=True)
        for number, link in enumerate(self.links, 1):
            if not (path / f"link-{number}" / CONFIG).exists():
                link.save(path / f"link-{number}")
        names = [f"link-{number}" for number in range(1, len(self.links) + 1)]
        write_json(path / CONFIG, {"format": FORMAT, "links": names, "joints": self.joints})

    def _first(self, space: str) -> Connection:
        for link in self.links:
            if space not in self.joints and any(side.name == space for side in link.record.spaces):
                return link
        self._side(space)  # raises what names the spaces that there are
        raise AssertionError


def load_chain(path: Path) -> Chain:
    """Read the chain in the folder `path`. Raises StoreError where a link is missing or damaged."""
    path = current(path)
    links, joints = _content(path)
    return Chain([load_connection(path / name) for name in links], joints)


def _content(path: Path) -> tuple[list[str], list[str]]:
    """The links of the chain in the folder `path`, and the joint spaces between them."""
    content = read_content(path)
    links, joints = content.get("links"), content.get("joints")
    for names in (links, joints):
        if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
            raise StoreError("the chain's record cannot be read", where=path / CONFIG, cure=REMAKE)
    assert links is not None
    assert joints is not None
    return links, joints


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
        links, joints = _content(current(folder))
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
        links.append(load_connection(made.path))
        joints.append(f"{plan.name}.{number}-{made.record.model_sha256[:8]}")
    chain = Chain(links, joints)
    if rank() == 0 and (fresh or not (place / CONFIG).exists()):
        chain.save(place)
    wait_for_all()
    return Chained(folder, chain.record, fresh, tuple(bridges), methods)


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
        Bridge(member, via, tuple(datasets), _rows(store, member, via, datasets))
        for (member, via), datasets in shared.items()
    ]
    return max(bridges, key=lambda bridge: bridge.rows)


def _rows(store: Path, space: str, via: Modality, datasets: Sequence[str]) -> int:
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
