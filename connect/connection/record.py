"""The record of a connection: what it is and what made it. It is the content of config.json.

record = read_record(store / "connections" / "clip-clap")
record.spaces, record.pairs, record.validation

Here are the names of a connection's files too, where they are read, and how the Hub's are fetched.
"""

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from cmcr.connect.config import ConnectConfig, HeadKind
from cmcr.embeddings import Modality
from cmcr.errors import StoreError, VersionError
from cmcr.files import read_regular

FORMAT = 2  # of config.json
CONFIG = "config.json"
MODEL = "model.safetensors"
CARD = "README.md"

LIBRARIES = ("cmcr", "torch", "numpy", "safetensors")

REMAKE = "run the `cmcr connect` that made it again"

WHOLE = ".whole"  # within the folder: a finished connection that is about to replace the old one


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
    head: HeadKind = "identity"
    centred: tuple[Modality, ...] = ()  # modalities whose mean is subtracted
    turned: tuple[Modality, ...] = ()  # modalities that Ex-MCR's Head1 is for
    whitened: tuple[Modality, ...] = ()  # modalities with a matrix of their own; then all of them

    @model_serializer(mode="wrap")
    def _as_before(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What is not whitened is written as it was before anything could be."""
        content: dict[str, Any] = fields(self)
        return content if self.whitened else {k: v for k, v in content.items() if k != "whitened"}


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
    ridge_strengths: dict[str, float] = {}  # what its pairs chose for `ridge` beside it
    # What was found in the pools: `found` pairs, whether they are `kept`, and the log-likelihood of
    # held-out known pairs `with` and `without` them, and with `decoys` in their place. Where no
    # pair was known, the `agreement` of both Gram matrices, that by `chance`, how many `starts`
    # there were, and how often some of the pairs led to all of them again (`agreed`).
    pools: dict[str, int | float | bool] = {}
    # Training rows aggregated from the bridge items, and from the memory of the first and of the
    # second space: 0 where there is none. Empty where the bridge items are all.
    trained_on: dict[str, int] = {}
    device: str = "cpu"
    versions: dict[str, str] = {}
    model_sha256: str = ""  # filled in when the weights are written

    @property
    def blind(self) -> bool:
        """Whether no pair was known."""
        return self.config is not None and self.config.blind

    @model_serializer(mode="wrap")
    def _as_before(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without pools, or other training rows, it is written as before there were any."""
        content: dict[str, Any] = fields(self)
        later = ("pools", "trained_on")
        return {k: v for k, v in content.items() if k not in later or content[k]}

    @model_validator(mode="before")
    @classmethod
    def _bridge_alone_before(cls, content: Any) -> Any:
        """What was made before `centric` was a setting was trained on the bridge items."""
        if not isinstance(content, dict):
            return content
        configs = {key: one for key in ("config", "requested")
                   if isinstance(one := content.get(key), dict)}  # fmt: skip
        return content | {key: {"centric": ("bridge",)} | one for key, one in configs.items()}


def current(folder: Path) -> Path:
    """Where the files of the connection in `folder` are to be read."""
    whole = folder / WHOLE
    return whole if whole.is_dir() else folder


def read_record(path: Path) -> Record:
    """The record of the connection in the folder `path`, its weights not looked at.

    Raises StoreError when it is not there, unfinished, damaged, or of another format.
    """
    content = read_content(path)
    try:
        return Record.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise _unreadable(path, f"{key} {first['msg']}") from None


def read_content(path: Path) -> dict[str, Any]:
    """What config.json in the folder `path` holds.

    Raises StoreError when it is not there, damaged, or of another format.
    """
    path = current(path)
    try:
        content = json.loads(read_regular(path / CONFIG))
    except FileNotFoundError:
        raise StoreError(
            "there is no finished connection: config.json is not there", where=path, fix=REMAKE
        ) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, str(error)) from None
    found = content.get("format") if isinstance(content, dict) else None
    if not isinstance(found, int):
        raise _unreadable(path, "it does not say its format")
    if found != FORMAT:
        raise VersionError(found, FORMAT, where=path / CONFIG)
    fields: dict[str, Any] = content
    return fields


def _unreadable(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"the connection's record cannot be read: {reason}", where=path / CONFIG, fix=REMAKE
    )


def fetched(repository: str, **options: Any) -> Path:
    """The folder in the Hub's cache that a connection is in, fetched if need be."""
    try:
        files = ["*.json", "*.safetensors"]
        return Path(snapshot_download(repository, allow_patterns=files, **options))
    except (OSError, ValueError) as error:  # all errors of the Hub, and a name that none has
        raise StoreError(
            f"the connection {repository!r} is not a folder here, and cannot be fetched: "
            f"{str(error).splitlines()[0]}",
            fix="give a folder, or OWNER/NAME of a connection on the Hugging Face Hub; without "
            "network only what was fetched before can be had",
        ) from error


def library_versions() -> Mapping[str, str]:
    """Of what decides the numbers."""
    return {"python": platform.python_version()} | {
        library: version(library) for library in LIBRARIES
    }
