"""The encoders and the connections of a store: which of them a search needs, each opened once.

models = Models(store)
folder = models.connection(None, keys, ["audio"], None)    # None: one space, as it is
models.encoder(models.space(models.opened(folder), "audio", keys, None))
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cmcr.connect import JointSpace, load_connection
from cmcr.embeddings import Dataset, Key, Modality, list_datasets, open_dataset
from cmcr.errors import CmcrError, UsageError, near
from cmcr.extract import Encoder, encoder_name, encoder_spec, open_encoder


@dataclass
class Models:
    """What a store's manifests name. `checkpoints` are weights by space, if not the usual."""

    path: Path
    device: str = "cpu"
    checkpoints: Mapping[str, Path] = field(default_factory=dict)
    _encoders: dict[str, Encoder] = field(default_factory=dict)
    _connections: dict[Path, JointSpace] = field(default_factory=dict)

    def connection(
        self,
        named: str | Path | None,
        keys: Sequence[Key],
        kinds: Sequence[Modality],
        space: str | None,
    ) -> Path | None:
        """The connection to search through; None where all lies in one space of its own."""
        there = sorted(path.parent.name for path in self.path.glob("connections/*/config.json"))
        if named is None:
            spaces = {key.space for key in keys} | ({space} if space else set())
            first = keys[0].space
            if spaces == {first} and all(self._takes(first, kind) for kind in kinds):
                return None
            return self._only_fitting(there, keys, kinds, space)
        folders = (self.path / "connections" / named, Path(named))
        folder = next((one for one in folders if (one / "config.json").exists()), None)
        if folder is None:
            raise UsageError(
                f"there is no connection {str(named)!r}",
                where=self.path / "connections",
                fix=near(str(named), there),
            )
        return folder

    def _only_fitting(
        self,
        there: Sequence[str],
        keys: Sequence[Key],
        kinds: Sequence[Modality],
        named: str | None,
    ) -> Path:
        """Of the connections `there` the smallest that has all that is asked and searched in."""
        fitting: dict[int, list[Path]] = {}
        for folder in (self.path / "connections" / name for name in there):
            joint = self.opened(folder)
            spaces = [space.name for space in joint.record.spaces]
            if named is not None and named not in spaces:
                continue
            if all(self._lies_in(joint, key.space) for key in keys) and all(
                any(self._embeds(joint, space, kind) for space in spaces) for kind in kinds
            ):
                fitting.setdefault(len(spaces), []).append(folder)
        smallest = fitting[min(fitting)] if fitting else []
        if len(smallest) == 1:
            return smallest[0]
        if not smallest:
            self._refuse_imported(keys)
            raise UsageError(
                "nothing connects what is asked with what is searched in",
                where=self.path / "connections",
                fix="make a connection with `cmcr connect`, or name another with --connection; "
                f"there is: {', '.join(there) or 'none'}",
            )
        names = ", ".join(folder.name for folder in smallest)
        raise UsageError(
            f"the store has {len(smallest)} connections that could be searched through",
            where=self.path / "connections",
            fix=f"give --connection, one of: {names}",
        )

    def _lies_in(self, joint: JointSpace, space: str) -> bool:
        """Whether datasets of `space` are in `joint`, or can be projected into it."""
        made_by = self.example(space).manifest.encoder
        return (
            any(one.name == space for one in joint.record.spaces)
            or made_by.get("checkpoint_sha256") == joint.record.model_sha256
        )

    def opened(self, folder: Path) -> JointSpace:
        """The connection in `folder`."""
        if folder not in self._connections:
            self._connections[folder] = load_connection(folder)
        return self._connections[folder]

    def _takes(self, space: str, modality: Modality) -> bool:
        """Whether the encoder of `space` takes `modality`."""
        made_by = self.example(space).manifest.encoder
        if made_by.get("imported") or "spaces" in made_by:  # a projection has spaces
            return False
        if space in self._encoders:
            return modality in self._encoders[space].modalities
        name = encoder_name(made_by, space)
        if name.startswith("hf:"):  # which modalities it has, only its folder says
            return any(
                (key.space, key.modality) == (space, modality) for key in list_datasets(self.path)
            )
        return modality in encoder_spec(name).modalities

    def space(
        self, joint: JointSpace | None, modality: Modality, keys: Sequence[Key], named: str | None
    ) -> str:
        """The space that queries of `modality` are embedded in."""
        near_by = [key.space for key in keys]
        if joint is None:
            return named or near_by[0]
        names = [one.name for one in joint.record.spaces]
        if named:
            joint.place_of(named)  # raises where it is none of them
            return named
        for space in dict.fromkeys([*(one for one in near_by if one in names), *names]):
            if self._embeds(joint, space, modality):
                return space
        self._refuse_imported(keys)
        raise UsageError(
            f"no encoder of {' or '.join(names)} takes {modality}",
            where=self.path,
            fix="search for another modality, or say which it is with --modality",
        )

    def _embeds(self, joint: JointSpace, space: str, modality: Modality) -> bool:
        """Whether the encoder of `space` is known, takes `modality`, and `joint` projects it."""
        there = any(key.space == space for key in list_datasets(self.path))
        return there and joint.knows(space, modality) and self._takes(space, modality)

    def _refuse_imported(self, keys: Sequence[Key]) -> None:
        """Raise UsageError where nothing can be embedded as what is searched in was."""
        for space in dict.fromkeys(key.space for key in keys):
            encoder_name(self.example(space).manifest.encoder, space)

    def example(self, space: str) -> Dataset:
        """A dataset of `space`, for what its encoder is."""
        keys = [key for key in list_datasets(self.path) if key.space == space]
        problem: CmcrError | None = None
        for key in keys:
            try:
                return open_dataset(self.path, key, check=False)
            except CmcrError as error:
                problem = error
        names = sorted({key.space for key in list_datasets(self.path)})
        raise problem or UsageError(
            f"the store has no space {space}", where=self.path, fix=near(space, names)
        )

    def encoder(self, space: str) -> Encoder:
        """What embedded `space`, with the very weights. Raises as `open_encoder` does."""
        if space not in self._encoders:
            made_by = self.example(space).manifest.encoder
            weights = self.checkpoints.get(space)
            self._encoders[space] = open_encoder(made_by, space, weights, self.device)
        return self._encoders[space]
