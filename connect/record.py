"""The record of a connection: what it is and what made it. It is the content of config.json.

record = new_record(config, spaces, pairs, joint_dim=512, device="cuda")
record.model_dump_json(indent=2)
"""

import platform
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from cmcr.connect.config import ConnectConfig
from cmcr.connect.data import Pairs, Spaces
from cmcr.embeddings import Modality

FORMAT = 1
LIBRARIES = ("cmcr", "torch", "numpy", "safetensors")


class SpaceRecord(BaseModel):
    """One of the two spaces, and which datasets of it were used."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    encoder_identity: str
    dim: int
    bridge: Modality
    memory: Modality | None
    datasets: dict[str, str]  # SPACE/MODALITY:DATASET → fingerprint


class Record(BaseModel):
    """A connection, in the order of `config.spaces`: space 1 first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    config: ConnectConfig
    spaces: tuple[SpaceRecord, SpaceRecord]
    joint_dim: int
    pairs: int
    unmatched: tuple[int, int]  # bridge rows of each space whose id the other does not have
    device: str
    versions: dict[str, str]
    model_sha256: str = ""  # filled in when the weights are written


def space_records(spaces: Spaces) -> tuple[SpaceRecord, SpaceRecord]:
    """What the record says of the opened datasets of both spaces."""
    first, second = (
        SpaceRecord(
            name=space.name,
            encoder_identity=space.encoder_identity,
            dim=space.dim,
            bridge=space.bridge_modality,
            memory=space.memory_modality,
            datasets={str(dataset.key): dataset.fingerprint for dataset in space.datasets},
        )
        for space in spaces
    )
    return first, second


def new_record(
    config: ConnectConfig,
    spaces: Spaces,
    pairs: Pairs,
    *,
    joint_dim: int,
    device: str,
) -> Record:
    """The record of a connection that was just made."""
    return Record(
        config=config,
        spaces=space_records(spaces),
        joint_dim=joint_dim,
        pairs=len(pairs.first),
        unmatched=pairs.unmatched,
        device=device,
        versions={"python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
    )
