"""mteb's encoder protocol: batches of texts, images and sounds in, unit vectors of a space out."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.connect import JointSpace, load_connection
from cmcr.devices import find_device, float32
from cmcr.embeddings import Modality, identity
from cmcr.embeddings.schema import as_json
from cmcr.errors import MismatchError, UsageError
from cmcr.extract import Encoder, Waveform, encode_batch, load_encoder

if TYPE_CHECKING:
    from mteb.models import ModelMeta

MODALITIES: tuple[Modality, ...] = ("text", "image", "audio")  # columns of mteb's batches


class CmcrModel:
    """A joint space as mteb's `EncoderProtocol` (mteb/models/models_protocols.py).

    An input of several modalities is the unit vector of the mean of theirs, as mteb's own CLIP
    models take it.
    """

    def __init__(
        self,
        connection: JointSpace | str | Path,
        encoders: Mapping[str, Encoder | str],
        *,
        name: str = "cmcr/connection",
        device: str = "auto",
    ) -> None:
        """`encoders` are by their spaces; a modality that several read is the first one's.

        `connection` and encoders may be opened already or named. Raises MismatchError for a space
        or an encoder that the connection is not of, UsageError for no encoder, and what opening
        them raises.
        """
        torch_device = find_device(device)
        self.connection = (
            connection
            if isinstance(connection, JointSpace)
            else load_connection(connection).to(torch_device)
        )
        if not encoders:
            raise UsageError(
                "there is no encoder", fix='name one for each space: {"clip": "clip", ...}'
            )
        for space in encoders:
            self.connection.place_of(space)
        self.encoders = {
            space: load_encoder(one, device=str(torch_device)) if isinstance(one, str) else one
            for space, one in encoders.items()
        }
        for space, encoder in self.encoders.items():
            self.connection.check(space, identity(as_json(encoder.fingerprint())))
        self.name = name

    @property
    def modalities(self) -> list[Modality]:
        """That both an encoder reads and the connection projects."""
        return [modality for modality in MODALITIES if self._space(modality)]

    def _space(self, modality: Modality) -> str | None:
        for space, encoder in self.encoders.items():
            if modality in encoder.modalities and self.connection.knows(space, modality):
                return space
        return None

    @property
    def mteb_model_meta(self) -> "ModelMeta":
        """What mteb writes beside its results."""
        from mteb.models import ModelMeta

        return ModelMeta.create_empty(
            {
                "name": self.name,
                "revision": self.connection.record.model_sha256,
                "embed_dim": self.connection.joint_dim,
                "similarity_fn_name": "cosine",
                "modalities": self.modalities,
                "framework": ["PyTorch"],
            }
        )

    def encode(self, inputs: Iterable[Mapping[str, Any]], **_: Any) -> Float[np.ndarray, "n joint"]:
        """Unit vectors of the joint space, (n, joint) float32, for batches of columns.

        What mteb says of the task beside them has no use here. Raises MismatchError for an input
        of no modality that can be embedded.
        """
        return np.concatenate([self._encode(batch) for batch in inputs])

    def _encode(self, batch: Mapping[str, Sequence[Any]]) -> Float[np.ndarray, "n joint"]:
        columns = {one: batch[one] for one in self.modalities if one in batch}
        if not columns:
            raise MismatchError(
                f"a batch of {', '.join(sorted(batch))} cannot be embedded: the joint space takes "
                + ", ".join(self.modalities),
                fix="choose tasks of these modalities: mteb.get_tasks(modalities=[...])",
            )
        count = len(next(iter(columns.values())))
        total = torch.zeros(count, self.connection.joint_dim)
        for modality, column in columns.items():
            there = [row for row, item in enumerate(column) if item is not None]
            if there:
                total[there] += self._project(modality, [column[row] for row in there])
        empty = (total == 0).all(dim=1)
        if empty.any():
            raise MismatchError(
                f"{int(empty.sum())} of {count} inputs hold none of {', '.join(columns)}",
                fix="leave them out of the task's data set",
            )
        joint: np.ndarray = normalize(total, dim=1).numpy()
        return joint

    def _project(self, modality: Modality, items: Sequence[Any]) -> Float[Tensor, "n joint"]:
        space = self._space(modality)
        assert space
        encoder = self.encoders[space]
        ready = [encoder.preprocess(modality, _decoded(modality, item)) for item in items]
        vectors = encode_batch(encoder, modality, torch.stack(ready))
        return self.connection.project(space, vectors, modality).cpu()

    def similarity(self, first: object, second: object) -> Float[Tensor, "n m"]:
        """Cosines between all rows of the one, (n, joint), and of the other, (m, joint)."""
        return _units(first) @ _units(second).T

    def similarity_pairwise(self, first: object, second: object) -> Float[Tensor, "n"]:
        """Cosines of row i of the one and of the other, (n, joint) each."""
        return (_units(first) * _units(second)).sum(dim=1)


def _units(vectors: Any) -> Float[Tensor, "n joint"]:
    rows = vectors if isinstance(vectors, Tensor) else np.atleast_2d(vectors)
    return normalize(float32(rows, "cpu").reshape(-1, rows.shape[-1]), dim=1)


def _decoded(modality: Modality, item: Any) -> Any:
    """A cell of mteb's column as encoders take it."""
    if modality != "audio":
        return item
    samples = np.atleast_2d(np.asarray(item["array"], np.float32))  # (channels, frames)
    return Waveform(samples, int(item["sampling_rate"]))
