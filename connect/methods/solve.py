"""From opened spaces and bridge pairs to a connection: closed forms, and where training starts.

    problem = pose(store, config, spaces)
    connection = fit(config, problem)                        # a method without training
    for name, connection in baselines(store, config).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge` and `ridge-centred` stand in every table
of results, so that a user sees whether a trained projector earned its keep.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Means, Side, make_heads
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.closed_forms import Moments, moments, procrustes, ridge
from cmcr.connect.methods.problem import Problem, describe, joint_dim, score, split
from cmcr.connect.spaces.datasets import SpaceData, Spaces, open_spaces
from cmcr.connect.spaces.pairs import join
from cmcr.connect.spaces.pseudo import pseudo_partners
from cmcr.connect.training.batches import TrainingData
from cmcr.connect.training.loop import train
from cmcr.connect.training.validation import DECIDES
from cmcr.embeddings.schema import Modality, canonical_json
from cmcr.errors import MismatchError


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


def finished(
    config: ConnectConfig, problem: Problem, sides: tuple[Side, Side], device: str = "cpu"
) -> Connection:
    """The connection of `sides`, with how well it does on what was held out."""
    record = describe(config, problem, sides, device)
    if problem.held is not None:
        validated = score(sides, problem.spaces, problem.held)
        record = record.model_copy(update={"validation": validated.scores})
    return Connection(record, sides).to("cpu")


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


def make(
    config: ConnectConfig, problem: Problem, folder: Path, device: str, tensorboard: bool = False
) -> Connection:
    """The connection of one method; what training leaves on its way goes to `folder`."""
    if not config.trained:
        return fit(config, problem)
    partners = [
        pseudo_partners(problem.store, space, bridge, config.memory_temperature, device)
        for space, bridge in zip(
            problem.spaces, (problem.pairs.first, problem.pairs.second), strict=True
        )
    ]
    seen = problem.fitted_rows
    pseudo = [None if rows is None else rows.subset(seen) for rows in partners]
    data = TrainingData(problem.fitted.first, pseudo[0], problem.fitted.second, pseudo[1])
    sides = start(config, problem)
    identity = _identity(describe(config, problem, sides, device))
    for side in sides:
        side.to(device)
    held = problem.held
    train(
        config,
        data,
        sides,
        (_modalities(problem.spaces[0]), _modalities(problem.spaces[1])),
        folder,
        identity,
        device=device,
        validate=None if held is None else lambda: score(sides, problem.spaces, held),
        tensorboard=tensorboard,
    )
    return finished(config, problem, sides, device)


def _modalities(space: SpaceData) -> tuple[Modality, Modality | None]:
    return space.bridge_modality, space.memory_modality


def _identity(record: Record) -> str:
    """Hex digest of all that decides the weights: a checkpoint of another is not taken up."""
    decisive = record.model_dump(mode="json", exclude={"model_sha256", "validation"})
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()


def without_data(record: Record) -> dict[str, Connection]:
    """What can stand beside a connection in a table without the data that it was made from.

    That is `identity`, where all spaces have the same D; a closed form has to be fitted.
    """
    dim = record.spaces[0].dim
    if any(space.dim != dim for space in record.spaces):
        return {}
    plain = {"head": "identity", "centred": (), "turned": ()}
    bare = Record(
        model="identity",
        via=record.via,
        config=None,
        spaces=tuple(space.model_copy(update=plain) for space in record.spaces),
        joint_dim=dim,
    )
    return {"identity": Connection(bare, tuple(Side(nn.Identity()) for _ in record.spaces))}
