"""Searches in the store, as `cmcr search` does them; everything here may wait for a disk.

plan = searcher.plan(request, "text", None)        # where the query is embedded, through what
searcher.find(request, plan, vector, known)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cmcr.connect import JointSpace, baselines
from cmcr.embeddings import Dataset, Key, Modality, open_dataset
from cmcr.embeddings.schema import read_manifest
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import OwnSpace, Place
from cmcr.embeddings.search.where import rows_where
from cmcr.errors import MismatchError, UsageError, near
from cmcr.extract import Encoder
from cmcr.search.store import (
    Store,
    refuse_correction,
    refuse_two_encoders,
    refuse_what_no_index_holds,
)
from cmcr.serve.gallery import Galleries
from cmcr.serve.schemas import DatasetRow, FoundItem, SearchRequest, ServiceError, Stored

_COLUMNS = ("id", "uri", "text")
_KEPT = 1 << 32  # bytes of galleries in the space that was searched


def baseline_names(joint: JointSpace) -> list[str]:
    """The closed forms that can stand in a connection's place."""
    pair = joint.config is not None and len(joint.record.spaces) == 2
    return ["cca", "procrustes-centred"] if pair else []


@dataclass(frozen=True)
class StoredItem:
    """An item of the store as a query: its vector, (D,), and what it goes by."""

    key: Key
    vector: np.ndarray
    known: frozenset[str]


@dataclass(frozen=True)
class Plan:
    """The space and modality of a query, and the connection that it is searched through."""

    space: str
    modality: Modality
    connection: str | None


