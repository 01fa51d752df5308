"""A connection: two heads that take two spaces into one, and the record of what made them.

connection = load_connection(store / "connections" / "clip-clap")
connection.check("clap", dataset.encoder_identity)
joint = connection.project("clap", dataset.embeddings())      # (rows, joint), unit norm

NAME/model.safetensors   Head_A.* is of space 1, Head_B.* of space 2, mean_A.MODALITY, mean_B
NAME/config.json         the record; written last: without it a connection is unfinished
NAME/training.jsonl      one row an epoch, for trained connections
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmcr.connect.config import ConnectConfig
from cmcr.connect.projectors import make_projector
from cmcr.connect.record import FORMAT, Record
from cmcr.connect.vectors import float32
from cmcr.embeddings import Modality
from cmcr.errors import MismatchError, StoreError, UsageError
from cmcr.files import replacing, sha256_file, write_text
from cmcr.typed import typed

CONFIG = "config.json"
MODEL = "model.safetensors"
BLOCK_ROWS = 65_536

REMAKE = "run the `cmcr connect` that made it again"


Means = Mapping[Modality, Tensor]


class Connection:
    """Two spaces made one. `connect` makes and `load_connection` reads one."""

    def __init__(
        self,
        record: Record,
        heads: tuple[nn.Module, nn.Module],
        means: tuple[Means, Means] = ({}, {}),
    ) -> None:
        """`heads` and `means` in the order of `record.spaces`; means are (D,), by modality."""
        self.record = record
        parts = {
            "Head_A": heads[0],
            "Head_B": heads[1],
            "mean_A": _frozen(means[0]),
            "mean_B": _frozen(means[1]),
        }
        self.modules = nn.ModuleDict(parts).requires_grad_(False).eval()
        self.device = torch.device("cpu")

    @property
    def config(self) -> ConnectConfig:
        """How it was made."""
        return self.record.config

    @property
    def joint_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.record.joint_dim

    def to(self, device: torch.device | str) -> "Connection":
        """Move to `device`; returns itself."""
        self.device = torch.device(device)
        self.modules.to(self.device)
        return self

    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for."""
        made_for = self.record.spaces[self._side(space)].encoder_identity
        if made_for != encoder_identity:
            raise MismatchError(
                f"the connection was made for another {space!r}: encoder, checkpoint or "
                f"preprocessing differ ({made_for[:12]} there, {encoder_identity[:12]} here)",
                where=" and ".join(self.record.spaces[self._side(space)].datasets),
                cure="connect again with the new embeddings, or extract with the old encoder",
            )

    @torch.no_grad()
    @typed
    def project(
        self, space: str, embeddings: np.ndarray | Tensor, modality: Modality | None = None
    ) -> Float[Tensor, "n joint"]:
        """Embeddings of `space`, (n, D) of any float precision, in the joint space.

        They are L2-normalised before and after; the result is float32 on this connection's
        device. A centred connection needs `modality`. Raises MismatchError for a space, a dim or
        a modality that it was not made for, UsageError for a modality left out.
        """
        side = self._side(space)
        dim = self.record.spaces[side].dim
        if embeddings.ndim != 2 or embeddings.shape[1] != dim:
            raise MismatchError(
                f"embeddings of {space} are (n, {dim}), these are {tuple(embeddings.shape)}",
                cure="project each space's embeddings under its own name",
            )
        head = self.modules["Head_A" if side == 0 else "Head_B"]
        mean = self._mean(side, modality)
        blocks = []
        for start in range(0, max(len(embeddings), 1), BLOCK_ROWS):
            block = float32(embeddings[start : start + BLOCK_ROWS], self.device)  # (rows, D)
            blocks.append(F.normalize(head(F.normalize(block, dim=1) - mean), dim=1))
        return torch.cat(blocks)  # (n, joint)

    def save(self, path: Path) -> None:
        """Write the connection into the folder `path`, the record last."""
        (path / CONFIG).unlink(missing_ok=True)
        with replacing(path / MODEL) as unfinished:
            save_file(_contiguous(self.modules), unfinished)
        self.record = self.record.model_copy(update={"model_sha256": sha256_file(path / MODEL)})
        write_text(path / CONFIG, self.record.model_dump_json(indent=2) + "\n")

    def _side(self, space: str) -> int:
        names = [record.name for record in self.record.spaces]
        if space not in names:
            raise MismatchError(
                f"the connection is between {names[0]} and {names[1]}, not of {space}",
                cure="name one of its spaces, or connect that space first",
            )
        return names.index(space)

    def _mean(self, side: int, modality: Modality | None) -> Tensor | float:
        if not self.config.centre:
            return 0.0
        means = self.modules["mean_A" if side == 0 else "mean_B"]
        assert isinstance(means, nn.ParameterDict)
        if modality is None:
            raise UsageError(
                f"{self.config.model_name} subtracts a mean for each modality, and none was named",
                cure=f"project(..., modality=...) with one of: {', '.join(means.keys())}",
            )
        if modality not in means:
            raise MismatchError(
                f"the connection has no mean for {self.config.spaces[side]}/{modality}",
                cure=f"it has: {', '.join(means.keys())}; connect again with that as memory",
            )
        mean: Tensor = means[modality]
        return mean


def load_connection(path: Path) -> Connection:
    """Read the connection in the folder `path`, on the CPU.

    Raises StoreError when it is not there, unfinished, damaged, or of a later format.
    """
    try:
        record = Record.model_validate_json((path / CONFIG).read_bytes())
    except FileNotFoundError:
        raise StoreError(
            "there is no finished connection: config.json is not there", where=path, cure=REMAKE
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise StoreError(
            f"the connection's record cannot be read: {key} {first['msg']}",
            where=path / CONFIG,
            cure=REMAKE,
        ) from None
    if record.format != FORMAT:
        raise StoreError(
            f"the connection has format {record.format}, this cmcr reads {FORMAT}",
            where=path / CONFIG,
            cure="use the cmcr that wrote it, or connect again",
        )
    model = path / MODEL
    if not model.exists() or sha256_file(model) != record.model_sha256:
        raise StoreError("the weights are not the ones that were written", where=model, cure=REMAKE)
    with torch.device("meta"):
        connection = Connection(record, _empty_heads(record), _empty_means(record))
    try:
        connection.modules.load_state_dict(load_file(model), assign=True)
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise StoreError(
            f"the weights do not fit the record: {reason}", where=model, cure=REMAKE
        ) from None
    connection.modules.requires_grad_(False)
    return connection


def _empty_heads(record: Record) -> tuple[nn.Module, nn.Module]:
    """The heads that `record` describes, without their weights' values."""
    config, (dim1, dim2) = record.config, (space.dim for space in record.spaces)
    if config.method == "c-mcr":
        first, second = (
            make_projector(config.projector, dim, record.joint_dim) for dim in (dim1, dim2)
        )
        return first, second
    if config.method == "identity":
        return nn.Identity(), nn.Identity()
    return nn.Linear(dim1, dim2, bias=False), nn.Identity()


def _empty_means(record: Record) -> tuple[Means, Means]:
    if not record.config.centre:
        return {}, {}
    first, second = (
        {
            modality: torch.empty(space.dim)
            for modality in (space.bridge, space.memory)
            if modality is not None
        }
        for space in record.spaces
    )
    return first, second


def _frozen(means: Means) -> nn.ParameterDict:
    return nn.ParameterDict(
        {name: nn.Parameter(mean.float(), requires_grad=False) for name, mean in means.items()}
    )


def _contiguous(modules: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous().cpu() for name, tensor in modules.state_dict().items()}
