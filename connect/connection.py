"""A connection: two heads that take two spaces into one, and the record of what made them.

connection = load_connection(store / "connections" / "clip-clap")      # or a Hugging Face Hub id
connection.check("clap", dataset.encoder_identity)
joint = connection.project("clap", dataset.embeddings())      # (rows, joint), unit norm
connection.push_to_hub("me/clip-clap")

NAME/model.safetensors   Head_A.* is of space 1, Head_B.* of space 2, mean_A.MODALITY, turn_A.*
NAME/config.json         the record; written last: without it a connection is unfinished
NAME/README.md           the model card
NAME/training.jsonl      one row an epoch, for trained connections
"""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from jaxtyping import Float
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cmcr.connect.card import model_card
from cmcr.connect.config import ConnectConfig
from cmcr.connect.heads import Side, make_head
from cmcr.connect.record import FORMAT, Record, SpaceRecord
from cmcr.connect.swap import current
from cmcr.connect.vectors import Vectors, float32, refuse_what_has_no_direction, rows
from cmcr.embeddings import MODALITIES, Modality
from cmcr.errors import MismatchError, StoreError, UsageError, VersionError, near
from cmcr.files import replacing, sha256_file, write_text
from cmcr.typed import typed

CONFIG = "config.json"
MODEL = "model.safetensors"
CARD = "README.md"
BLOCK_ROWS = 65_536
_FETCHING = ("revision", "cache_dir", "force_download", "local_files_only", "token")

REMAKE = "run the `cmcr connect` that made it again"


