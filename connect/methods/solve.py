"""One method on one problem: a closed form, or a trained connection and where its training starts.

    connection = solve(pose(store, config), folder)
    for name, connection in baselines(store, record).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge`, `ridge-centred` and `cca` stand in every
table of results, so that a user sees whether a trained projector earned its keep.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Projector, make_heads
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.cca import canonical, cross, into_second
from cmcr.connect.methods.closed_forms import moments, procrustes, ridge
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.training.batches import TrainingSet
from cmcr.connect.training.loop import train
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
    projectors = (_projector(problem, 0, heads[0]), _projector(problem, 1, heads[1]))
    if config.method == "ex-mcr" and first.memory_modality is not None:
        projectors[0].turn = _identity_layer(first.dim)
        projectors[0].turned = (first.memory_modality,)
    matrices = _canonical(problem, projectors) if config.whitened else _linear(problem, projectors)
    for head, matrix in zip(heads, matrices, strict=True):
        layer = getattr(head, "base", head)  # what a residual starts from, or all that there is
        if matrix is not None and isinstance(layer, nn.Linear):
            layer.weight.data = matrix.T.float().contiguous()
    return projectors


def _projector(problem: Problem, side: int, head: nn.Module) -> Projector:
    """Centred and whitened as the config says; whitening leaves a space alone that is to stay."""
    config, spreads = problem.config, problem.data.spreads[side]
    if not config.whitened:
        centred = spreads if config.centre else {}
        return Projector(head, {modality: one.mean for modality, one in centred.items()})
    if config.heads[side] == "identity":
        return Projector(head)
    return Projector(
        head,
        {modality: one.mean for modality, one in spreads.items()},
        whitenings={modality: one.whitening for modality, one in spreads.items()},
    )


def _canonical(
    problem: Problem, projectors: tuple[Projector, Projector]
) -> tuple[Tensor, Tensor | None]:
    """What cca multiplies by on either side, (D1, joint) and (D2, joint), float64.

    None where space 2 stays.
    """
    data, via = problem.data, problem.config.via
    spreads = data.spreads[1]
    means = {modality: one.mean for modality, one in spreads.items()}
    whitenings = {modality: one.whitening for modality, one in spreads.items()}
    second = Projector(projectors[1].head, means, whitenings=whitenings)
    u, v = canonical(cross(data.fitted, (projectors[0], second), via))
    if problem.config.heads[1] != "identity":
        return u, v
    searched = whitenings[data.spaces[1].memory_modality or via]
    return into_second(u, v, searched, torch.stack(list(means.values()))), None


def _linear(
    problem: Problem, projectors: tuple[Projector, Projector]
) -> tuple[Tensor | None, None]:
    """W of procrustes or ridge, (D1, D2), float64; None where nothing starts from one."""
    config, fitted = problem.config, problem.data.fitted
    if "matrix" not in config.heads:
        return None, None
    mean1, mean2 = (
        projector.means.get(config.via, torch.zeros(rows.shape[1])).double()
        for projector, rows in zip(projectors, (fitted.first, fitted.second), strict=True)
    )
    pairs = moments(fitted.first, fitted.second, mean1, mean2)
    if config.method == "ridge":
        return ridge(pairs, config.ridge_strength), None
    return procrustes(pairs), None


def closed_forms(problem: Problem) -> list[Problem]:
    """The problem of each closed form that can be had between its spaces."""
    variants = [
        problem.variant(method=method, centre=centre)
        for method in ("procrustes", "ridge")
        for centre in (False, True)
    ]
    first, second = problem.data.spaces
    variants.append(problem.variant(method="cca", centre=False))
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


def _identity_layer(dim: int) -> nn.Linear:
    """An identity-initialised linear layer: Ex-MCR's Head1 at its start."""
    layer = nn.Linear(dim, dim)
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
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
