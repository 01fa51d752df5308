"""From opened spaces and bridge pairs to a connection: closed forms, and where training starts.

    problem = pose(store, config, spaces)
    connection = fit(config, problem)                        # a method without training
    for name, connection in baselines(store, config).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge` and `ridge-centred` stand in every table
of results, so that a user sees whether a trained projector earned its keep.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmcr.connect.closed_form import Moments, mean_embedding, moments, procrustes, ridge
from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection import Connection
from cmcr.connect.data import Pairs, Rows, SpaceData, Spaces, join, open_spaces
from cmcr.connect.heads import Means, Side, make_heads
from cmcr.connect.memory import aggregate
from cmcr.connect.record import Record, library_versions, space_records, with_sides
from cmcr.connect.validation import (
    DECIDES,
    DISTRACTORS,
    Held,
    Validated,
    split,
    validate,
)
from cmcr.connect.vectors import float32
from cmcr.errors import MismatchError


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


def baselines(store: Path, config: ConnectConfig) -> dict[str, Connection]:
    """Every closed form on the bridge pairs and memories of `config`, by its name in a table.

    They are fitted on the pairs that a trained method sees. `identity` is among them where both
    spaces have the same D. Raises UsageError for a dataset that is not in the store, StoreError
    for a damaged one, MismatchError without common ids.
    """
    spaces = open_spaces(store, config)
    pairs = join(*spaces)
    seen, _ = split(config, len(pairs))
    problem = Problem(store, spaces, pairs, pairs.subset(seen), seen, None)
    configs = closed_forms(config, spaces)
    return {config.model_name: fit(config, problem) for config in configs}


def closed_forms(config: ConnectConfig, spaces: Spaces) -> list[ConnectConfig]:
    """The config of each closed form that can be had between `spaces`."""
    variants = [
        {"method": method, "centre": centre}
        for method in ("procrustes", "ridge")
        for centre in (False, True)
    ]
    if spaces[0].dim == spaces[1].dim:
        variants.insert(0, {"method": "identity", "centre": False})
    return [config.model_copy(update=variant) for variant in variants]


def fit(config: ConnectConfig, problem: Problem) -> Connection:
    """The connection of a closed form: space 1 is mapped into space 2, which stays.

    Raises MismatchError for `identity` between spaces of different D.
    """
    return finished(config, problem, start(config, problem))


def start(config: ConnectConfig, problem: Problem) -> tuple[Side, Side]:
    """Both sides as a method has them before training; for a closed form this is all there is."""
    first, second = problem.spaces
    if config.method == "identity" and first.dim != second.dim:
        raise MismatchError(
            f"identity needs equal dimensions, and {first.name} has {first.dim}, "
            f"{second.name} has {second.dim}",
            cure="--method procrustes takes spaces of any dimensions",
        )
    dims = (first.dim, second.dim)
    heads = make_heads(config.heads, dims, joint_dim(config, second), config.seed)
    means: tuple[Means, Means] = ({}, {})
    if config.centre:
        means = problem.means
    sides = (Side(heads[0], means[0]), Side(heads[1], means[1]))
    if config.method == "ex-mcr" and first.memory_modality is not None:
        sides[0].turn = _still(first.dim)
        sides[0].turned = (first.memory_modality,)
    if "matrix" in config.heads or "residual" in config.heads:
        matrix = _best_matrix(config, problem, means)  # (D1, D2)
        _layer(heads[0]).weight.data = matrix.T.float().contiguous()
    if config.heads[1] == "residual":
        _layer(heads[1]).weight.data = torch.eye(second.dim)
    return sides


def joint_dim(config: ConnectConfig, second: SpaceData) -> int:
    """Dimensions of the joint space: what c-mcr is told, else those of space 2."""
    free = config.method == "c-mcr" and config.projector != "residual"
    return config.joint_dim if free else second.dim


def finished(
    config: ConnectConfig, problem: Problem, sides: tuple[Side, Side], device: str = "cpu"
) -> Connection:
    """The connection of `sides`, with how well it does on what was held out."""
    record = describe(config, problem, sides, device)
    if problem.held is not None:
        validated = score(sides, problem.spaces, problem.held)
        record = record.model_copy(update={"validation": validated.scores})
    return Connection(record, sides).to("cpu")


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


def _best_matrix(config: ConnectConfig, problem: Problem, means: tuple[Means, Means]) -> Tensor:
    """W of the closed form, (D1, D2), float64; a residual takes the one that validates best."""
    pairs = _moments(config, problem, means)
    if config.method == "ridge":
        return ridge(pairs, config.ridge_strength)
    rotation = procrustes(pairs)
    if "residual" not in config.heads or problem.held is None:
        return rotation
    held = problem.held.to("cpu")

    def validated(matrix: Tensor) -> float:
        head = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
        head.weight.data = matrix.T.float()
        sides = (Side(head, means[0]), Side(nn.Identity(), means[1]))
        return score(sides, problem.spaces, held).scores[DECIDES]

    return max(rotation, ridge(pairs, config.ridge_strength), key=validated)


def _moments(config: ConnectConfig, problem: Problem, means: tuple[Means, Means]) -> Moments:
    blocks = (problem.fitted.first, problem.fitted.second)
    mean1, mean2 = (
        mean.get(config.via, torch.zeros(block.shape[1])).double()
        for mean, block in zip(means, blocks, strict=True)
    )
    return moments(*blocks, mean1, mean2)


def _means(space: SpaceData, bridge: Rows) -> Means:
    """The mean embedding of each modality of `space`: of the bridge pairs, and of the memory."""
    means = {space.bridge_modality: mean_embedding(bridge.batches(), space.dim).float()}
    if space.memory_modality is not None:
        means[space.memory_modality] = mean_embedding(space.memory_blocks(), space.dim).float()
    return means


def _still(dim: int) -> nn.Linear:
    """A linear layer that changes nothing yet: Ex-MCR's Head1 at its start."""
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _layer(head: nn.Module) -> nn.Linear:
    """What holds the closed form: the head itself, or the base of a residual."""
    layer = getattr(head, "base", head)
    assert isinstance(layer, nn.Linear)
    return layer
