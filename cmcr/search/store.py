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
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.connect import JointSpace
from cmcr.embeddings import Dataset, Key, Modality, check_store, list_datasets
from cmcr.embeddings.search.hubness import NNN, Hubness
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import OwnSpace, Place, open_places
from cmcr.embeddings.search.where import RowFilter
from cmcr.errors import MismatchError, UsageError, near
from cmcr.extract import Asked, embed_items, read_queries, refuse_failures
from cmcr.search.models import Models
from cmcr.search.stored import Stored, find_stored

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
    models: Models = field(repr=False)

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
        where: RowFilter | None = None,
        index: bool = False,
        hubness: Hubness = "none",
        false_positives: float | None = None,
        workers: int = 0,
    ) -> Answer:
        """The `k` nearest items of `places` to each of `queries`, or to all of them `together`.

        A query is a text, a file, a folder of files, or an item of the store,
        SPACE/MODALITY:DATASET#ID; `places` are SPACE/MODALITY:DATASET, or
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
        asked: list[Asked] = []
        stored: dict[int, Stored] = {}  # by place in `asked`
        known = find_stored(self.path, queries)
        _refuse_another_modality(modality, queries, list(known.values()))
        for at, word in enumerate(queries):
            if at in known:
                stored[len(asked)] = known[at]
                asked.append(known[at].asked)
            else:
                asked += read_queries([word], modality)
        fresh = [one for at, one in enumerate(asked) if at not in stored]
        kinds = list(dict.fromkeys(one.modality for one in fresh))
        near_by = [*keys, *(one.key for one in stored.values())]
        folder = self.models.connection(connection, near_by, kinds, space)
        joint = None if folder is None else self.models.opened(folder)
        spaces = {kind: self.models.space(joint, kind, keys, space) for kind in kinds}
        embedded = [self.models.example(one) for one in dict.fromkeys(spaces.values())]
        embedded += [one.dataset for one in stored.values()]
        if joint is None:
            there = open_places(self.path, keys, where or {})
            refuse_two_encoders([*embedded, *(place.dataset for place in there)])
        else:
            there = joint.open_places(self.path, keys, where or {})
            for dataset in embedded:
                joint.check(dataset.key.space, dataset.encoder_identity)
        if index:
            refuse_what_no_index_holds(joint, there, where)
        own: JointSpace | OwnSpace = OwnSpace(self.path) if joint is None else joint
        vectors, failures = self._projected(asked, stored, spaces, own, workers)
        refuse_failures(asked, failures)
        of = {at: (one.key.space, one.key.modality) for at, one in stored.items()}
        of |= {
            at: (spaces[asked[at].modality], asked[at].modality) for at in set(vectors) - set(of)
        }
        made = [
            Query(vectors[at], {of[at]: 1.0}, {asked[at].item.uri, asked[at].name})
            for at in sorted(vectors)
        ]
        asked = [one for at, one in enumerate(asked) if at in vectors]
        groups = [asked] if together else [[one] for one in asked]
        if together:
            made = [_added(made, weights or [1.0] * len(made))]
        hits = search_places(self.path, own, made, there, k=k, hubness=hubness, index=index,
                             most_false=false_positives)  # fmt: skip
        found = [Found(group, own_hits) for group, own_hits in zip(groups, hits, strict=True)]
        name = None if folder is None else folder.resolve().name
        told = {modality: space for space, modality in of.values()} | spaces
        return Answer(found, name, told, failures)

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

    def _projected(
        self,
        asked: Sequence[Asked],
        stored: Mapping[int, Stored],
        spaces: Mapping[Modality, str],
        joint: JointSpace | OwnSpace,
        workers: int,
    ) -> tuple[dict[int, Tensor], list[dict[str, Any]]]:
        """The inputs in the joint space by their places, (joint,) each, and what failed of them."""
        vectors: dict[int, Tensor] = {}
        failures: list[dict[str, Any]] = []
        for at, known in stored.items():
            space, modality = known.key.space, known.key.modality
            vectors[at] = joint.project(space, known.vector[None], modality).cpu()[0]
        fresh = [at for at in range(len(asked)) if at not in stored]
        for modality, space in spaces.items():
            places = np.array([at for at in fresh if asked[at].modality == modality])
            items = [asked[at].item for at in places]
            ahead = workers if len(items) >= _WORTH_WORKERS else 0
            found, failed = embed_items(self.models.encoder(space), modality, items, ahead)
            failures += failed
            good = np.isfinite(found).all(axis=1)  # (items,)
            if good.any():
                projected = joint.project(space, found[good], modality).cpu()  # (good, joint)
                vectors |= dict(zip(places[good].tolist(), projected, strict=True))
        return vectors, failures


def open_store(
    path: str | Path, *, device: str = "cpu", checkpoints: Mapping[str, Path] | None = None
) -> Store:
    """The store in the folder `path`, to be searched in.

    `checkpoints` are files of weights by space, where an encoder's are not at their usual place.
    Raises UsageError where there is no store.
    """
    check_store(Path(path))
    return Store(Path(path), Models(Path(path), device, checkpoints or {}))


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
    if index:
        refuse_correction(hubness)
    if false_positives is not None and not 0 < false_positives < 1:
        raise UsageError(
            f"{false_positives:g} is no share of unrelated items", fix="--false-positives 0.01"
        )


def refuse_correction(hubness: Hubness) -> None:
    """Raise UsageError: no index of the store is asked with a correction."""
    if hubness == NNN:
        raise UsageError(
            "an index of the store holds no correction for hubs",
            fix="give --index or --hubness; docs/search.md shows an index that holds it",
        )


def _refuse_another_modality(
    modality: Modality | None, queries: Sequence[str], known: Sequence[Stored]
) -> None:
    """A modality says how queries are read; items of the store have theirs."""
    if modality is None or len(known) < len(queries):
        return
    for one in known:
        if one.key.modality != modality:
            raise UsageError(
                f"{one.key}#{one.asked.item.id} is {one.key.modality}, not {modality}",
                where=f"--modality {modality}",
                fix="leave --modality out: items of the store have theirs",
            )


def refuse_two_encoders(datasets: Sequence[Dataset]) -> None:
    """Raise MismatchError where one space was made by two encoders."""
    for dataset in datasets:
        if dataset.encoder_identity != datasets[0].encoder_identity:
            raise MismatchError(
                f"{datasets[0].key} and {dataset.key} were made by two different encoders",
                where=dataset.folder,
                fix="extract both with the same encoder, checkpoint and preprocessing",
            )


def refuse_what_no_index_holds(
    joint: JointSpace | None, places: Sequence[Place], where: RowFilter | None
) -> None:
    """Raise UsageError for places, or rows of them, that an index does not answer for."""
    if where:
        raise UsageError(
            "an index holds all rows of a dataset", fix="give --index or --where, not both"
        )
    for place in places:
        key = place.dataset.key
        if joint is not None and place.projection_of is None and not joint.keeps(key.space):
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
