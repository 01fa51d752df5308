"""One method on one problem: a closed form, or a trained connection and where its training starts.

connection = solve(pose(store, config), folder).connection
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Kernel, Projector, make_heads
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.cca import canonical, cross, into_second
from cmcr.connect.methods.closed_forms import kernel, procrustes, ridge
from cmcr.connect.methods.problem import Data, Problem
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.training.batches import TrainingSet
from cmcr.connect.training.loop import train
from cmcr.connect.training.schedule import scheduled
from cmcr.connect.training.validation import DECIDES, Validated
from cmcr.devices import float32
from cmcr.embeddings.schema import Modality, canonical_json
from cmcr.errors import MismatchError

STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # of ridge, tried
USUAL = 1e-3  # where there are too few pairs to try

Judge = Callable[[Problem], Validated | None]


class Solved(NamedTuple):
    """A method with nothing left open, its projectors, and what they did with held-out pairs."""

    problem: Problem
    projectors: tuple[Projector, Projector]
    validated: Validated | None

    @property
    def connection(self) -> Connection:
        """What is saved."""
        scores = self.validated.scores if self.validated else {}
        return self.problem.finished(self.projectors, scores)


def solve(problem: Problem, folder: Path, tensorboard: bool = False) -> Solved:
    """The connection of one method; what training leaves on its way goes to `folder`.

    A closed form is fitted on all pairs, and validated on those that it did not see. Raises
    MismatchError for `identity` between spaces of different D or for fewer than two pairs,
    CmcrError for a loss that is not finite.
    """
    if problem.config.trained:
        problem = with_schedule(problem)
        projectors, _ = fit(problem, folder, tensorboard)
        return Solved(problem, projectors, on_held_out(problem, projectors))
    problem, validated = judged(problem.on(problem.data.whole), cross_validated)
    return Solved(problem, start(problem), validated if problem.config.validation else None)


def with_schedule(problem: Problem) -> Problem:
    """Batch size and epochs of training, where the config leaves them open, as the pairs want."""
    config = scheduled(problem.config, sum(problem.data.trained_on(problem.config).values()))
    return problem.variant(batch_size=config.batch_size, epochs=config.epochs)


def judged(problem: Problem, judge: Judge) -> tuple[Problem, Validated | None]:
    """A closed form and what `judge` says of it; of `ridge` with the strength that does best."""
    config = problem.config
    if config.method != "ridge" or config.ridge_strength is not None:
        return problem, judge(problem)
    tried = {one: problem.variant(ridge_strength=one) for one in STRENGTHS}
    found = [(one, seen) for one in tried.values() if (seen := judge(one))]
    return max(found, key=lambda one: one[1].scores[DECIDES], default=(tried[USUAL], None))


def strengthened(problem: Problem) -> Problem:
    """A closed form with nothing left open."""
    open_one = problem.config.method == "ridge" and problem.config.ridge_strength is None
    return judged(problem, cross_validated)[0] if open_one else problem


def cross_validated(problem: Problem) -> Validated | None:
    """What a closed form does with each pair that it did not see; None with too few pairs."""
    return in_folds(problem, problem.data.folds)


def in_folds(problem: Problem, folds: Sequence[Data]) -> Validated | None:
    """What a closed form does with the pairs that each of `folds` holds out; None without folds."""
    found = [one.score(start(one)) for one in map(problem.on, folds)]
    return joined(found) if found else None


def joined(found: Sequence[Validated]) -> Validated:
    """What several folds say, as one."""
    weights = [len(one.each) for one in found]
    scores = {
        name: float(np.average([one.scores[name] for one in found], weights=weights))
        for name in found[0].scores
    }
    each, items = (torch.cat(every) for every in zip(*(one[1:] for one in found), strict=True))
    return Validated(scores, each, items)


def on_held_out(
    problem: Problem, projectors: tuple[Projector, Projector] | None = None
) -> Validated | None:
    """What a method does with the pairs that are held out, once; None where none are."""
    if problem.data.held is None:
        return None
    return problem.score(projectors or start(problem))


def start(problem: Problem) -> tuple[Projector, Projector]:
    """Both projectors as a method has them before training; for a closed form this is all.

    The config leaves nothing open that the method needs (`judged`, `with_schedule`).
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
    if config.method == "ex-mcr" and first.unpaired:
        projectors[0].turn = _identity_layer(first.dim)
        projectors[0].turned = tuple(first.unpaired)
    if isinstance(heads[0], Kernel):
        _fill(heads[0], problem, projectors)
        return projectors
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
        centred = spreads if config.centred[side] else {}
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
    second = _second(problem)
    u, v = canonical(cross(data.fitted, (projectors[0], second), via), len(data.fitted))
    if problem.config.heads[1] != "identity":
        return u, v
    return into_second(u @ v.T, *_each(second)), None


def _second(problem: Problem) -> Projector:
    """Space 2, whitened, whether or not it is to stay as it is."""
    spreads = problem.data.spreads[1]
    return Projector(
        nn.Identity(),
        {modality: one.mean for modality, one in spreads.items()},
        whitenings={modality: one.whitening for modality, one in spreads.items()},
    )


def _each(second: Projector) -> tuple[Tensor, Tensor]:
    """A₂ and the mean of each of its modalities, (modalities, D2, D2) and (modalities, D2)."""
    return torch.stack(list(second.whitenings.values())), torch.stack(list(second.means.values()))


def _fill(head: Kernel, problem: Problem, projectors: tuple[Projector, Projector]) -> None:
    """Items and weights of a kernel's head, by pairs; space 2 stays as it is."""
    data, second = problem.data, _second(problem)
    pairs = ((data.fitted.first, projectors[0]), (data.fitted.second, second))
    one, two = (of.centre(float32(rows[:], "cpu"), problem.config.via) for rows, of in pairs)
    items, weights = kernel(head, one, two)
    whitenings, means = _each(second)
    twice = weights @ whitenings.double().mean(dim=0)  # what is pulled to the mean is much alike
    head.items = items.float()
    head.weights = into_second(twice, whitenings, means).float().contiguous()


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
        TrainingSet(*data.training(problem.config)),
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
