"""More than two spaces in one: connections, one after another.

chain = load_connection(store / "connections" / "all")
chain.project("clap", embeddings, "audio")      # through link 1, then through link 2

A link is an ordinary connection; from the second on, one of its spaces is the joint space of the
links before. `connect.build_chain` makes them.

NAME/config.json       the links in their order; written last
NAME/link-1/, link-2/  connections
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from cmcr.connect.connection.base import JointSpace
from cmcr.connect.connection.connection import Connection
from cmcr.connect.connection.record import CONFIG, FORMAT, Record, SpaceRecord
from cmcr.embeddings import Modality
from cmcr.files import write_json


class Chain(JointSpace):
    """Several connections, one after another. `joints` are the names of the spaces between."""

    def __init__(self, links: Sequence[Connection], joints: Sequence[str]) -> None:
        self.links, self.joints = list(links), list(joints)
        last = links[-1].record
        spaces: dict[str, SpaceRecord] = {
            space.name: space
            for link in links
            for space in link.record.spaces
            if space.name not in joints
        }
        self.record = Record(
            model=last.model,
            via=None,
            config=None,
            spaces=tuple(spaces.values()),
            joint_dim=last.joint_dim,
            validation=last.validation,
            model_sha256=last.model_sha256,
        )
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Self:
        """Move to `device`; returns itself."""
        self.device = torch.device(device)
        for link in self.links:
            link.to(device)
        return self

    def knows(self, space: str, modality: Modality) -> bool:
        """Whether the first link that `space` goes through can project `modality`."""
        return any(link.knows(space, modality) for link in self.links)

    def keeps(self, space: str) -> bool:
        """Whether embeddings of `space` are the joint ones as they are: no link moves them."""
        first = self.links.index(self._first(space))
        later = zip(self.links[first + 1 :], self.joints[first:], strict=False)
        return self.links[first].keeps(space) and all(link.keeps(joint) for link, joint in later)

    def check(self, space: str, encoder_identity: str) -> None:
        """Raise MismatchError unless `encoder_identity` is the one this was made for."""
        self._first(space).check(space, encoder_identity)

    def check_modality(self, space: str, modality: Modality | None) -> None:
        """Raise UsageError or MismatchError for a modality that cannot be projected."""
        self._first(space).check_modality(space, modality)

    def joined(self, space: str, block: Tensor, modality: Modality | None) -> Tensor:
        """Embeddings of `space`, (n, D), in the joint space of all, (n, joint), unit norm.

        A joint space on its way through a later link is treated as its bridge modality is where
        that link does not know `modality`: the links before have closed the gap between them.
        """
        first = self.links.index(self._first(space))
        joined = self.links[first].joined(space, block, modality)  # (n, joint)
        for link, joint in zip(self.links[first + 1 :], self.joints[first:], strict=False):
            bridge = next(one.bridge for one in link.record.spaces if one.name == joint)
            known = modality is not None and link.knows(joint, modality)
            joined = link.joined(joint, joined, modality if known else bridge)
        return joined

    def save(self, path: Path | str) -> None:
        """Write the links into folders of `path`, and their order last."""
        path = Path(path)
        (path / CONFIG).unlink(missing_ok=True)
        for number, link in enumerate(self.links, 1):
            if not (path / f"link-{number}" / CONFIG).exists():
                link.save(path / f"link-{number}")
        names = [f"link-{number}" for number in range(1, len(self.links) + 1)]
        write_json(path / CONFIG, {"format": FORMAT, "links": names, "joints": self.joints})

    def _first(self, space: str) -> Connection:
        for link in self.links:
            if space not in self.joints and any(one.name == space for one in link.record.spaces):
                return link
        self.place_of(space)  # raises what names the spaces that there are
        raise AssertionError
