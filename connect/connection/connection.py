"""A connection: two projectors that take two spaces into one, and the record of what made them.

connection = load_connection(store / "connections" / "clip-clap")      # or a Hugging Face Hub id
connection.check("clap", dataset.encoder_identity)
joint = connection.project("clap", dataset.embeddings())      # (rows, joint), unit norm
connection.push_to_hub("me/clip-clap")

NAME/model.safetensors   Head_A.*, turn_A.*, mean_A.MODALITY and whitening_A.MODALITY of space 1,
                         with B of space 2
NAME/config.json         the record; written last: without it a connection is unfinished
NAME/README.md           the model card
NAME/training.jsonl      one row an epoch, for trained connections
"""

from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from cmcr.connect.connection.base import JointSpace
from cmcr.connect.connection.model_card import model_card
from cmcr.connect.connection.projectors import Projector, make_head
from cmcr.connect.connection.record import (
    CARD,
    CONFIG,
    MODEL,
    Record,
    SpaceRecord,
)
from cmcr.embeddings import Modality, check_modality
from cmcr.errors import MismatchError, UsageError
from cmcr.files import replacing, sha256_file, write_text
from cmcr.typed import typed


class Connection(JointSpace):
    """Two spaces made one. `connect` makes and `load_connection` reads one."""

    def __init__(self, record: Record, projectors: tuple[Projector, ...]) -> None:
        """`projectors` in the order of `record.spaces`."""
        self.record = record
        self.projectors = projectors
        for projector in projectors:
            projector.head.requires_grad_(False).eval()
            projector.turn.requires_grad_(False).eval()
        self.device = torch.device("cpu")

    def knows(self, space: str, modality: Modality) -> bool:
        """Whether `modality` of `space` can be projected.

        Where others are centred, one without rows of its own is not, and has the bridge's A.
        """
        return any(record.name == space for record in self.record.spaces)

    def to(self, device: torch.device | str) -> Self:
        """Move to `device`; returns itself."""
        self.device = torch.device(device)
        for projector in self.projectors:
            projector.to(device)
        return self

    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for.

        A connection that was trained elsewhere does not say what it was made for.
        """
        made_for = self.record.spaces[self.place_of(space)].encoder_identity
        if made_for not in (None, encoder_identity):
            raise MismatchError(
                f"the connection was made for another {space!r}: encoder, checkpoint or "
                f"preprocessing differ ({str(made_for)[:12]} there, {encoder_identity[:12]} here)",
                where=" and ".join(self.record.spaces[self.place_of(space)].datasets),
                fix="connect again with the new embeddings, or extract with the old encoder",
            )

    def check_modality(self, space: str, modality: Modality | None) -> None:
        """Raise unless `modality` of `space` can be projected, as `project` does."""
        record = self.record.spaces[self.place_of(space)]
        if modality is not None:
            check_modality(modality)
        if modality is None and (special := record.centred or record.turned):
            raise UsageError(
                f"{self.model_name} treats the modalities of {space} each in its own way, "
                "and none was named",
                fix=f"project(..., modality=...), such as {special[0]!r}",
            )

    @typed
    def joined(
        self, space: str, block: Float[Tensor, "n d"], modality: Modality | None
    ) -> Float[Tensor, "n joint"]:
        """`project` without looking at what it is given."""
        return self.projectors[self.place_of(space)].project(block, modality)

    def save(self, path: Path | str) -> None:
        """Write the connection into the folder `path`, the record last."""
        path = Path(path)
        (path / CONFIG).unlink(missing_ok=True)
        with replacing(path / MODEL) as unfinished:
            save_file(_state(self.projectors), unfinished)
        self.record = self.record.model_copy(update={"model_sha256": sha256_file(path / MODEL)})
        write_text(path / CARD, model_card(self.record))
        write_text(path / CONFIG, self.record.model_dump_json(indent=2) + "\n")


def projectors_of(record: Record, state: dict[str, Tensor]) -> tuple[Projector, Projector]:
    """Both projectors that `record` describes, with the weights of `state`.

    Raises RuntimeError or KeyError for weights that do not fit.
    """
    first, second = (
        _projector(space, record.joint_dim, letter, state)
        for letter, space in zip("AB", record.spaces, strict=True)
    )
    return first, second


def _projector(
    space: SpaceRecord, joint_dim: int, letter: str, state: dict[str, Tensor]
) -> Projector:
    with torch.device("meta"):
        head = make_head(space.head, space.dim, joint_dim)
        turn = nn.Linear(space.dim, space.dim) if space.turned else nn.Identity()
    for name, module in ((f"Head_{letter}.", head), (f"turn_{letter}.", turn)):
        own = {
            key.removeprefix(name): value for key, value in state.items() if key.startswith(name)
        }
        module.load_state_dict(own, assign=True)
    means = {modality: state[f"mean_{letter}.{modality}"] for modality in space.centred}
    whitenings = {modality: state[f"whitening_{letter}.{modality}"] for modality in space.whitened}
    for modality, matrix in whitenings.items():
        if matrix.shape != (space.dim, space.dim) or modality not in means:
            raise KeyError(f"whitening_{letter}.{modality} is {tuple(matrix.shape)}")
    return Projector(head, means, turn, space.turned, whitenings)


def _state(projectors: tuple[Projector, ...]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for letter, projector in zip("AB", projectors, strict=True):
        for name, module in (
            (f"Head_{letter}", projector.head),
            (f"turn_{letter}", projector.turn),
        ):
            state |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        state |= {f"mean_{letter}.{name}": mean for name, mean in projector.means.items()}
        state |= {f"whitening_{letter}.{name}": a for name, a in projector.whitenings.items()}
    return {name: value.contiguous().cpu() for name, value in state.items()}
