"""What the server does, without HTTP: inputs to vectors of a space or a joint one, and searches.

service = Service(store, spaces=["clip", "clap"], connections=["mine"], limits=Limits())
await service.begin()
rows = await service.embed("clap@mine", inputs, truncate="END")
"""

import asyncio
import base64
import binascii
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cmcr.connect import JointSpace
from cmcr.embeddings import Key, Modality
from cmcr.errors import EncoderError, near
from cmcr.extract import Encoder, Item, is_textual, lookup_imports
from cmcr.search.store import Store
from cmcr.serve.batching import Batcher
from cmcr.serve.decoding import Decoders, Work
from cmcr.serve.limits import Limits
from cmcr.serve.metrics import Metrics
from cmcr.serve.schemas import (
    FoundItem,
    Given,
    Input,
    InputObject,
    SearchRequest,
    ServiceError,
    Stored,
)
from cmcr.serve.searching import Searcher, baseline_names

T = TypeVar("T")
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
        return self.warm and not self.draining and all(one.works for one in self.batchers.values())

    def load(self) -> None:
        """Load encoders and connections. Raises what `open_encoder` and `load_connection` do."""
        self.encoders: dict[str, Encoder] = {
            space: self.store.models.encoder(space) for space in self.spaces
        }
        self.takes = {space: _ready(space, encoder) for space, encoder in self.encoders.items()}
        self.joint: dict[str, JointSpace] = {
            name: self.store.models.opened(self.store.path / "connections" / name)
            for name in self.connections
        }
        self.rows = self._models()
        self.routes = {row["id"]: self._route(row["id"]) for row in self.rows}
        self.searcher = Searcher(
            self.store,
            self.encoders,
            self.joint,
            {name: Key.parse(name) for name in self.datasets},
            self.media_roots,
        )
        modules = sorted({type(encoder).__module__ for encoder in self.encoders.values()})
        more = [name for encoder in self.encoders.values()
                for name in getattr(encoder, "worker_imports", ())]  # fmt: skip
        more += lookup_imports(self.searcher.some_uris())
        work = Work(self.encoders, self.limits, self.media_roots)
        self.decoders = Decoders(work, self.workers, [*modules, *more])

    async def begin(self) -> None:
        """Start the batchers, and embed a text with each encoder that takes texts."""
        self.searching = ThreadPoolExecutor(1, "search")
        self.projecting = ThreadPoolExecutor(1, "project")
        self.batchers = {
            space: Batcher(encoder, self.batch, partial(self.metrics.batch, space))
            for space, encoder in self.encoders.items()
        }
        for space, batcher in self.batchers.items():
            batcher.begin()
            if "text" in self.takes[space]:
                await self._encode(space, "text", Item("", "", "warm up"), "END")
        self.warm = True

    async def end(self) -> None:
        """Let everything go."""
        self.warm = False
        for batcher in self.batchers.values():
            await batcher.end()
        self.searching.shutdown(cancel_futures=True)
        self.projecting.shutdown(cancel_futures=True)
        await asyncio.to_thread(self.decoders.close)

    # What there is

    def models(self) -> list[dict[str, Any]]:
        """Every space, and every space of a connection."""
        return self.rows

    def _models(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [
            {
                "id": space,
                "modalities": sorted(self.takes[space]),
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
                        one for one in self.takes[space] if joint.knows(space, one)
                    ),
                    "dimensions": joint.joint_dim,
                    "connection": name,
                    "baselines": baseline_names(joint),
                }
                for space in self.encoders
                if space in [one.name for one in joint.record.spaces]
            ]
            own = [row for row in rows if row["connection"] == name]
            known = sorted({one for row in own for one in row["modalities"]})
            rows += [own[0] | {"id": f"@{name}", "modalities": known}] if own else []
        return rows

    # Embedding

    async def embed(
        self, model: str, inputs: Sequence[Sequence[Input]], truncate: str
    ) -> list[Embedded]:
        """A vector in `model` for each of `inputs`: of several the mean of their unit vectors.

        Raises ServiceError for a model or a modality that there is not, and for an input that
        cannot be read.
        """
        read = [self.read(model, one) for several in inputs for one in several]
        found = iter(await self.embed_items(model, read, truncate))
        return [_mean([next(found) for _ in several]) for several in inputs]

    async def embed_items(
        self, model: str, read: Sequence[tuple[Modality, Item]], truncate: str
    ) -> list[Embedded]:
        """The vectors of items, each of a modality. As `embed`."""
        spaces, joint = self.model(model)
        found = await self._together(
            [self._encode(spaces[modality], modality, item, truncate) for modality, item in read]
        )
        if joint is None:
            return found
        joined = await self._projected(joint, spaces, [modality for modality, _ in read], found)
        return [
            Embedded(vector.numpy(), one.truncated)
            for vector, one in zip(joined, found, strict=True)
        ]

    def model(self, name: str) -> tuple[Mapping[Modality, str], JointSpace | None]:
        """The space that takes each modality, and the connection, that a model's name means.

        Raises ServiceError 404.
        """
        if name not in self.routes:
            raise ServiceError(
                404,
                f"there is no model {name[:200]!r}; {near(name[:200], sorted(self.routes))}",
                "model",
                "model_not_found",
            )
        return self.routes[name]

    def _route(self, name: str) -> tuple[Mapping[Modality, str], JointSpace | None]:
        space, mark, connection = name.partition("@")
        joint = self.joint[connection] if mark else None
        named = [space] if space else [one.name for one in joint.record.spaces] if joint else []
        spaces: dict[Modality, str] = {}
        for one in named:
            for modality in self.takes.get(one, ()):
                if joint is None or joint.knows(one, modality):
                    spaces.setdefault(modality, one)
        return spaces, joint

    def read(self, model: str, given: Input) -> tuple[Modality, Item]:
        """The modality and the item of one input. Raises ServiceError for what is none."""
        told = {"text": given} if isinstance(given, str) else given.given()
        ((modality, value),) = told.items()
        spaces, _ = self.model(model)
        if modality not in spaces:
            takes = ", ".join(sorted(spaces))
            raise ServiceError(400, f"{model} takes no {modality[:40]}; it takes {takes}", "input")
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
        spaces: Mapping[Modality, str],
        modalities: Sequence[Modality],
        found: Sequence[Embedded],
    ) -> Tensor:
        """(n, joint), in a thread."""

        def project() -> Tensor:
            joined = torch.empty(len(found), joint.joint_dim)
            for modality in dict.fromkeys(modalities):
                rows = [row for row, one in enumerate(modalities) if one == modality]
                vectors = np.stack([found[row].vector for row in rows])
                joined[rows] = joint.project(spaces[modality], vectors, modality).cpu()
            return joined

        return await asyncio.get_running_loop().run_in_executor(self.projecting, project)

    # Searching

    async def search(self, request: SearchRequest) -> tuple[list[FoundItem], str, str | None]:
        """What is nearest, the space that the query was embedded in, and the connection's name.

        Raises ServiceError for what is not there or does not belong together.
        """
        if request.top_k > self.limits.results:
            raise ServiceError(400, f"top_k is at most {self.limits.results}", "top_k")
        query, planned = request.query, partial(self._in_turn, self.searcher.plan, request)
        known: frozenset[str] = frozenset()
        if isinstance(query, Stored):
            stored = await self._in_turn(self.searcher.stored, query)
            plan = await planned(None, stored)
            vector, known = stored.vector, stored.known
        elif isinstance(query, Given):
            plan = await planned(query.modality, None)
            vector = self._given(plan.space, query)
        else:
            modality = "text" if isinstance(query, str) else next(iter(query.given()))
            plan = await planned(modality, None)
            _, item = self.read(plan.space, query)
            vector = (await self._encode(plan.space, plan.modality, item, "END")).vector
            if isinstance(item.content, str):
                known = frozenset([item.content])
        with self.metrics.stage("search"):
            found = await self._in_turn(self.searcher.find, request, plan, vector, known)
        return found, plan.space, plan.connection

    async def _in_turn(self, work: Callable[..., T], *about: Any) -> T:
        """In the thread that reads the store."""
        return await asyncio.get_running_loop().run_in_executor(self.searching, work, *about)

    def _given(self, space: str, query: Given) -> np.ndarray:
        with np.errstate(over="ignore"):
            vector = np.asarray(query.embedding, np.float64).astype(np.float32)
        encoder = self.encoders[space]
        if query.modality not in encoder.modalities:
            raise ServiceError(400, f"{space} has no {query.modality[:40]}", "query")
        if vector.shape != (encoder.dim,) or not np.isfinite(vector).all() or not vector.any():
            raise ServiceError(
                400, f"an embedding of {space} is {encoder.dim} finite numbers", "query"
            )
        return vector

    async def media(self, dataset: str, row: int) -> tuple[str, bytes]:
        """Type and bytes of what a row of the store names. Raises ServiceError 404."""
        modality, uri, text = await self._in_turn(self.searcher.media, dataset, row)
        if text is not None:
            return "text/plain; charset=utf-8", text.encode()
        return await self.decoders.media(modality, uri)


def _mean(several: Sequence[Embedded]) -> Embedded:
    """The unit vector of the mean of unit vectors; one stays as it is."""
    if len(several) == 1:
        return several[0]
    vectors = torch.from_numpy(np.stack([one.vector for one in several]))  # (several, D)
    mean = F.normalize(F.normalize(vectors.float(), dim=1).mean(dim=0), dim=0)
    return Embedded(mean.numpy(), any(one.truncated for one in several))


def _ready(space: str, encoder: Encoder) -> frozenset[Modality]:
    """The modalities for which nothing is missing, such as a tokenizer."""
    takes = set(encoder.modalities)
    ready = getattr(encoder, "ready", None)
    for modality in sorted(encoder.modalities if ready is not None else ()):
        try:
            ready(modality)  # type: ignore[misc]
        except EncoderError as error:
            log.warning("%s is served without %s: %s", space, modality, error.what)
            takes.remove(modality)
    return frozenset(takes)


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