class Connection(ModelHubMixin, library_name="cmcr", tags=["c-mcr", "multimodal"]):
    """Two spaces made one. `connect` makes and `load_connection` reads one."""

    def __init__(self, record: Record, sides: tuple[Side, ...]) -> None:
        """`sides` in the order of `record.spaces`."""
        self.record = record
        self.sides = sides
        for side in sides:
            side.head.requires_grad_(False).eval()
            side.turn.requires_grad_(False).eval()
        self.device = torch.device("cpu")

    def __repr__(self) -> str:
        record = self.record
        spaces = " + ".join(f"{space.name} ({space.dim})" for space in record.spaces)
        via = f", via {record.via}" if record.via else ""
        return f"<{type(self).__name__} {spaces} → {record.joint_dim}, {record.model}{via}>"

    @property
    def config(self) -> ConnectConfig | None:
        """How it was made; None for one that was trained elsewhere."""
        return self.record.config

    @property
    def model_name(self) -> str:
        """How it is called in a table of results."""
        return self.record.model

    @property
    def joint_dim(self) -> int:
        """Dimensions of the joint space."""
        return self.record.joint_dim

    def knows(self, space: str, modality: Modality) -> bool:
        """Whether `modality` of `space` can be projected: a centred one needs its mean."""
        return any(
            record.name == space and (not record.centred or modality in record.centred)
            for record in self.record.spaces
        )

    def to(self, device: torch.device | str) -> "Connection":
        """Move to `device`; returns itself."""
        self.device = torch.device(device)
        for side in self.sides:
            side.to(device)
        return self

    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for.

        A connection that was trained elsewhere does not say what it was made for.
        """
        made_for = self.record.spaces[self._side(space)].encoder_identity
        if made_for not in (None, encoder_identity):
            raise MismatchError(
                f"the connection was made for another {space!r}: encoder, checkpoint or "
                f"preprocessing differ ({str(made_for)[:12]} there, {encoder_identity[:12]} here)",
                where=" and ".join(self.record.spaces[self._side(space)].datasets),
                cure="connect again with the new embeddings, or extract with the old encoder",
            )

    def check_modality(self, space: str, modality: Modality | None) -> None:
        """Raise unless `modality` of `space` can be projected, as `project` does."""
        record = self.record.spaces[self._side(space)]
        if modality is not None and modality not in MODALITIES:
            raise UsageError(
                f"there is no modality {modality!r}", cure=f"one of: {', '.join(MODALITIES)}"
            )
        if modality is None and (special := record.centred or record.turned):
            raise UsageError(
                f"{self.model_name} treats the modalities of {space} each in its own way, "
                "and none was named",
                cure=f"project(..., modality=...), such as {special[0]!r}",
            )
        if record.centred and modality not in record.centred:
            raise MismatchError(
                f"the connection has no mean for {space}/{modality}",
                cure=f"it has: {', '.join(record.centred)}; connect again with that as memory",
            )

    @torch.no_grad()
    def project(
        self, space: str, embeddings: Vectors, modality: Modality | None = None
    ) -> Float[Tensor, "n joint"]:
        """Embeddings of `space`, (n, D) of any float precision, in the joint space.

        An array, a tensor, or a list of lists. They are L2-normalised before and after; the
        result is float32 on this connection's device. A centred connection and Ex-MCR need
        `modality`. Raises MismatchError for a space, a dim or a modality that it was not made for,
        UsageError for a modality left out or unknown, SourceError for rows that are not finite or
        zero.
        """
        given = rows(embeddings, self.record.spaces[self._side(space)].dim, space)
        self.check_modality(space, modality)
        blocks = []
        for start in range(0, max(len(given), 1), BLOCK_ROWS):
            block = float32(given[start : start + BLOCK_ROWS], self.device)  # (rows, D)
            refuse_what_has_no_direction(block, space, start)
            blocks.append(self.joined(space, block, modality))
        return torch.cat(blocks)  # (n, joint)

    @typed
    def joined(
        self, space: str, block: Float[Tensor, "n d"], modality: Modality | None
    ) -> Float[Tensor, "n joint"]:
        """`project` without looking at what it is given."""
        return self.sides[self._side(space)].project(block, modality)

    def save(self, path: Path) -> None:
        """Write the connection into the folder `path`, the record last."""
        (path / CONFIG).unlink(missing_ok=True)
        with replacing(path / MODEL) as unfinished:
            save_file(_state(self.sides), unfinished)
        self.record = self.record.model_copy(update={"model_sha256": sha256_file(path / MODEL)})
        write_text(path / CARD, model_card(self.record))
        write_text(path / CONFIG, self.record.model_dump_json(indent=2) + "\n")

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> "Connection":
        """What `from_pretrained` calls: a folder, or a repository of the Hub."""
        if Path(model_id).is_dir():
            return load_connection(Path(model_id))
        return load_connection(_fetched(model_id, **{key: options[key] for key in _FETCHING}))

    def _side(self, space: str) -> int:
        names = [record.name for record in self.record.spaces]
        if space not in names:
            raise MismatchError(
                f"the connection is between {' and '.join(names)}, not of {space}",
                cure=f"{near(space, names)}; or connect that space first",
            )
        return names.index(space)


def load_connection(path: Path | str) -> Connection:
    """Read the connection in the folder `path`, on the CPU, or fetch OWNER/NAME from the Hub.

    Raises StoreError when it is not there, unfinished, damaged, or of another format.
    """
    if isinstance(path, str) and not Path(path).exists() and path.count("/") == 1:
        path = _fetched(path)
    path = current(Path(path))
    if "links" in read_content(path):
        from cmcr.connect.chain import load_chain  # it is made of connections

        return load_chain(path)
    record = read_record(path)
    model = path / MODEL
    if not model.exists() or sha256_file(model) != record.model_sha256:
        raise StoreError("the weights are not the ones that were written", where=model, cure=REMAKE)
    try:
        return Connection(record, sides_of(record, load_file(model)))
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise StoreError(
            f"the weights do not fit the record: {reason}", where=model, cure=REMAKE
        ) from None


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
        content = json.loads((path / CONFIG).read_bytes())
    except FileNotFoundError:
        raise StoreError(
            "there is no finished connection: config.json is not there", where=path, cure=REMAKE
        ) from None
    except ValueError as error:
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
        f"the connection's record cannot be read: {reason}", where=path / CONFIG, cure=REMAKE
    )


def _fetched(repository: str, **options: Any) -> Path:
    """The folder in the Hub's cache that a connection is in, fetched if need be."""
    try:
        files = ["*.json", "*.safetensors"]
        return Path(snapshot_download(repository, allow_patterns=files, **options))
    except (OSError, ValueError) as error:  # all errors of the Hub, and a name that none has
        raise StoreError(
            f"the connection {repository!r} is not a folder here, and cannot be fetched: "
            f"{str(error).splitlines()[0]}",
            cure="give a folder, or OWNER/NAME of a connection on the Hugging Face Hub; without "
            "network only what was fetched before can be had",
        ) from error


def sides_of(record: Record, state: dict[str, Tensor]) -> tuple[Side, Side]:
    """Both sides that `record` describes, with the weights of `state`.

    Raises RuntimeError or KeyError for weights that do not fit.
    """
    first, second = (
        _side(space, record.joint_dim, letter, state)
        for letter, space in zip("AB", record.spaces, strict=True)
    )
    return first, second


def _side(space: SpaceRecord, joint_dim: int, letter: str, state: dict[str, Tensor]) -> Side:
    with torch.device("meta"):
        head = make_head(space.head, space.dim, joint_dim)
        turn = nn.Linear(space.dim, space.dim) if space.turned else nn.Identity()
    for name, module in ((f"Head_{letter}.", head), (f"turn_{letter}.", turn)):
        own = {
            key.removeprefix(name): value for key, value in state.items() if key.startswith(name)
        }
        module.load_state_dict(own, assign=True)
    means = {modality: state[f"mean_{letter}.{modality}"] for modality in space.centred}
    return Side(head, means, turn, space.turned)


def _state(sides: tuple[Side, ...]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for letter, side in zip("AB", sides, strict=True):
        for name, module in ((f"Head_{letter}", side.head), (f"turn_{letter}", side.turn)):
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        state |= {f"mean_{letter}.{name}": mean for name, mean in side.means.items()}
    return {name: value.contiguous().cpu() for name, value in state.items()}
