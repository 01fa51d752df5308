"""Connections that need no training, from opened spaces: they cost seconds.

    for name, connection in baselines(store, config).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge` and `ridge-centred` stand in every table
of results, so that a user sees whether a trained projector earned its keep.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from cmcr.connect.closed_form import mean_embedding, moments, procrustes, ridge
from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection import Connection, Means
from cmcr.connect.data import Pairs, SpaceData, Spaces, join, open_spaces
from cmcr.connect.record import new_record
from cmcr.errors import MismatchError


def baselines(store: Path, config: ConnectConfig) -> dict[str, Connection]:
    """Every closed form on the bridge pairs and memories of `config`, by its name in a table.

    `identity` is among them where both spaces have the same D. Raises UsageError for a dataset
    that is not in the store, StoreError for a damaged one, MismatchError without common ids.
    """
    spaces = open_spaces(store, config)
    pairs = join(*spaces)
    variants = [
        {"method": method, "centre": centre}
        for method in ("procrustes", "ridge")
        for centre in (False, True)
    ]
    if spaces[0].dim == spaces[1].dim:
        variants.insert(0, {"method": "identity", "centre": False})
    configs = [config.model_copy(update=variant) for variant in variants]
    return {config.model_name: fit(config, spaces, pairs) for config in configs}


def fit(config: ConnectConfig, spaces: Spaces, pairs: Pairs) -> Connection:
    """The connection of a closed form: space 1 is mapped into space 2, which stays.

    Raises MismatchError for `identity` between spaces of different D.
    """
    first, second = spaces
    means: tuple[Means, Means] = ({}, {})
    head: nn.Module = nn.Identity()
    if config.method == "identity":
        if first.dim != second.dim:
            raise MismatchError(
                f"identity needs equal dimensions, and {first.name} has {first.dim}, "
                f"{second.name} has {second.dim}",
                cure="--method procrustes takes spaces of any dimensions",
            )
    else:
        if config.centre:
            means = (_means(first, pairs.first), _means(second, pairs.second))
        head = nn.Linear(first.dim, second.dim, bias=False)
        head.weight = nn.Parameter(_matrix(config, pairs, means).T.float())
    record = new_record(config, spaces, pairs, joint_dim=second.dim, device="cpu")
    return Connection(record, (head, nn.Identity()), means)


def _matrix(config: ConnectConfig, pairs: Pairs, means: tuple[Means, Means]) -> Tensor:
    """W of the method, (D1, D2), float64."""
    mean1, mean2 = (
        mean.get(config.via, torch.zeros(block.shape[1], dtype=torch.float64))
        for mean, block in zip(means, (pairs.first, pairs.second), strict=True)
    )
    about_means = moments(pairs.first, pairs.second, mean1, mean2)
    if config.method == "procrustes":
        return procrustes(about_means)
    return ridge(about_means, config.ridge_strength)


def _means(space: SpaceData, bridge: Tensor) -> Means:
    """The mean embedding of each modality of `space`: of the bridge pairs, and of the memory."""
    means = {space.bridge_modality: mean_embedding([bridge], space.dim)}
    if space.memory_modality is not None:
        means[space.memory_modality] = mean_embedding(space.memory_blocks(), space.dim)
    return means
