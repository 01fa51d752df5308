"""What the server does, without HTTP: inputs to vectors of a space or a joint one, and searches.

service = Service(store, spaces=["clip", "clap"], connections=["mine"], limits=Limits())
await service.begin()
rows = await service.embed("clap@mine", inputs, truncate="END")
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cmcr.connect import JointSpace, baselines
from cmcr.embeddings import Dataset, Key, Modality, open_dataset
from cmcr.embeddings.search.mixed import Hit, Query, search_places
from cmcr.embeddings.search.places import OwnSpace, open_places
from cmcr.errors import MismatchError, StoreError, UsageError, near
from cmcr.extract import Encoder, Item, is_textual, lookup_imports
from cmcr.search.store import Store
from cmcr.serve.batching import Batcher
from cmcr.serve.decoding import Decoders, Work
from cmcr.serve.limits import Limits
from cmcr.serve.metrics import Metrics
from cmcr.serve.schemas import Given, Input, InputObject, SearchRequest, ServiceError, Stored

log = logging.getLogger(__name__)

_SUFFIXES = {"image": ".png", "audio": ".wav", "pointcloud": ".ply"}
_OF_TYPES = {"plain": "txt", "jpeg": "jpg", "mpeg": "mp3", "x-wav": "wav", "svg+xml": "svg"}


@dataclass(frozen=True)
class Embedded:
    """A vector, (D,) or (joint,), and whether a text was cut for it."""

    vector: np.ndarray
    truncated: bool


@dataclass
class Service:
    """Encoders, connections and datasets of one store."""

    store: Store
    spaces: Sequence[str]
    connections: Sequence[str]
    datasets: Sequence[str]
    limits: Limits
    workers: int = 2
    batch: int = 64
    media_roots: Sequence[Path] = ()
    metrics: Metrics = field(default_factory=Metrics)
    warm: bool = False
    draining: bool = False

    @property
    def ready(self) -> bool:
        """Whether more requests should come here."""
        return self.warm and not self.draining

    def load(self) -> None:
        """Load encoders and connections. Raises what `open_encoder` and `load_connection` do."""
        self.encoders: dict[str, Encoder] = {
            space: self.store.models.encoder(space) for space in self.spaces
        }
        self.joint: dict[str, JointSpace] = {
            name: self.store.models.opened(self.store.path / "connections" / name)
            for name in self.connections
        }
        self.keys = {name: Key.parse(name) for name in self.datasets}
        self.opened: dict[str, Dataset] = {
            name: open_dataset(self.store.path, key) for name, key in self.keys.items()
        }
        self.closed_forms: dict[str, dict[str, JointSpace]] = {}
        modules = sorted({type(encoder).__module__ for encoder in self.encoders.values()})
        more = [name for encoder in self.encoders.values()
                for name in getattr(encoder, "worker_imports", ())]  # fmt: skip
        firsts = [dataset.table(["uri"])["uri"][0].as_py() for dataset in self.opened.values()]
        more += lookup_imports(filter(None, firsts))
        work = Work(self.encoders, self.limits, self.media_roots)
        self.decoders = Decoders(work, self.workers, [*modules, *more])

    async def begin(self) -> None:
        """Start the batchers, and embed a text with each encoder that takes texts."""
        self.searching = ThreadPoolExecutor(1, "search")
        self.batchers = {
            space: Batcher(encoder, self.batch, partial(self.metrics.batch, space))
            for space, encoder in self.encoders.items()
        }
        for space, batcher in self.batchers.items():
            batcher.begin()
            if "text" in self.encoders[space].modalities:
                await self._encode(space, "text", Item("", "", "warm up"), "END")
        self.warm = True

    async def end(self) -> None:
        """Let everything go."""
        self.warm = False
        for batcher in self.batchers.values():
            await batcher.end()
        self.searching.shutdown(cancel_futures=True)
        await asyncio.to_thread(self.decoders.close)

    # What there is

    def models(self) -> list[dict[str, Any]]:
        """Every space, and every space of a connection."""
        rows = [
            {
                "id": space,
                "modalities": sorted(encoder.modalities),
                "dimensions": encoder.dim,
                "connection": None,
                "baselines": [],
            }
            for space, encoder in self.encoders.items()
        ]
        for name, joint in self.joint.items():
            rows += [
                {
                    "id": f"{space}@{name}",
                    "modalities": sorted(
                        one for one in encoder.modalities if joint.knows(space, one)
                    ),
                    "dimensions": joint.joint_dim,
                    "connection": name,
                    "baselines": self.baseline_names(joint),
                }
                for space, encoder in self.encoders.items()
                if space in [one.name for one in joint.record.spaces]
            ]
        return rows

    @staticmethod
    def baseline_names(joint: JointSpace) -> list[str]:
        """The closed forms that can stand in a connection's place."""
        return ["cca", "procrustes-centred"] if joint.config is not None else []

    # Embedding

    async def embed(self, model: str, inputs: Sequence[Input], truncate: str) -> list[Embedded]:
        """The vectors of inputs in `model`, a space or SPACE@CONNECTION.

        Raises ServiceError for a model or a modality that there is not, and for an input that
        cannot be read.
        """
        space, _ = self.model(model)
        return await self.embed_items(model, [self.read(space, one) for one in inputs], truncate)

    async def embed_items(
        self, model: str, read: Sequence[tuple[Modality, Item]], truncate: str
    ) -> list[Embedded]:
        """The vectors of items, each of a modality. As `embed`."""
        space, joint = self.model(model)
        found = await self._together(
            [self._encode(space, modality, item, truncate) for modality, item in read]
        )
        if joint is None:
            return found
        joined = await self._projected(joint, space, [modality for modality, _ in read], found)
        return [
            Embedded(vector.numpy(), one.truncated)
            for vector, one in zip(joined, found, strict=True)
        ]

    def model(self, name: str) -> tuple[str, JointSpace | None]:
        """The space and the connection that a model's name means. Raises ServiceError 404."""
        space, mark, connection = name.partition("@")
        known = [row["id"] for row in self.models()]
        if name not in known:
            raise ServiceError(
                404, f"there is no model {name!r}; {near(name, known)}", "model", "model_not_found"
            )
        return space, self.joint[connection] if mark else None

    def read(self, space: str, given: Input) -> tuple[Modality, Item]:
        """The modality and the item of one input. Raises ServiceError for what is none."""
        told = {"text": given} if isinstance(given, str) else given.given()
        ((modality, value),) = told.items()
        if modality not in self.encoders[space].modalities:
            takes = ", ".join(sorted(self.encoders[space].modalities))
            raise ServiceError(400, f"{space} takes no {modality[:40]}; it takes {takes}", "input")
        if is_textual(modality):
            self.limits.refuse_text(value)
            return modality, Item("input", "input", value)
        suffix = given.format if isinstance(given, InputObject) else None
        return modality, self.item(modality, *_decoded(value, modality, suffix))

    @staticmethod
    def item(modality: Modality, content: bytes, suffix: str) -> Item:
        """Encoded media as an item: nothing of a request is ever opened as a path."""
        if not content:
            raise ServiceError(400, f"the {modality} is empty", "input")
        return Item("input", f"input.{suffix.lstrip('.').lower()}", content)

    async def _together(self, waiting: Sequence[Any]) -> list[Any]:
        """All results in order; where one fails the others are given up."""
        tasks = [asyncio.ensure_future(one) for one in waiting]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _encode(self, space: str, modality: Modality, item: Item, truncate: str) -> Embedded:
        encoder = self.encoders[space]
        with self.metrics.stage("decode"):
            tensor = await self.decoders.prepare(space, modality, item)
        count = getattr(encoder, "count_truncated", None)
        cut = bool(count(tensor[None])) if count is not None and modality == "text" else False
        if cut and truncate == "NONE":
            raise ServiceError(
                400, f"a text is longer than {space} reads", "input", "text_too_long"
            )
        length = len(item.content) if isinstance(item.content, str) else 0
        with self.metrics.stage("encode"):
            vector = await self.batchers[space].embed(modality, tensor, length)
        return Embedded(vector, cut)

    async def _projected(
        self,
        joint: JointSpace,
        space: str,
        modalities: Sequence[Modality],
        found: Sequence[Embedded],
    ) -> Tensor:
        """(n, joint), in the thread that searches."""

        def project() -> Tensor:
            joined = torch.empty(len(found), joint.joint_dim)
            for modality in dict.fromkeys(modalities):
                rows = [row for row, one in enumerate(modalities) if one == modality]
                vectors = np.stack([found[row].vector for row in rows])
                joined[rows] = joint.project(space, vectors, modality).cpu()
            return joined

        return await asyncio.get_running_loop().run_in_executor(self.searching, project)

    # Searching

    async def search(self, request: SearchRequest) -> tuple[list[Hit], str, str | None]:
        """What is nearest, the space that the query was embedded in, and the connection.

        Raises ServiceError for what is not there or does not belong together.
        """
        if request.top_k > self.limits.results:
            raise ServiceError(400, f"top_k is at most {self.limits.results}", "top_k")
        keys = [self.key(name) for name in request.datasets]
        vector, space, modality, known = await self._query(request, keys)
        with self.metrics.stage("search"):
            work = partial(self._search, request, keys, vector, space, modality, known)
            loop = asyncio.get_running_loop()
            try:
                return await loop.run_in_executor(self.searching, work)
            except (UsageError, MismatchError) as error:
                raise ServiceError(400, error.what) from error
            except StoreError as error:
                log.error("%s", error)
                raise ServiceError(500, "the store cannot be read", code="store") from error

    def key(self, name: str) -> Key:
        """A dataset's key. Raises ServiceError 404."""
        if name not in self.keys:
            raise ServiceError(
                404, f"there is no dataset {name[:200]!r}; {near(name, self.keys)}", "datasets",
                "dataset_not_found",
            )  # fmt: skip
        return self.keys[name]

    async def _query(
        self, request: SearchRequest, keys: Sequence[Key]
    ) -> tuple[np.ndarray, str, Modality, frozenset[str]]:
        """Its vector in its own space, the space, the modality, and what it is known as."""
        query = request.query
        if isinstance(query, Stored):
            key = self.key(query.dataset)
            rows = self._row(query.dataset, query.id)
            vector = np.asarray(self.opened[query.dataset].embeddings()[rows], np.float32)
            told = self.opened[query.dataset].table(["uri", "text"]).slice(rows, 1).to_pylist()[0]
            return vector, key.space, key.modality, frozenset(filter(None, told.values()))
        if isinstance(query, Given):
            space = self._space(request, keys, query.modality)
            vector = np.asarray(query.embedding, np.float32)
            dim = self.encoders[space].dim
            if vector.shape != (dim,) or not np.isfinite(vector).all() or not vector.any():
                raise ServiceError(400, f"an embedding of {space} is {dim} finite numbers", "query")
            return vector, space, query.modality, frozenset()
        modality = "text" if isinstance(query, str) else next(iter(query.given()))
        space = self._space(request, keys, modality)
        _, item = self.read(space, query)
        embedded = await self._encode(space, modality, item, "END")
        text = [item.content] if isinstance(item.content, str) else []
        return embedded.vector, space, modality, frozenset(text)

    def _space(self, request: SearchRequest, keys: Sequence[Key], modality: Modality) -> str:
        if request.model is not None:
            return self.model(request.model)[0]
        taking = [
            space for space, encoder in self.encoders.items() if modality in encoder.modalities
        ]
        near_by = [key.space for key in keys if key.space in taking]
        if not taking:
            raise ServiceError(400, f"no encoder takes {modality[:40]}", "query")
        return next(iter([*near_by, *taking]))

    def _row(self, dataset: str, name: str) -> int:
        import pyarrow as pa
        import pyarrow.compute as pc

        ids = self.opened[dataset].table(["id"])["id"]
        row = pc.index(ids, pa.scalar(name, ids.type)).as_py()
        if row < 0:
            raise ServiceError(404, "there is no such item", "query", "item_not_found")
        return int(row)

    def _search(
        self,
        request: SearchRequest,
        keys: Sequence[Key],
        vector: np.ndarray,
        space: str,
        modality: Modality,
        known: frozenset[str],
    ) -> tuple[list[Hit], str, str | None]:
        name, joint = self._connection(request, keys, space, modality)
        own: JointSpace | OwnSpace = OwnSpace(self.store.path) if joint is None else joint
        where = request.filter
        if joint is None:
            places = open_places(self.store.path, keys, where)
        else:
            places = joint.open_places(self.store.path, keys, where)
        query = Query(
            own.project(space, vector[None], modality).cpu()[0], {(space, modality): 1.0}, known
        )
        (hits,) = search_places(
            self.store.path, own, [query], places, k=request.top_k, hubness=request.hubness,
            index=request.index, most_false=request.false_positives,
        )  # fmt: skip
        return hits, space, name

    def _connection(
        self, request: SearchRequest, keys: Sequence[Key], space: str, modality: Modality
    ) -> tuple[str | None, JointSpace | None]:
        """The connection to search through, a closed form of it, or none in one space."""
        name = request.connection
        if name is None and request.model is not None and "@" in request.model:
            name = request.model.partition("@")[2]
        if name is not None and name not in self.joint:
            raise ServiceError(
                404, f"there is no connection {name[:200]!r}; {near(name, self.joint)}",
                "connection", "connection_not_found",
            )  # fmt: skip
        if name is None:
            if {key.space for key in keys} == {space}:
                return None, None
            spaces = {space, *(key.space for key in keys)}
            fitting = [
                one
                for one, joint in self.joint.items()
                if spaces <= {record.name for record in joint.record.spaces}
                and joint.knows(space, modality)
            ]
            fewest = min((len(self.joint[one].record.spaces) for one in fitting), default=0)
            fitting = [one for one in fitting if len(self.joint[one].record.spaces) == fewest]
            if len(fitting) != 1:
                told = f"several could: {', '.join(fitting)}" if fitting else "none does"
                raise ServiceError(
                    400, f"say what connects {' and '.join(sorted(spaces))}; {told}", "connection"
                )
            (name,) = fitting
        joint = self.joint[name]
        if request.baseline is None:
            return name, joint
        if request.baseline not in self.baseline_names(joint):
            raise ServiceError(400, f"there is no baseline {request.baseline[:40]!r}", "baseline")
        if name not in self.closed_forms:
            self.closed_forms[name] = dict(baselines(self.store.path, joint.record))
        if request.baseline not in self.closed_forms[name]:
            raise ServiceError(400, "the store has lost what closed forms are made of", "baseline")
        return name, self.closed_forms[name][request.baseline]

    async def media(self, dataset: str, row: int) -> tuple[str, bytes]:
        """Type and bytes of what a row of the store names. Raises ServiceError 404."""
        key = self.key(dataset)
        opened = self.opened[dataset]
        if not 0 <= row < opened.manifest.rows:
            raise ServiceError(404, "there is no such item", code="item_not_found")
        told = opened.table(["uri", "text"]).slice(row, 1).to_pylist()[0]
        if told["text"] is not None:
            return "text/plain; charset=utf-8", told["text"].encode()
        if not self.serves(told["uri"]):
            raise ServiceError(404, "the media of this item are not served", code="media_closed")
        return await self.decoders.media(key.modality, told["uri"])

    def serves(self, uri: str) -> bool:
        """Whether media of this uri may leave: what ships with cmcr, or lies below a root."""
        if uri.startswith("builtin:"):
            return True
        place = Path(uri.partition("#")[0])
        try:
            real = place.resolve(strict=True)
        except OSError:
            return False
        return any(real.is_relative_to(root.resolve()) for root in self.media_roots)


def _decoded(value: str, modality: Modality, suffix: str | None) -> tuple[bytes, str]:
    """Bytes and suffix of a data URI or of base64. Raises ServiceError for anything else."""
    told = suffix or _SUFFIXES.get(modality, "bin")
    if value.startswith("data:"):
        head, _, value = value.partition(",")
        kind, *options = head.removeprefix("data:").split(";")
        if "base64" not in options:
            raise ServiceError(400, "a data URI has to be in base64", "input")
        name = kind.rpartition("/")[2].lower()
        told = suffix or (_OF_TYPES.get(name, name) if name and name != "octet-stream" else told)
    elif "://" in value[:16]:
        raise ServiceError(400, "addresses are not fetched: send the media itself", "input")
    try:
        return base64.b64decode(value, validate=True), told
    except (binascii.Error, ValueError) as error:
        raise ServiceError(400, f"the {modality} is not in base64", "input") from error
