"""One method on one problem: a closed form, or a trained connection and where its training starts.

    connection = solve(pose(store, config), folder)
    for name, connection in baselines(store, record).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge`, `ridge-centred` and `cca` stand in every
table of results, so that a user sees whether a trained projector earned its keep.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Projector, make_heads
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.cca import canonical, cross, into_second
from cmcr.connect.methods.closed_forms import procrustes, ridge
from cmcr.connect.methods.problem import Problem, pose
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.training.batches import TrainingSet
from cmcr.connect.training.loop import train
from cmcr.connect.training.schedule import scheduled
from cmcr.connect.training.validation import DECIDES, Validated
from cmcr.embeddings import list_datasets
from cmcr.embeddings.schema import Modality, canonical_json
from cmcr.errors import MismatchError

STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of ridge, tried
USUAL = 1e-3  # where there are too few pairs to try


def solve(problem: Problem, folder: Path, tensorboard: bool = False) -> Connection:
    """The connection of one method; what training leaves on its way goes to `folder`.

    A closed form is fitted on all pairs, and validated on those that it did not see. Raises
    MismatchError for `identity` between spaces of different D or for fewer than two pairs,
    CmcrError for a loss that is not finite.
    """
    if problem.config.trained:
        problem = filled_in(problem)
        projectors, _ = fit(problem, folder, tensorboard)
        seen = {} if problem.data.held is None else problem.score(projectors).scores
        return problem.finished(projectors, seen)
    problem = filled_in(problem.on(problem.data.whole))
    validated = cross_validated(problem) if problem.config.validation else None
    return problem.finished(start(problem), validated.scores if validated else {})


def filled_in(problem: Problem) -> Problem:
    """What the config leaves open, as the pairs want it: ridge's strength, batch size, epochs."""
    config = problem.config
    if config.trained:
        config = scheduled(config, len(problem.data.fitted))
        return problem.variant(batch_size=config.batch_size, epochs=config.epochs)
    if config.method != "ridge" or config.ridge_strength is not None:
        return problem
    tried = [problem.variant(ridge_strength=strength) for strength in STRENGTHS]
    validated = [cross_validated(one) for one in tried]
    likelihoods = [one.scores[DECIDES] for one in validated if one]
    best = int(np.argmax(likelihoods)) if likelihoods else STRENGTHS.index(USUAL)
    return tried[best]


def cross_validated(problem: Problem) -> Validated | None:
    """What a closed form does with each pair that it did not see; None with too few pairs."""
    found = [one.score(start(one)) for one in map(problem.on, problem.data.folds)]
    if not found:
        return None
    rows = [len(one.each) for one in found]
    scores = {
        name: float(np.average([one.scores[name] for one in found], weights=rows))
        for name in found[0].scores
    }
    return Validated(scores, torch.cat([one.each for one in found]))


def start(problem: Problem) -> tuple[Projector, Projector]:
    """Both projectors as a method has them before training; for a closed form this is all.

    The config leaves nothing open that the method needs (`filled_in`).
    """
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
    matrices = _canonical(problem, projectors) if config.whitened else (_linear(problem), None)
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
    each = torch.stack(list(whitenings.values())), torch.stack(list(means.values()))
    return into_second(u, v, *each), None


def _linear(problem: Problem) -> Tensor | None:
    """W of procrustes or ridge, (D1, D2), float64; None where nothing starts from one."""
    config = problem.config
    if "matrix" not in config.heads:
        return None
    pairs = problem.data.centred_moments if config.centre else problem.data.moments
    if config.method == "ridge":
        assert config.ridge_strength is not None
        return ridge(pairs, config.ridge_strength)
    return procrustes(pairs)


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
    asked = {"ridge_strength": (record.requested or record.config).ridge_strength}
    if not record.held_out:
        asked["validation"] = 0
    fitted = {}
    for problem in closed_forms(pose(store, record.config.model_copy(update=asked))):
        known = record.ridge_strengths.get(problem.config.model_name)
        ready = problem.variant(ridge_strength=known) if known else filled_in(problem)
        projectors = start(ready)
        fitted[ready.config.model_name] = Connection(ready.record(projectors), projectors)
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


def fit(
    problem: Problem, folder: Path, tensorboard: bool = False, until: int | None = None
) -> tuple[tuple[Projector, Projector], int]:
    """The projectors of a trained method, and the epoch that they are of, `until` at most."""
    data, projectors = problem.data, start(problem)
    identity = _identity(problem.record(projectors), until)
    for projector in projectors:
        projector.to(data.device)
    epoch = train(
        problem.config,
        TrainingSet(data.fitted.first, data.pseudo[0], data.fitted.second, data.pseudo[1]),
        projectors,
        (_modalities(data.spaces[0]), _modalities(data.spaces[1])),
        folder,
        identity,
        device=data.device,
        validate=None if data.held is None else lambda: problem.score(projectors),
        tensorboard=tensorboard,
        until=until,
    )
    return projectors, epoch


def _modalities(space: SpaceData) -> tuple[Modality, Modality | None]:
    return space.bridge_modality, space.memory_modality


def _identity(record: Record, until: int | None) -> str:
    """Hex digest of all that decides the weights: a checkpoint of another is not taken up."""
    decisive = record.model_dump(mode="json", exclude={"model_sha256", "validation"})
    decisive["until"] = until
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()
