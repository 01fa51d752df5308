"""The extraction loop: read, decode in worker processes, encode, write parts.

    summary = extract(store, encoder, source, dataset="esc10")

    items ─▶ batches ─▶ workers: decode, preprocess ─▶ encode ─▶ part k ─▶ writer thread

Part k holds items k·R to (k+1)·R-1 of the source and a batch never reaches across parts, so
whatever was interrupted, and whoever made which part, the bytes are the same.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cmcr.embeddings import Description, Key, build_index, index_is_current, open_dataset
from cmcr.embeddings.health import Health, measure
from cmcr.embeddings.parts import Failure, part_counts, part_name, write_part
from cmcr.embeddings.schema import Precision
from cmcr.embeddings.writer import begin, claim, finish, finished_part, is_complete
from cmcr.errors import SourceError, UsageError
from cmcr.extract.encoder import Encoder
from cmcr.extract.encoding import BATCH_SIZES, Amp, Autocast, encode_batches, find_autocast
from cmcr.extract.items import Item
from cmcr.extract.loading import Batch, Loaded, failure, load
from cmcr.extract.sources import Source
from cmcr.progress import progress

PART_ROWS = 8_192
MAX_FAILURES = 0.01
STAGES = ("read", "encode", "write")


@dataclass
class Summary:
    """What one extraction did.

    Rows and failures in the dataset; rows made now, and texts among them that were too long for
    the encoder; how well the embeddings of a finished dataset tell its rows apart; seconds spent in
    each stage.
    """

    key: Key
    rows: int = 0
    failures: int = 0
    made: int = 0
    truncated: int = 0
    finished: bool = True
    health: Health | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def bottleneck(self) -> str:
        """The stage that the other two waited for."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"key": str(self.key)}

    def __str__(self) -> str:
        return self._line() + (self.health.warning if self.health else "")

    def _line(self) -> str:
        text = f"{self.key}  {self.rows:,} rows"
        if self.failures:
            text += f", {self.failures:,} failures"
        if self.truncated:
            text += f", {self.truncated:,} texts cut"
        if self.health:
            text += f", {self.health}"
        if not self.made:
            return f"{text}  up to date" if self.finished else f"{text}  waiting for other shards"
        total = sum(self.seconds.values())
        shares = "  ".join(f"{name} {part / total:.0%}" for name, part in self.seconds.items())
        return f"{text}  {self.made / total:,.0f}/s  {shares}  (bottleneck: {self.bottleneck})"


@dataclass(frozen=True)
class Job:
    """One dataset in the making. `mine` are the parts that this process is to make."""

    folder: Path
    description: Description
    encoder: Encoder
    source: Source
    mine: range
    batch_size: int
    workers: int
    autocast: Autocast | None


@dataclass
class Rows:
    """The rows of one part as they come in."""

    part: int
    items: list[Item] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)  # (batch, D) each
    failures: list[Failure] = field(default_factory=list)


Claims = dict[int, ExitStack]
Step = TypeVar("Step")


