"""What stands beside a connection in a table: the closed forms, fitted on what it was.

    for name, connection in baselines(store, record).items():
        connection.project(space, embeddings, modality)

`identity`, `procrustes`, `procrustes-centred`, `ridge`, `ridge-centred` and `cca` stand in every
table of results, so that a user sees whether a trained projector earned its keep.
"""

from pathlib import Path

from torch import nn

from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.projectors import Projector
from cmcr.connect.connection.record import Record
from cmcr.connect.methods.pools import as_before
from cmcr.connect.methods.problem import pose
from cmcr.connect.methods.solve import closed_forms, start, strengthened
from cmcr.embeddings import list_datasets


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
    posed = pose(store, record.config.model_copy(update=asked))
    fitted = {}
    for problem in closed_forms(as_before(posed, record)):
        known = record.ridge_strengths.get(problem.config.model_name)
        ready = problem.variant(ridge_strength=known) if known else strengthened(problem)
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
