"""A store to search in: texts and files in, items of any modality out.

    store = cmcr.open_store("stores/digits")
    for found in store.search("rain.wav", "photos/", places=["clip/image:photos"], k=5):
        print(found.name, [hit.item["id"] for hit in found.hits])

`cmcr search` is this function. Encoders and connections that were opened once stay open.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from cmcr.connect import JointSpace, load_connection
from cmcr.embeddings import (
    Dataset,
    Key,
    Modality,
    check_store,
    list_datasets,
    open_dataset,
)
from cmcr.embeddings.search.hubness import NNN, Hubness
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import OwnSpace, Place, Where, open_places
from cmcr.errors import CmcrError, UsageError, near
from cmcr.extract import (
    Asked,
    Encoder,
    embed_items,
    encoder_name,
    encoder_spec,
    open_encoder,
    read_queries,
    refuse_failures,
)

_WORTH_WORKERS = 512  # files


@dataclass(frozen=True)
class Found:
    """One query and the best of what was searched in; `asked` is several where they are one."""

    asked: Sequence[Asked]
    hits: Sequence[Hit]

    @property
    def name(self) -> str:
        """The query in words."""
        return " + ".join(one.name for one in self.asked)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "query": [{"modality": one.modality, "input": one.name} for one in self.asked],
            "results": [hit.as_dict() for hit in self.hits],
        }


@dataclass(frozen=True)
class Answer:
    """All that a search found, in what space, and which inputs of a folder were left out."""

    found: Sequence[Found]
    connection: str | None
    spaces: Mapping[Modality, str]  # that each modality of the queries was embedded in
    failures: Sequence[Mapping[str, Any]]


@dataclass
class Store:
    """A folder of embeddings. `open_store` makes one."""

    path: Path
    device: str = "cpu"
    checkpoints: Mapping[str, Path] = field(default_factory=dict)  # of each space, if not the usual
    _encoders: dict[str, Encoder] = field(default_factory=dict, repr=False)
    _connections: dict[Path, JointSpace] = field(default_factory=dict, repr=False)

    def search(
        self,
        *queries: str,
        places: Sequence[str],
        connection: str | Path | None = None,
        space: str | None = None,
        modality: Modality | None = None,
        k: int = 10,
        together: bool = False,
        weights: Sequence[float] = (),
        where: Where | None = None,
        index: bool = False,
        hubness: Hubness = "none",
        false_positives: float | None = None,
        workers: int = 0,
    ) -> Answer:
        """The `k` nearest items of `places` to each of `queries`, or to all of them `together`.

        A query is a text, a file or a folder of files; `places` are SPACE/MODALITY:DATASET, or
        SPACE/MODALITY where that is one dataset. Queries are embedded in `space`, else in the one
        of the first place that takes them. `connection` is a name or a folder, else the only one
        of the store; none is needed where all happens in one space.

        `weights` go with `together`, one a query: their joint vectors are added by them. `where`
        keeps rows by the values of their columns. `index` asks the FAISS indexes of the places.
        `hubness` "nnn" corrects scores for hubs. With `false_positives` an item is found only if
        no larger share of unrelated ones scores as high; it can be nothing. Of many files `workers`
        processes decode ahead of the encoder.

        Raises UsageError for what cannot be asked or is not there, SourceError for media that
        cannot be read, EncoderError for weights that are not there, MismatchError for another
        encoder or connection than the embeddings are of.
        """
        _check(queries, k, together, weights, index, hubness, false_positives)
        keys = [self.find(place) for place in places]
        if not keys:
            raise UsageError(
                "nothing says where to search",
                where=self.path,
                fix=near("", map(str, list_datasets(self.path))),
            )
        asked = read_queries(queries, modality)
        kinds = list(dict.fromkeys(one.modality for one in asked))
        folder = self._connection(connection, keys, kinds, space)
        joint = None if folder is None else self._opened(folder)
        spaces = {kind: self._space(joint, kind, keys, space) for kind in kinds}
        if joint is None:
            there = open_places(self.path, keys, where or {})
            _refuse_two_encoders(there)
        else:
            there = joint.open_places(self.path, keys, where or {})
        if index:
            _refuse_what_no_index_holds(joint, there, where)
        vectors, failures = self._embedded(asked, spaces, workers)
        refuse_failures(asked, failures)
        good = [at for at in range(len(asked)) if at in vectors]
        asked = [asked[at] for at in good]
        own: JointSpace | OwnSpace = OwnSpace(self.path) if joint is None else joint
        made = [
            Query(
                own.project(spaces[one.modality], vectors[at][None], one.modality)[0].cpu(),
                {(spaces[one.modality], one.modality): 1.0},
                {one.item.uri, one.name},
            )
            for at, one in zip(good, asked, strict=True)
        ]
        groups = [asked] if together else [[one] for one in asked]
        if together:
            made = [_added(made, weights or [1.0] * len(made))]
        hits = search_places(self.path, own, made, there, k=k, hubness=hubness, index=index,
                             most_false=false_positives)  # fmt: skip
        found = [Found(group, own_hits) for group, own_hits in zip(groups, hits, strict=True)]
        name = None if folder is None else folder.resolve().name
        return Answer(found, name, spaces, failures)

    def find(self, place: str) -> Key:
        """The dataset that SPACE/MODALITY:DATASET names, or the only one of SPACE/MODALITY.

        Raises UsageError when there is none, or several.
        """
        there = list_datasets(self.path)
        fitting = [key for key in there if str(key) == place or str(key).startswith(f"{place}:")]
        if len(fitting) != 1:
            what = f"{place} could be {len(fitting)} datasets" if fitting else (
                f"the store has no dataset {place}")  # fmt: skip
            raise UsageError(what, where=self.path, fix=near(place, map(str, fitting or there)))
        return fitting[0]

    def _connection(
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
            return self._only_fitting(there, keys, kinds)
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
        self, there: Sequence[str], keys: Sequence[Key], kinds: Sequence[Modality]
    ) -> Path:
        """Of the connections `there` the smallest that has all that is asked and searched in."""
        fitting: dict[int, list[Path]] = {}
        for folder in (self.path / "connections" / name for name in there):
            joint = self._opened(folder)
            spaces = [space.name for space in joint.record.spaces]
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
        made_by = self._example(space).manifest.encoder
        return (
            any(one.name == space for one in joint.record.spaces)
            or made_by.get("checkpoint_sha256") == joint.record.model_sha256
        )

    def _opened(self, folder: Path) -> JointSpace:
        if folder not in self._connections:
            self._connections[folder] = load_connection(folder)
        return self._connections[folder]

    def _takes(self, space: str, modality: Modality) -> bool:
        """Whether the encoder of `space` takes `modality`."""
        made_by = self._example(space).manifest.encoder
        if made_by.get("imported") or "spaces" in made_by:  # a projection has spaces
            return False
        if space in self._encoders:
            return modality in self._encoders[space].modalities
        name = str(made_by["encoder"])
        if name.startswith("hf:"):  # which modalities it has, only its folder says
            return any(
                (key.space, key.modality) == (space, modality) for key in list_datasets(self.path)
            )
        return modality in encoder_spec(name).modalities

    def _space(
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
            encoder_name(self._example(space).manifest.encoder, space)

    def _example(self, space: str) -> Dataset:
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

    def _embedded(
        self, asked: Sequence[Asked], spaces: Mapping[Modality, str], workers: int
    ) -> tuple[dict[int, np.ndarray], list[dict[str, Any]]]:
        """The vectors of the inputs by their places, (D,) each, and what could not be embedded."""
        vectors: dict[int, np.ndarray] = {}
        failures: list[dict[str, Any]] = []
        for modality, space in spaces.items():
            places = [at for at, one in enumerate(asked) if one.modality == modality]
            items = [asked[at].item for at in places]
            ahead = workers if len(items) >= _WORTH_WORKERS else 0
            found, failed = embed_items(self._encoder(space), modality, items, ahead)
            failures += failed
            vectors |= {
                at: vector
                for at, vector in zip(places, found, strict=True)
                if np.isfinite(vector).all()
            }
        return vectors, failures

    def _encoder(self, space: str) -> Encoder:
        if space not in self._encoders:
            made_by = self._example(space).manifest.encoder
            weights = self.checkpoints.get(space)
            self._encoders[space] = open_encoder(made_by, space, weights, self.device)
        return self._encoders[space]


def open_store(
    path: str | Path, *, device: str = "cpu", checkpoints: Mapping[str, Path] | None = None
) -> Store:
    """The store in the folder `path`, to be searched in.

    `checkpoints` are files of weights by space, where an encoder's are not at their usual place.
    Raises UsageError where there is no store.
    """
    check_store(Path(path))
    return Store(Path(path), device, checkpoints or {})


def _check(
    queries: Sequence[str],
    k: int,
    together: bool,
    weights: Sequence[float],
    index: bool,
    hubness: Hubness,
    false_positives: float | None,
) -> None:
    """Raise UsageError for what contradicts itself."""
    if not queries:
        raise UsageError("nothing is searched for", fix="give a text, a file or a folder")
    if k < 1:
        raise UsageError(f"{k} results are none", fix="-k 1 or more")
    if weights and not together:
        raise UsageError("--weight goes with --together", fix="give --together, or no --weight")
    if index and hubness == NNN:
        raise UsageError(
            "an index of the store holds no correction for hubs",
            fix="give --index or --hubness; docs/search.md shows an index that holds it",
        )
    if false_positives is not None and not 0 < false_positives < 1:
        raise UsageError(
            f"{false_positives:g} is no share of unrelated items", fix="--false-positives 0.01"
        )


def _refuse_two_encoders(places: Sequence[Place]) -> None:
    first = places[0].dataset
    for place in places:
        if place.dataset.encoder_identity != first.encoder_identity:
            raise UsageError(
                f"{first.key} and {place.dataset.key} were made by two different encoders",
                where=place.dataset.folder,
                fix="search in one of them at a time",
            )


def _refuse_what_no_index_holds(
    joint: JointSpace | None, places: Sequence[Place], where: Where | None
) -> None:
    if where:
        raise UsageError(
            "an index holds all rows of a dataset", fix="give --index or --where, not both"
        )
    for place in places:
        if joint is not None and place.projection_of is None:
            raise UsageError(
                f"the index of {place.dataset.key} is of its own space, not of the joint one",
                where=place.dataset.folder,
                fix="`cmcr project` makes an index of the joint space: search in what it wrote",
            )


def _added(queries: Sequence[Query], weights: Sequence[float]) -> Query:
    """One query of several: their vectors added by weight."""
    if len(weights) != len(queries):
        raise UsageError(
            f"{len(queries)} inputs have {len(weights)} weights", fix="give one --weight an input"
        )
    total = sum(
        (weight * query.vector for weight, query in zip(weights, queries, strict=True)),
        start=torch.zeros_like(queries[0].vector),
    )
    if not float(total.norm()) > 1e-6:
        raise UsageError("the inputs cancel each other", fix="give other weights")
    kinds: dict[tuple[str, Modality], float] = {}
    for weight, query in zip(weights, queries, strict=True):
        for kind in query.kinds:
            kinds[kind] = kinds.get(kind, 0.0) + weight
    known = frozenset().union(*(query.known_as for query in queries))
    return Query(normalize(total, dim=0), kinds, known)