@dataclass
class Searcher:
    """What is searched in, and through what. One thread at a time."""

    store: Store
    encoders: Mapping[str, Encoder]
    joint: Mapping[str, JointSpace]
    keys: Mapping[str, Key]
    media_roots: Sequence[Path]
    galleries: Galleries = field(default_factory=lambda: Galleries(_KEPT))
    _own: OwnSpace = field(init=False)
    _opened: dict[str, tuple[int, Dataset, pa.Table]] = field(default_factory=dict)
    _closed_forms: dict[str, Mapping[str, JointSpace]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._own = OwnSpace(self.store.path)

    def key(self, name: str) -> Key:
        """A dataset's key. Raises ServiceError 404."""
        if name not in self.keys:
            raise ServiceError(
                404, f"there is no dataset {name[:200]!r}; {near(name, self.keys)}", "datasets",
                "dataset_not_found",
            )  # fmt: skip
        return self.keys[name]

    def datasets(self) -> list[DatasetRow]:
        """What can be searched in, as it is now."""
        manifests = {
            name: read_manifest(key.folder(self.store.path)) for name, key in self.keys.items()
        }
        return [
            DatasetRow(id=name, space=key.space, modality=key.modality, rows=manifests[name].rows)
            for name, key in self.keys.items()
        ]

    def some_uris(self) -> Iterator[str]:
        """One of each dataset that has rows."""
        for name in self.keys:
            _, table = self.opened(name)
            if table.num_rows and (uri := table["uri"][0].as_py()):
                yield uri

    def opened(self, name: str) -> tuple[Dataset, pa.Table]:
        """A dataset as it is now, and the ids, uris and texts of its rows."""
        folder = self.key(name).folder(self.store.path)
        written = (folder / "manifest.json").stat().st_mtime_ns
        if self._opened.get(name, (None,))[0] != written:
            dataset = open_dataset(self.store.path, self.keys[name])
            self._opened[name] = written, dataset, dataset.table(_COLUMNS)
        return self._opened[name][1:]

    def stored(self, query: Stored) -> StoredItem:
        """The item that a query names. Raises ServiceError 404."""
        dataset, table = self.opened(query.dataset)
        row = pc.index(table["id"], pa.scalar(query.id, table["id"].type)).as_py()
        if row < 0:
            raise ServiceError(404, "there is no such item", "query", "item_not_found")
        (told,) = table.slice(row, 1).to_pylist()
        known = frozenset(one for one in (told["uri"], told["text"]) if one)
        (vector,) = next(dataset.chosen(np.array([row])))
        return StoredItem(self.keys[query.dataset], np.asarray(vector, np.float32), known)

    def plan(
        self, request: SearchRequest, modality: Modality | None, stored: StoredItem | None
    ) -> Plan:
        """How to search, chosen as `cmcr search` does. Raises ServiceError for what cannot be."""
        keys = [self.key(name) for name in dict.fromkeys(request.datasets)]
        space, _, through = (request.model or "").partition("@")
        if request.model is not None and space not in self.encoders and (space or not through):
            told = f"there is no space {space[:200]!r}; {near(space, self.encoders)}"
            raise ServiceError(404, told, "model", "model_not_found")
        named = request.connection or through or None
        if named is not None and named not in self.joint:
            raise ServiceError(
                404, f"there is no connection {named[:200]!r}; {near(named, self.joint)}",
                "connection", "connection_not_found",
            )  # fmt: skip
        models = self.store.models
        near_by = [*keys, *([stored.key] if stored else [])]
        kinds = [modality] if modality else []
        try:
            folder = models.connection(named, near_by, kinds, space or None)
            joint = None if folder is None else models.opened(folder)
            if stored is not None:
                own = stored.key.space, stored.key.modality
            else:
                assert modality is not None
                own = models.space(joint, modality, keys, space or None), modality
        except (UsageError, MismatchError) as error:
            served = ", ".join(self.joint) or "no connection"
            raise ServiceError(400, f"{error.what}; served: {served}", "connection") from error
        name = None if folder is None else folder.name
        if (name is not None and name not in self.joint) or (
            stored is None and own[0] not in self.encoders
        ):
            raise ServiceError(400, "what connects these is not served", "connection")
        if name is None and request.baseline is not None:
            raise ServiceError(400, "nothing is connected here: no baseline", "baseline")
        return Plan(*own, name)

    def find(
        self, request: SearchRequest, plan: Plan, vector: np.ndarray, known: frozenset[str]
    ) -> list[FoundItem]:
        """The nearest items. Raises ServiceError for what does not belong together."""
        keys = [self.key(name) for name in dict.fromkeys(request.datasets)]
        try:
            hits = self._hits(request, keys, plan, vector, known)
        except (UsageError, MismatchError) as error:
            raise ServiceError(400, error.what) from error
        return [self._told(hit) for hit in hits]

    def _hits(
        self,
        request: SearchRequest,
        keys: Sequence[Key],
        plan: Plan,
        vector: np.ndarray,
        known: frozenset[str],
    ) -> list[Hit]:
        path, where = self.store.path, request.filter
        embedded = self.store.models.example(plan.space)
        joint = None if plan.connection is None else self.joint[plan.connection]
        datasets = [self.opened(str(key))[0] for key in keys]
        places = [Place(dataset, rows_where(dataset, where)) for dataset in datasets]
        if joint is None:
            refuse_two_encoders([embedded, *datasets])
        else:
            joint.check(embedded.key.space, embedded.encoder_identity)
            joint.check_places(places)
        if request.index:
            refuse_correction(request.hubness)
            if request.baseline is not None:
                raise UsageError("an index is of the connection, not of a closed form")
            refuse_what_no_index_holds(joint, places, where)
        if joint is not None and request.baseline is not None:
            joint = self._closed_form(str(plan.connection), request.baseline)
        own: JointSpace | OwnSpace = self._own if joint is None else joint
        projected = own.project(plan.space, vector[None], plan.modality).cpu()[0]
        if not request.index:
            called = f"{plan.connection}/{request.baseline}"
            places = [
                self.galleries.place(place.dataset, place.rows, called, own) for place in places
            ]
        query = Query(projected, {(plan.space, plan.modality): 1.0}, known)
        (hits,) = search_places(
            path, own, [query], places, k=request.top_k, hubness=request.hubness,
            index=request.index, most_false=request.false_positives,
        )  # fmt: skip
        return hits

    def _closed_form(self, connection: str, name: str) -> JointSpace:
        joint = self.joint[connection]
        if name not in baseline_names(joint):
            raise ServiceError(
                400, f"{connection} has no baseline {name[:40]!r}; "
                f"{near(name, baseline_names(joint))}", "baseline",
            )  # fmt: skip
        if connection not in self._closed_forms:
            self._closed_forms[connection] = baselines(self.store.path, joint.record)
        if name not in self._closed_forms[connection]:
            raise ServiceError(400, "the store has lost what closed forms are made of", "baseline")
        return self._closed_forms[connection][name]

    def _told(self, hit: Hit) -> FoundItem:
        item = hit.item
        here = item.get("text") is not None or self.serves(str(item["uri"]))
        return FoundItem(
            rank=hit.rank,
            score=hit.score,
            cosine=hit.cosine,
            false_positives=hit.false_positives,
            dataset=hit.dataset,
            row=hit.row,
            id=item["id"],
            modality=self.keys[hit.dataset].modality,
            label=item.get("label"),
            text=item.get("text"),
            start=item.get("start"),
            end=item.get("end"),
            media=f"/v1/media/{hit.dataset}/{hit.row}" if here else None,
        )

    def media(self, dataset: str, row: int) -> tuple[Modality, str, str | None]:
        """Modality, uri and text of a row whose media may leave. Raises ServiceError 404."""
        _, table = self.opened(dataset)
        if not 0 <= row < table.num_rows:
            raise ServiceError(404, "there is no such item", code="item_not_found")
        (told,) = table.slice(row, 1).to_pylist()
        if told["text"] is None and not self.serves(str(told["uri"])):
            raise ServiceError(404, "the media of this item are not served", code="media_closed")
        return self.keys[dataset].modality, str(told["uri"]), told["text"]

    def serves(self, uri: str) -> bool:
        """Whether media of this uri may leave: what ships with cmcr, or lies below a root."""
        if uri.startswith("builtin:"):
            return True
        try:
            real = Path(uri.partition("#")[0]).resolve(strict=True)
        except (OSError, ValueError):
            return False
        return any(real.is_relative_to(root.resolve()) for root in self.media_roots)
