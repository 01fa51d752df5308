"""One method on one problem: a closed form, or a trained connection and where its training starts.

    connection = solve(pose(store, config), folder)
    for name, connection in baselines(store, record).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge` and `ridge-centred` stand in every table
of results, so that a user sees whether a trained projector earned its keep.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Means, Projector, make_heads
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.closed_forms import Moments, moments, procrustes, ridge
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.training.batches import TrainingSet
from cmcr.connect.training.loop import train
from cmcr.connect.training.validation import DECIDES
from cmcr.embeddings import list_datasets
from cmcr.embeddings.schema import Modality, canonical_json
from cmcr.errors import MismatchError


def solve(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of one method; what training leaves on its way goes to `folder`.

    A closed form maps space 1 into space 2, which stays. Raises MismatchError for `identity`
    between spaces of different D or for fewer than two pairs, CmcrError for a loss that is not
    finite.
    """
    projectors = start(problem)
    if problem.config.trained:
        _train(problem, projectors, folder, tensorboard)
    return problem.finished(projectors)


def start(problem: Problem) -> tuple[Projector, Projector]:
    """Both projectors as a method has them before training; for a closed form this is all."""
    config, (first, second) = problem.config, problem.data.spaces
    if config.method == "identity" and first.dim != second.dim:
        raise MismatchError(
            f"identity needs equal dimensions, and {first.name} has {first.dim}, "
            f"{second.name} has {second.dim}",
            fix="--method procrustes takes spaces of any dimensions",
        )
    heads = make_heads(config.heads, (first.dim, second.dim), problem.joint_dim, config.seed)
    means: tuple[Means, Means] = problem.data.means if config.centre else ({}, {})
    projectors = (Projector(heads[0], means[0]), Projector(heads[1], means[1]))
    if config.method == "ex-mcr" and first.memory_modality is not None:
        projectors[0].turn = _identity_layer(first.dim)
        projectors[0].turned = (first.memory_modality,)
    if "matrix" in config.heads or "residual" in config.heads:
        matrix = _best_matrix(problem, means)  # (D1, D2)
        _base(heads[0]).weight.data = matrix.T.float().contiguous()
    if config.heads[1] == "residual":
        _base(heads[1]).weight.data = torch.eye(second.dim)
    return projectors


def closed_forms(problem: Problem) -> list[Problem]:
    """The problem of each closed form that can be had between its spaces."""
    variants = [
        problem.variant(method=method, centre=centre)
        for method in ("procrustes", "ridge")
        for centre in (False, True)
    ]
    first, second = problem.data.spaces
    if first.dim == second.dim:
        variants.insert(0, problem.variant(method="identity", centre=False))
    return variants


def baselines(store: Path, record: Record) -> dict[str, Connection]:
    """What stands beside the connection of `record` in a table, by its name there.

    Every closed form, where `store` has the data that the connection was made from: it is fitted
    on the pairs that the connection was. Else `identity`, which needs none. `identity` is among
    them where all spaces have the same D. Raises StoreError for a damaged dataset, MismatchError
    where the store has lost the common ids.
    """
    used = {name for space in record.spaces for name in space.datasets}
    if record.config is None or not used <= set(map(str, list_datasets(store))):
        return _identity_alone(record)
    fitted = {}
    for problem in closed_forms(pose(store, record.config)):
        projectors = start(problem)
        fitted[problem.config.model_name] = Connection(problem.record(projectors), projectors)
    return fitted


def _identity_alone(record: Record) -> dict[str, Connection]:
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
    return {"identity": Connection(bare, tuple(Projector(nn.Identity()) for _ in record.spaces))}


def _best_matrix(problem: Problem, means: tuple[Means, Means]) -> Tensor:
    """W of the closed form, (D1, D2), float64; a residual takes the one that validates best."""
    pairs = _moments(problem, means)
    if problem.config.method == "ridge":
        return ridge(pairs, problem.config.ridge_strength)
    rotation = procrustes(pairs)
    if "residual" not in problem.config.heads or problem.data.held is None:
        return rotation
    held = problem.data.held.to("cpu")

    def validated(matrix: Tensor) -> float:
        head = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
        head.weight.data = matrix.T.float()
        projectors = (Projector(head, means[0]), Projector(nn.Identity(), means[1]))
        return problem.score(projectors, held).scores[DECIDES]

    return max(rotation, ridge(pairs, problem.config.ridge_strength), key=validated)


def _moments(problem: Problem, means: tuple[Means, Means]) -> Moments:
    blocks = (problem.data.fitted.first, problem.data.fitted.second)
    mean1, mean2 = (
        mean.get(problem.config.via, torch.zeros(block.shape[1])).double()
        for mean, block in zip(means, blocks, strict=True)
    )
    return moments(*blocks, mean1, mean2)


def _identity_layer(dim: int) -> nn.Linear:
    """An identity-initialised linear layer: Ex-MCR's Head1 at its start."""
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _base(head: nn.Module) -> nn.Linear:
    """What holds the closed form: the head itself, or the base of a residual."""
    layer = getattr(head, "base", head)
    assert isinstance(layer, nn.Linear)
    return layer


def _train(
    problem: Problem, projectors: tuple[Projector, Projector], folder: Path, tensorboard: bool
) -> None:
    data = problem.data
    identity = _identity(problem.record(projectors))
    for projector in projectors:
        projector.to(data.device)
    train(
        problem.config,
        TrainingSet(data.fitted.first, data.pseudo[0], data.fitted.second, data.pseudo[1]),
        projectors,
        (_modalities(data.spaces[0]), _modalities(data.spaces[1])),
        folder,
        identity,
        device=data.device,
        validate=None if data.held is None else lambda: problem.score(projectors),
        tensorboard=tensorboard,
    )


def _modalities(space: SpaceData) -> tuple[Modality, Modality | None]:
    return space.bridge_modality, space.memory_modality


def _identity(record: Record) -> str:
    """Hex digest of all that decides the weights: a checkpoint of another is not taken up."""
    decisive = record.model_dump(mode="json", exclude={"model_sha256", "validation"})
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()
