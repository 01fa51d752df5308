"""What every connection is, a pair or a chain: spaces in, one joint space out.

joint = connection.project("clap", embeddings, "audio")      # (n, joint), unit norm
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelHubMixin
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.record import Record
from cmcr.devices import Vectors, float32, refuse_what_has_no_direction, rows
from cmcr.embeddings import Key, Modality
from cmcr.embeddings.search.hubness import Hubness
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import Place, open_places
from cmcr.embeddings.search.where import RowFilter
from cmcr.errors import MismatchError, UsageError, near

BLOCK_ROWS = 65_536


class JointSpace(ABC, ModelHubMixin, library_name="cmcr", tags=["c-mcr", "multimodal"]):
    """Frozen spaces made one. `load_connection` reads either kind."""

    record: Record
    device: torch.device

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

    @abstractmethod
    def knows(self, space: str, modality: Modality) -> bool:
        """Whether `modality` of `space` can be projected."""

    def unpaired(self, space: str, modality: Modality) -> list[Key]:
        """The datasets of `modality` in `space` that it was made from, for what needs a sample."""
        names = self.record.spaces[self.place_of(space)].datasets
        return [key for key in map(Key.parse, names) if key.modality == modality]

    def keeps(self, space: str) -> bool:
        """Whether embeddings of `space` are the joint ones as they are, so its indexes hold."""
        record = self.record.spaces[self.place_of(space)]
        return record.head == "identity" and not (
            record.centred or record.turned or record.whitened
        )

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move to `device`; returns itself."""

    @abstractmethod
    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for.

        A connection that was trained elsewhere does not say what it was made for.
        """

    @abstractmethod
    def check_modality(self, space: str, modality: Modality | None) -> None:
        """Raise UsageError or MismatchError for a modality that cannot be projected."""

    @abstractmethod
    def joined(
        self, space: str, block: Float[Tensor, "n d"], modality: Modality | None
    ) -> Float[Tensor, "n joint"]:
        """`project` without looking at what it is given."""

    @abstractmethod
    def save(self, path: Path | str) -> None:
        """Write it into the folder `path`, the record last."""

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
        given = rows(embeddings, self.record.spaces[self.place_of(space)].dim, space)
        self.check_modality(space, modality)
        blocks = []
        for start in range(0, max(len(given), 1), BLOCK_ROWS):
            block = float32(given[start : start + BLOCK_ROWS], self.device)  # (rows, D)
            refuse_what_has_no_direction(block, space, start)
            blocks.append(self.joined(space, block, modality))
        return torch.cat(blocks)  # (n, joint)

    def place_of(self, space: str) -> int:
        """The place of `space` among the record's. Raises MismatchError for another one."""
        names = [record.name for record in self.record.spaces]
        if space not in names:
            raise MismatchError(
                f"the connection is between {' and '.join(names)}, not of {space}",
                fix=f"{near(space, names)}; or connect that space first",
            )
        return names.index(space)

    def search(
        self,
        store: Path,
        embeddings: Vectors,
        places: Sequence[str | Key],
        *,
        space: str,
        modality: Modality,
        k: int = 10,
        together: bool = False,
        where: RowFilter | None = None,
        index: bool = False,
        hubness: Hubness = "none",
        false_positives: float | None = None,
    ) -> list[list[Hit]]:
        """What is nearest to each of `embeddings`, (n, D) of `modality` in `space`, in `places`.

        `places` are SPACE/MODALITY:DATASET of `store`, of which the rows count that `where` leaves.
        `together` they are one query: the mean of their joint vectors, such as of a playlist.
        The rest is as in `cmcr.embeddings.search.mixed.search_places`; what is raised, too, beside
        MismatchError for embeddings or datasets that this connection was not made for.
        """
        vectors = self.project(space, embeddings, modality).cpu()  # (n, joint)
        if together:
            vectors = normalize(vectors.mean(dim=0, keepdim=True))
        queries = [Query(vector, {(space, modality): 1.0}) for vector in vectors]
        found = self.open_places(store, places, where or {})
        return search_places(store, self, queries, found, k=k, index=index, hubness=hubness,
                             most_false=false_positives)  # fmt: skip

    def open_places(
        self, store: Path, places: Sequence[str | Key], where: RowFilter
    ) -> list[Place]:
        """Datasets to search in: of this connection's spaces, or projected by it.

        Raises UsageError for one that is not there, MismatchError for one of something else.
        """
        keys = [Key.parse(place) if isinstance(place, str) else place for place in places]
        found = open_places(store, keys, where)
        self.check_places(found)
        return found

    def check_places(self, places: Iterable[Place]) -> None:
        """Raise MismatchError for one of neither space, nor projected by this connection."""
        for place in places:
            key, made_by = place.dataset.key, place.dataset.manifest.encoder
            if place.projection_of is None:
                self.check(key.space, place.dataset.encoder_identity)
                self.check_modality(key.space, key.modality)
            elif made_by.get("checkpoint_sha256") != self.record.model_sha256:
                raise MismatchError(
                    f"{key} was projected by another connection",
                    where=place.dataset.folder,
                    fix=f"search in {place.projection_of}, or project it again",
                )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(cls, **options: Any) -> Self:
        raise UsageError(
            "a connection of either kind is read by load_connection",
            fix="cmcr.load_connection(PATH or OWNER/NAME)",
        )
