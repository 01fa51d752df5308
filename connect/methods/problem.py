"""What every method is given, and the record of what it was given.

problem = pose(config, store, spaces)              # pairs joined, some held out
score(sides, problem.spaces, problem.held).scores  # {"hit_rate@1": …, "mrr": …}
describe(config, problem, sides, device)           # the record of a connection
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.projectors import Means, Side
from cmcr.connect.connection.record import Record, SpaceRecord, library_versions, with_sides
from cmcr.connect.methods.closed_forms import mean_embedding
from cmcr.connect.spaces.aggregation import aggregate
from cmcr.connect.spaces.datasets import SpaceData, Spaces
from cmcr.connect.spaces.pairs import Pairs, Rows, join
from cmcr.connect.training.validation import Held, Validated, validate
from cmcr.devices import float32

LEAST, MOST = 32, 4096  # rows that are held out
DISTRACTORS = 16_384  # bridge items of the fit that are searched among, besides


def split(config: ConnectConfig, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to fit on and of those held out, each in order; seeded.

    With 4 × LEAST rows or fewer a quarter is the most that is held out.
    """
    if not config.validation:
        return np.arange(count), np.arange(0)
    share = min(max(round(config.validation * count), LEAST), MOST, count // 4)
    order = np.random.default_rng(config.seed).permutation(count)
    return np.sort(order[share:]), np.sort(order[:share])


@dataclass(frozen=True)
class Problem:
    """What every method is given: the same datasets, and the same pairs held out."""

    store: Path
    spaces: Spaces
    pairs: Pairs  # all of them
    fitted: Pairs  # those a method may see
    fitted_rows: np.ndarray  # (fitted,) their numbers among `pairs`
    held: Held | None

    @cached_property
    def means(self) -> tuple[Means, Means]:
        """The mean embedding of each modality of both spaces; every centred method has these."""
        first, second = self.spaces
        return _means(first, self.fitted.first), _means(second, self.fitted.second)


def pose(config: ConnectConfig, store: Path, spaces: Spaces, device: str = "cpu") -> Problem:
    """Join the pairs and hold some out, for `validate` to search with and among.

    Raises MismatchError when fewer than two ids are common to both spaces.
    """
    pairs = join(*spaces)
    seen, held_out = split(config, len(pairs))
    fitted = pairs.subset(seen)
    held = None
    if len(held_out):
        back, others = pairs.subset(held_out), fitted.subset(slice(0, DISTRACTORS))
        bridge = [
            torch.cat([float32(one[:], device), float32(two[:], device)])
            for one, two in ((back.first, others.first), (back.second, others.second))
        ]
        pseudo = [
            aggregate(block[: len(back)], space.memory_blocks(), config.memory_temperature)
            if space.memory
            else None
            for space, block in zip(spaces, bridge, strict=True)
        ]
        held = Held(len(back), (bridge[0], bridge[1]), (pseudo[0], pseudo[1]))
    return Problem(store, spaces, pairs, fitted, seen, held)


def joint_dim(config: ConnectConfig, second: SpaceData) -> int:
    """Dimensions of the joint space: what c-mcr is told, else those of space 2."""
    free = config.method == "c-mcr" and config.projector != "residual"
    return config.joint_dim if free else second.dim


def describe(
    config: ConnectConfig, problem: Problem, sides: tuple[Side, Side], device: str
) -> Record:
    """The record of a connection that is being made."""
    pairs = problem.pairs
    return Record(
        model=config.model_name,
        via=config.via,
        config=config,
        requested=config,
        spaces=with_sides(space_records(problem.spaces), sides, config.heads),
        joint_dim=joint_dim(config, problem.spaces[1]),
        pairs=len(pairs),
        held_out=len(pairs) - len(problem.fitted),
        unmatched=pairs.unmatched,
        device=device,
        versions=dict(library_versions()),
    )


def score(sides: tuple[Side, ...], spaces: Spaces, held: Held) -> Validated:
    """`validate` for sides in evaluation mode, which move to the device of `held`."""
    for side in sides:
        side.to(held.bridge[0].device)

    def project(side: int, rows: Tensor, pseudo: bool) -> Tensor:
        space = spaces[side]
        modality = space.memory_modality if pseudo else space.bridge_modality
        return sides[side].project(rows, modality)

    return validate(project, held)


def _means(space: SpaceData, bridge: Rows) -> Means:
    """The mean embedding of each modality of `space`: of the bridge pairs, and of the memory."""
    means = {space.bridge_modality: mean_embedding(bridge.batches(), space.dim).float()}
    if space.memory_modality is not None:
        means[space.memory_modality] = mean_embedding(space.memory_blocks(), space.dim).float()
    return means


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
