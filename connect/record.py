"""The record of a connection: what it is and what made it. It is the content of config.json.

record = new_record(config, spaces, pairs, joint_dim=512, device="cuda")
record.model_dump_json(indent=2)
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version

from pydantic import BaseModel, ConfigDict

from cmcr.connect.config import ConnectConfig
from cmcr.connect.data import SpaceData, Spaces
from cmcr.connect.heads import Kind, Side
from cmcr.embeddings import Modality

FORMAT = 2
LIBRARIES = ("cmcr", "torch", "numpy", "safetensors")


class SpaceRecord(BaseModel):
    """One of the two spaces: which datasets of it were used, and what takes it into the joint one.

    A connection that somebody else trained knows neither its encoders nor its datasets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    encoder_identity: str | None = None
    encoder: dict[str, str] = {}  # its name, checkpoint and licence, as far as they are known
    dim: int
    bridge: Modality | None = None
    memory: Modality | None = None
    datasets: dict[str, str] = {}  # SPACE/MODALITY:DATASET → fingerprint
    head: Kind = "identity"
    centred: tuple[Modality, ...] = ()  # modalities whose mean is subtracted
    turned: tuple[Modality, ...] = ()  # modalities that Ex-MCR's Head1 is for


class Record(BaseModel):
    """A connection, in the order of `config.spaces`: space 1 first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    model: str  # as it stands in a table of results
    via: Modality | None
    config: ConnectConfig | None  # what made it
    requested: ConnectConfig | None = None  # what was asked for: `auto` becomes another
    imported: dict[str, str] = {}  # file and sha256 of a checkpoint that was trained elsewhere
    spaces: tuple[SpaceRecord, ...]  # two, or all of a chain
    joint_dim: int
    pairs: int = 0
    held_out: int = 0
    unmatched: tuple[int, int] = (0, 0)  # bridge rows whose id the other space does not have
    validation: dict[str, float] = {}
    device: str = "cpu"
    versions: dict[str, str] = {}
    model_sha256: str = ""  # filled in when the weights are written


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


def with_sides(
    records: tuple[SpaceRecord, SpaceRecord], sides: tuple[Side, Side], kinds: tuple[Kind, Kind]
) -> tuple[SpaceRecord, SpaceRecord]:
    """`records` that also say how `sides` take their space into the joint one."""
    first, second = (
        record.model_copy(
            update={"head": kind, "centred": tuple(side.means), "turned": side.turned}
        )
        for record, side, kind in zip(records, sides, kinds, strict=True)
    )
    return first, second


def library_versions() -> Mapping[str, str]:
    """Of what decides the numbers."""
    return {"python": platform.python_version()} | {
        library: version(library) for library in LIBRARIES
    }


def _encoder(space: SpaceData) -> dict[str, str]:
    made_by = space.bridge[0].manifest.encoder
    names = ("encoder", "checkpoint_sha256", "licence")
    return {name: str(made_by[name]) for name in names if made_by.get(name)}
