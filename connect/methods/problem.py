"""What a method is given: a config, and the two spaces, their pairs, and those that are held out.

problem = pose(store, config)      # opens the spaces; the rest follows when it is asked for
problem.differences(record)        # what tells an earlier connection from this one
problem.variant(method="ridge")    # the same data for another method
problem.score(projectors).scores   # {"hit_rate@1": …, "mrr": …, "log_likelihood": …}
problem.data.folds                 # the pairs again, cut for cross-validation
problem.finished(projectors, validation)   # the connection, with its record
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.config import AGGREGATES, Centric, ConnectConfig
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Projector
from cmcr.connect.connection.record import Record, SpaceRecord, library_versions
from cmcr.connect.methods.cca import Spread
from cmcr.connect.methods.closed_forms import Moments, moments
from cmcr.connect.methods.held_out import folds, split
from cmcr.connect.spaces.centric import SIDES, Four, centred_on, pooled
from cmcr.connect.spaces.datasets import SpaceData, Spaces, blocks, open_spaces
from cmcr.connect.spaces.pairs import Pairs, Rows, join
from cmcr.connect.spaces.pseudo import pseudo_partners
from cmcr.connect.training.validation import Held, Validated, hold, validate
from cmcr.devices import float32, threads_for
from cmcr.embeddings import Modality
from cmcr.errors import UsageError
from cmcr.large.arrays import numbers, shuffled

Spreads = Mapping[Modality, Spread]

DISTRACTORS = 6_144  # bridge items of the fit that are searched among, besides
SEARCHING = 2_048  # memory rows that search, of each space


def pose(store: Path, config: ConnectConfig, device: str = "cpu") -> "Problem":
    """Open the spaces that `config` names; nothing of them is read yet.

    Raises UsageError for a dataset that is not in the store or an entry of the memory that could
    be two modalities, StoreError for a damaged dataset, MismatchError for one space with two
    encoders.
    """
    spaces = open_spaces(store, config.spaces, config.via, config.train, config.memory, config.pool)
    return Problem(config, Data(store, spaces, config.validation, config.seed,
                                config.memory_temperature, device))  # fmt: skip


@dataclass
class Data:
    """What every method is given alike; what follows from the fields is derived when first used."""

    store: Path
    spaces: Spaces
    validation: float  # the share of the pairs that is held out
    seed: int
    memory_temperature: float  # τ1
    device: str
    seek: "Callable[[Data], Pairs] | None" = None  # finds pairs in pools, where they are to be used
    pooled: dict[str, int | float | bool] = field(default_factory=dict)  # what the guard said

    @cached_property
    def pairs(self) -> Pairs:
        """All known pairs. Raises MismatchError when fewer than two ids are common."""
        return join(*self.spaces)

    @cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers among `pairs` of those that a method may see, and of those held out."""
        return split(self.pairs, self.validation, self.seed)

    @cached_property
    def known(self) -> Pairs:
        """The known pairs that a method may see."""
        return self.pairs.subset(self.rows[0])

    @cached_property
    def found(self) -> Pairs | None:
        """Pairs that were found in pools, from `known` alone; None where none are sought."""
        return self.seek(self) if self.seek else None

    @cached_property
    def fitted(self) -> Pairs:
        """The pairs that a method is fitted on."""
        return self.known.joined(self.found) if self.found else self.known

    def part(self, fit: np.ndarray, held: np.ndarray) -> "Data":
        """The same data, with these rows of `pairs` to fit on and those held out."""
        other = dataclasses.replace(self)
        # What is derived already, and the same; `rows` takes the place of what would be derived.
        known = {name: getattr(self, name) for name in ("pairs", "unpaired", "searching")}
        vars(other).update(known, rows=(fit, held))
        return other

    def of(self, pairs: Pairs) -> "Data":
        """The same spaces, with these as the known pairs."""
        other = dataclasses.replace(self)
        vars(other).update(pairs=pairs, unpaired=self.unpaired, searching=self.searching)
        return other

    def seeking(self, seek: "Callable[[Data], Pairs]") -> "Data":
        """The same data, with what `seek` finds in pools beside the known pairs of each part."""
        other = self.part(*self.rows)
        other.seek = seek
        return other

    def with_found(self, found: Pairs) -> "Data":
        """The same data, with these pairs beside the known ones."""
        other = self.part(*self.rows)
        vars(other).update(found=found)
        return other

    @cached_property
    def whole(self) -> "Data":
        """The same data with nothing held out."""
        return self.part(numbers(len(self.pairs)), numbers(0))

    @cached_property
    def folds(self) -> list["Data"]:
        """What may be seen, cut for cross-validation; items that say the same are in one fold.

        None where there are too few pairs, one where there are many.
        """
        seen = self.rows[0]
        return [self.part(seen[fit], seen[held])
                for fit, held in folds(self.known, self.seed, self.device)]  # fmt: skip

    @cached_property
    def held(self) -> Held | None:
        """The pairs held out, for `validate` to search with and among, on the device."""
        if not len(self.rows[1]):
            return None
        random = np.random.default_rng(self.seed)
        drawn = np.sort(shuffled(len(self.known), random)[:DISTRACTORS])
        back, others = self.pairs.subset(self.rows[1]), self.known.subset(drawn)
        one, two = (
            torch.cat([float32(rows[:], self.device), float32(more[:], self.device)])
            for rows, more in ((back.first, others.first), (back.second, others.second))
        )
        a, c = (None if x is None else float32(x, self.device) for x in self.searching)
        return hold((one, two), len(back), (a, c))

    @cached_property
    def searching(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Some rows of the memory of either space, drawn over all of it; None without one."""
        first, second = (_some(space, SEARCHING, self.seed) for space in self.spaces)
        return first, second

    @cached_property
    def pseudo(self) -> tuple[Rows | None, Rows | None]:
        """ã and c̃ of the pairs that a method is fitted on; None for a space without memory."""
        pairs, seen = self.pairs, self.rows[0]
        if self.found:
            seen = np.concatenate([seen, len(pairs) + np.arange(len(self.found))])
            pairs = pairs.joined(self.found)
        first, second = (
            pseudo_partners(self.store, space, bridge, self.memory_temperature, self.device)
            for space, bridge in zip(self.spaces, (pairs.first, pairs.second), strict=True)
        )
        return (
            None if first is None else first.subset(seen),
            None if second is None else second.subset(seen),
        )

    def trained_on(self, config: ConnectConfig) -> dict[Centric, int]:
        """How many rows each modality that `config` names gives to training: none without memory.

        A method that has no use for pseudo partners is trained on the bridge alone.
        """
        if config.method not in AGGREGATES:
            return {"bridge": len(self.fitted)}
        rows: dict[Centric, int] = {"bridge": len(self.fitted)}
        for side, space in zip(SIDES, self.spaces, strict=True):
            rows[side] = sum(dataset.rows for dataset in space.memory)
        return {centric: rows[centric] for centric in config.centric}

    def training(self, config: ConnectConfig) -> Four:
        """What a method is trained on: rows of each modality in `trained_on`, pooled."""
        found: list[Four | None] = []
        for centric in self.trained_on(config):
            if centric == "bridge":
                pseudo = self.pseudo if config.method in AGGREGATES else (None, None)
                found.append((self.fitted.first, pseudo[0], self.fitted.second, pseudo[1]))
            else:
                found.append(centred_on(centric, self.store, self.spaces, self.fitted,
                                        self.memory_temperature, self.device))  # fmt: skip
        there = [four for four in found if four is not None]
        if not there:
            raise UsageError(
                f"centric: {', '.join(config.centric)}, and there is no such memory",
                fix="name the memory, or --set centric=[bridge]",
            )
        return pooled(there)

    @cached_property
    def unpaired(self) -> tuple[Spreads, Spreads]:
        """Where each modality of either space lies that is not the bridge, the memory's first."""
        first, second = (
            {
                modality: Spread(partial(blocks, datasets), space.dim)
                for modality, datasets in space.unpaired.items()
            }
            for space in self.spaces
        )
        return first, second

    @cached_property
    def spreads(self) -> tuple[Spreads, Spreads]:
        """Where each modality of either space lies, the bridge first."""
        first, second = (
            {space.bridge_modality: Spread(rows.batches, space.dim)} | dict(memory)
            for space, rows, memory in zip(
                self.spaces, (self.fitted.first, self.fitted.second), self.unpaired, strict=True
            )
        )
        return first, second

    @cached_property
    def moments(self) -> Moments:
        """Moments of the pairs that a method may see."""
        first, second = self.fitted.first, self.fitted.second
        return moments(first, second, *(_origin(rows) for rows in (first, second)))

    @cached_property
    def centred_moments(self) -> Moments:
        """The same about the mean of the bridge modality in either space."""
        mean1, mean2 = (next(iter(one.values())).mean.double() for one in self.spreads)
        return moments(self.fitted.first, self.fitted.second, mean1, mean2)


@dataclass(frozen=True)
class Problem:
    """A method, by its config, and the data that it is given."""

    config: ConnectConfig
    data: Data
    asked: ConnectConfig | None = None  # what was asked for, where it is not `config` itself

    @property
    def requested(self) -> ConnectConfig:
        """What was asked for: `auto` becomes another method, what is left open is filled in."""
        return self.asked or self.config

    def variant(self, **changes: Any) -> "Problem":
        """The same data for another method: a config that differs in `changes`."""
        config = self.config.model_copy(update=changes)
        return dataclasses.replace(self, config=config, asked=self.requested)

    @property
    def joint_dim(self) -> int:
        """Dimensions of the joint space: of space 2 where that stays, else of the smaller space for
        cca and what starts from it, and what c-mcr is told.
        """
        config, (first, second) = self.config, self.data.spaces
        if "identity" in config.heads:
            return second.dim
        return min(first.dim, second.dim) if config.whitened else config.joint_dim

    def on(self, data: Data) -> "Problem":
        """The same method for other data."""
        return dataclasses.replace(self, data=data)

    def score(self, projectors: tuple[Projector, ...]) -> Validated:
        """`validate` for projectors in evaluation mode, which move to the data's device.

        Something has to be held out.
        """
        held = self.data.held
        assert held is not None
        for projector in projectors:
            projector.to(held.bridge[0].device)

        def project(side: int, rows: Tensor, memory: bool) -> Tensor:
            space = self.data.spaces[side]
            modality = space.memory_modality if memory else space.bridge_modality
            return projectors[side].project(rows, modality)

        queries = max(len(one.rows) for one in held.queries)
        with threads_for(queries * len(held.bridge[0]) * self.joint_dim):
            return validate(project, held)

    def finished(
        self, projectors: tuple[Projector, Projector], validation: Mapping[str, float]
    ) -> Connection:
        """The connection of `projectors`, with how well its method does on what it did not see."""
        record = self.record(projectors).model_copy(update={"validation": dict(validation)})
        return Connection(record, projectors).to("cpu")

    def record(self, projectors: tuple[Projector, Projector]) -> Record:
        """The record of the connection of `projectors`, before it is validated."""
        pairs = self.data.pairs
        opened = space_records(self.data.spaces)
        first, second = (
            space.model_copy(
                update={
                    "head": head,
                    "centred": tuple(one.means),
                    "turned": one.turned,
                    "whitened": tuple(one.whitenings),
                }
            )
            for space, head, one in zip(opened, self.config.heads, projectors, strict=True)
        )
        return Record(
            model=self.config.model_name,
            via=self.config.via,
            config=self.config,
            requested=self.requested,
            spaces=(first, second),
            joint_dim=self.joint_dim,
            pairs=len(pairs),
            held_out=len(self.data.rows[1]),
            unmatched=pairs.unmatched,
            pools=self._pools,
            trained_on=self._trained_on,
            device=self.data.device if self.config.trained else "cpu",
            versions=dict(library_versions()),
        )

    @property
    def _pools(self) -> dict[str, int | float | bool]:
        data = self.data
        return {"found": len(data.found or ())} | dict(data.pooled) if data.pooled else {}

    @property
    def _trained_on(self) -> dict[str, int]:
        """Where it is more, or less, than the bridge pairs that a method may see."""
        config = self.config
        if not config.trained or config.centric == ("bridge",):
            return {}
        return {str(centric): rows for centric, rows in self.data.trained_on(config).items()}

    def differences(self, record: Record) -> list[str]:
        """What tells the connection of `record` from the one of this problem; [] if up to date."""
        if record.requested is None:
            return [f"it was imported from {record.imported.get('file', 'elsewhere')}"]
        old, new = dict(record.requested), dict(self.requested)
        changed = [name for name in new if old[name] != new[name]]
        told = [f"{name}: {_text(old[name])} → {_text(new[name])}" for name in changed]
        if {"spaces", "via", "train", "memory", "pool"}.isdisjoint(changed):
            told += _changed_data(record, self.data.spaces)
        return told


def space_records(spaces: Spaces) -> tuple[SpaceRecord, SpaceRecord]:
    """What the record says of the opened datasets of both spaces."""
    first, second = (
        SpaceRecord(
            name=space.name,
            encoder_identity=space.encoder_identity,
            encoder=_encoder(space),
            dim=space.dim,
            bridge=space.bridge_modality,
            memory=space.memory_modality,
            datasets={str(dataset.key): dataset.fingerprint for dataset in space.datasets},
        )
        for space in spaces
    )
    return first, second


def _encoder(space: SpaceData) -> dict[str, str]:
    made_by = space.bridge[0].manifest.encoder
    names = ("encoder", "checkpoint_sha256", "licence")
    return {name: str(made_by[name]) for name in names if made_by.get(name)}


def _some(space: SpaceData, count: int, seed: int) -> np.ndarray | None:
    if not space.memory:
        return None
    rows = Rows([part for dataset in space.memory for part in dataset.parts()])
    return rows[np.sort(shuffled(len(rows), np.random.default_rng(seed))[:count])]


def _origin(rows: Rows) -> Tensor:
    return torch.zeros(rows.shape[1], dtype=torch.float64)


def _changed_data(record: Record, spaces: Spaces) -> list[str]:
    changed = []
    for old, new in zip(record.spaces, space_records(spaces), strict=True):
        there, wanted = old.datasets, new.datasets
        changed += [f"the content of {key} changed" for key in wanted
                    if there.get(key, wanted[key]) != wanted[key]]  # fmt: skip
        changed += [f"there is {key} now" for key in wanted if key not in there]
        changed += [f"there is no {key} any more" for key in there if key not in wanted]
    return changed


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