def extract(
    store: Path,
    encoder: Encoder,
    source: Source,
    dataset: str,
    *,
    space: str | None = None,
    batch_size: int | None = None,
    amp: Amp = "auto",
    part_rows: int = PART_ROWS,
    workers: int | None = None,
    max_failures: float = MAX_FAILURES,
    shard_index: int = 0,
    num_shards: int = 1,
    precision: Precision = "float16",
    index: str | None = "Flat",
    licence: str | None = None,
) -> Summary:
    """Embed `source` as a dataset of `store`, going on where an earlier run stopped.

    The space is called `space`, else as the encoder is. `batch_size` None is a size that suits
    the modality; one that does not fit into the device's memory is halved. `amp` is the automatic
    mixed precision on CUDA, recorded with the encoder. `workers` None means one a core; `index` is
    a FAISS factory string, None for no index. `licence` is that of the weights, written down.
    Process `shard_index` of `num_shards` makes the parts whose number leaves that remainder,
    and whichever finds all parts there writes the manifest.

    Raises UsageError for a modality that the encoder does not take, EncoderError when it lacks
    what it needs for it, MismatchError when the dataset was built with different settings,
    SourceError when more than `max_failures` (a share of the inputs) could not be embedded; what
    is finished is kept.
    """
    if source.modality not in encoder.modalities:
        raise UsageError(
            f"the encoder {encoder.name} takes no {source.modality}",
            cure=f"it takes {', '.join(sorted(encoder.modalities))}",
        )
    if not 0 <= shard_index < num_shards:
        raise UsageError(f"there is no shard {shard_index} of {num_shards}: they count from 0")
    if ready := getattr(encoder, "ready", None):
        ready(source.modality)
    autocast = find_autocast(amp, encoder.device)
    made_with = {"autocast": autocast, "licence": licence}
    description = Description(
        space=space or encoder.name,
        modality=source.modality,
        dataset=dataset,
        dim=encoder.dim,
        precision=precision,
        part_rows=part_rows,
        columns=source.columns,
        numbers=source.numbers,
        encoder={**encoder.fingerprint(), **{name: it for name, it in made_with.items() if it}},
        source=dict(source.description),
    )
    folder = begin(store, description)
    summary = Summary(description.key)
    if not is_complete(folder):
        parts = -(-source.total // part_rows)
        mine = range(shard_index, parts, num_shards)
        cores = os.cpu_count() or 1 if workers is None else workers
        size = batch_size or BATCH_SIZES[source.modality]
        job = Job(folder, description, encoder, source, mine, size, cores, autocast)
        make_parts(job, summary, max_failures)
        summary.finished = finish(folder, description, parts) is not None
    if summary.finished:
        data = open_dataset(store, description.key)
        summary.rows, summary.failures = data.rows, data.manifest.failures
        summary.health = measure(data)
        if index is not None and not index_is_current(data, index):
            build_index(data, index)
    _refuse_too_many(summary, max_failures, folder)
    return summary


def make_parts(job: Job, summary: Summary, max_failures: float) -> None:
    """Make the parts of `job.mine` that are not there yet, then any that others gave up."""
    done = {part for part in job.mine if finished_part(job.folder, part)}
    for part in done:
        embedded, failed = part_counts(job.folder / part_name(part))
        summary.rows += embedded
        summary.failures += failed
    claims: Claims = {}
    with (
        ExitStack() as cleanup,
        ThreadPoolExecutor(1, "write") as thread,
        progress(str(summary.key), job.source.total, "rows") as advance,
    ):
        cleanup.callback(_give_up, claims)
        advance(summary.rows + summary.failures)
        for wait in (False, True):
            writing: list[Future[float]] = []
            for rows in encoded(job, plan(job, claims, wait), summary, advance):
                writing.append(thread.submit(write_rows, job, rows, claims))
                if len(writing) > 1:
                    summary.seconds["write"] += writing.pop(0).result()
                summary.made += len(rows.items)
                summary.rows += len(rows.items)
                summary.failures += len(rows.failures)
                if rows.part != job.mine[-1]:
                    _refuse_too_many(summary, max_failures, job.folder)
            summary.seconds["write"] += sum(future.result() for future in writing)
            if all(finished_part(job.folder, part) for part in job.mine):
                break


def _give_up(claims: Claims) -> None:
    for held in claims.values():
        held.close()


def plan(job: Job, claims: Claims, wait: bool) -> Iterator[Batch]:
    """The batches to make, their parts claimed as the reader gets to them.

    With `wait`, a part that another process is making is waited for, and made here only if
    that process ends without it. The texts of a part go by length, so that a batch is padded
    little.
    """
    items = job.source.items()
    for part in range(job.mine[-1] + 1 if job.mine else 0):
        length = min(job.description.part_rows, job.source.total - part * job.description.part_rows)
        of_part: Iterator[tuple[int, Item]] = enumerate(itertools.islice(items, length))
        held = ExitStack()
        if part in job.mine and held.enter_context(claim(job.folder, part, wait=wait)):
            claims[part] = held
            if job.source.modality == "text":
                of_part = iter(sorted(of_part, key=lambda placed: len(placed[1].content or "")))
            for start in range(0, length, job.batch_size):
                places, chosen = zip(*itertools.islice(of_part, job.batch_size), strict=True)
                yield Batch(part, chosen, places, last=start + job.batch_size >= length)
        else:
            held.close()
            for _ in of_part:
                pass


def encoded(
    job: Job, batches: Iterator[Batch], summary: Summary, advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Decode and encode `batches`; yields each part when its last batch is through."""
    modality = job.source.modality
    loaded_batches = _timed(
        load(batches, job.encoder, modality, job.workers), summary.seconds, "read"
    )
    rows: Rows | None = None
    for loaded, vectors in _timed(
        encode_batches(job.encoder, modality, loaded_batches, job.autocast),
        summary.seconds,
        "encode",
        inner="read",
    ):
        rows = rows or Rows(loaded.part)
        rows.failures += loaded.failures
        if modality == "text":
            summary.truncated += _count_truncated(job.encoder, loaded)
        sound = np.isfinite(vectors).all(axis=1)  # (items,)
        rows.blocks.append(vectors[sound])
        for item, place, finite in zip(loaded.items, loaded.places, sound, strict=True):
            if finite:
                rows.items.append(item)
                rows.places.append(place)
            else:
                rows.failures.append(failure(item, SourceError("the encoder gave NaN")))
        advance(len(loaded.items) + len(loaded.failures))
        if loaded.last:
            yield rows
            rows = None


def _timed(
    steps: Iterator[Step], seconds: dict[str, float], stage: str, inner: str = ""
) -> Iterator[Step]:
    """`steps`; the time each takes is added to `stage`, but for what was added to `inner`."""
    while True:
        started, before = time.perf_counter(), seconds.get(inner, 0.0)
        step = next(steps, None)
        seconds[stage] += time.perf_counter() - started - (seconds.get(inner, 0.0) - before)
        if step is None:
            return
        yield step


def _count_truncated(encoder: Encoder, loaded: Loaded) -> int:
    count = getattr(encoder, "count_truncated", None)
    return int(count(loaded.inputs)) if count and loaded.inputs is not None else 0


def write_rows(job: Job, rows: Rows, claims: Claims) -> float:
    """Write a part and give up its claim; returns the seconds it took."""
    started = time.perf_counter()
    dim = job.description.dim
    order = np.argsort(rows.places)  # (rows,)
    block = np.concatenate([np.empty((0, dim), np.float32), *rows.blocks])[order]  # (rows, D)
    items = [rows.items[row] for row in order]
    columns: dict[str, list[Any]] = {
        "id": [item.id for item in items],
        "uri": [item.uri for item in items],
        "text": [item.content if isinstance(item.content, str) else None for item in items],
        "label": [list(item.label) or None for item in items],
        "group": [item.group for item in items],
    }
    for name in job.description.columns:
        columns[name] = [item.extra.get(name) for item in items]
    write_part(job.folder, job.description, rows.part, columns, block, rows.failures)
    claims.pop(rows.part).close()
    return time.perf_counter() - started


def _refuse_too_many(summary: Summary, max_failures: float, folder: Path) -> None:
    inputs = summary.rows + summary.failures
    if summary.failures > max_failures * inputs:
        raise SourceError(
            f"{summary.failures} of {inputs} inputs could not be embedded, "
            f"more than --max-failures {max_failures:g} allows",
            where=folder,
            cure="see failures.parquet there; mend the inputs, or allow more failures: "
            "what is finished is kept",
        )
