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
from typing import Any

import numpy as np

from cmcr.embeddings import Description, Key, build_index, index_is_current, open_dataset
from cmcr.embeddings.parts import Failure, part_counts, part_name, write_part
from cmcr.embeddings.schema import Precision
from cmcr.embeddings.writer import begin, claim, finish, finished_part, is_complete
from cmcr.errors import SourceError, UsageError
from cmcr.extract.encoder import Encoder
from cmcr.extract.items import Item
from cmcr.extract.loading import Batch, failure, load
from cmcr.extract.sources import Source
from cmcr.progress import progress

PART_ROWS = 8_192
BATCH_SIZE = 128
MAX_FAILURES = 0.01
STAGES = ("read", "encode", "write")


@dataclass
class Summary:
    """What one extraction did: rows in the dataset, rows made now, seconds spent in each stage."""

    key: Key
    rows: int = 0
    failures: int = 0
    made: int = 0
    finished: bool = True
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def bottleneck(self) -> str:
        """The stage that the other two waited for."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self) | {"key": str(self.key)}

    def __str__(self) -> str:
        text = f"{self.key}  {self.rows:,} rows"
        if self.failures:
            text += f", {self.failures:,} failures"
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


@dataclass
class Rows:
    """The rows of one part as they come in."""

    part: int
    items: list[Item] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)  # (batch, D) each
    failures: list[Failure] = field(default_factory=list)


Claims = dict[int, ExitStack]


def extract(
    store: Path,
    encoder: Encoder,
    source: Source,
    dataset: str,
    *,
    batch_size: int = BATCH_SIZE,
    part_rows: int = PART_ROWS,
    workers: int | None = None,
    max_failures: float = MAX_FAILURES,
    shard_index: int = 0,
    num_shards: int = 1,
    precision: Precision = "float16",
    index: str | None = "Flat",
) -> Summary:
    """Embed `source` as a dataset of `store`, going on where an earlier run stopped.

    `workers` None means one a core; `index` is a FAISS factory string, None for no index.
    Process `shard_index` of `num_shards` makes the parts whose number leaves that remainder,
    and whichever finds all parts there writes the manifest.

    Raises UsageError for a modality that the encoder does not take, MismatchError when the
    dataset holds rows that were made otherwise, SourceError when more than `max_failures` (a
    share of the inputs) could not be embedded; what is finished is kept.
    """
    if source.modality not in encoder.modalities:
        raise UsageError(
            f"the encoder {encoder.name} takes no {source.modality}",
            cure=f"it takes {', '.join(sorted(encoder.modalities))}",
        )
    if not 0 <= shard_index < num_shards:
        raise UsageError(f"there is no shard {shard_index} of {num_shards}: they count from 0")
    description = Description(
        space=encoder.name,
        modality=source.modality,
        dataset=dataset,
        dim=encoder.dim,
        precision=precision,
        part_rows=part_rows,
        columns=source.columns,
        encoder=dict(encoder.fingerprint()),
        source=dict(source.description),
    )
    folder = begin(store, description)
    summary = Summary(description.key)
    if not is_complete(folder):
        parts = -(-source.total // part_rows)
        mine = range(shard_index, parts, num_shards)
        cores = os.cpu_count() or 1 if workers is None else workers
        job = Job(folder, description, encoder, source, mine, batch_size, cores)
        make_parts(job, summary, max_failures)
        summary.finished = finish(folder, description, parts) is not None
    if summary.finished:
        data = open_dataset(store, description.key)
        summary.rows, summary.failures = data.rows, data.manifest.failures
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
            for rows in encoded(job, plan(job, claims, wait), summary.seconds, advance):
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
    that process ends without it.
    """
    items = job.source.items()
    for part in range(job.mine[-1] + 1 if job.mine else 0):
        length = min(job.description.part_rows, job.source.total - part * job.description.part_rows)
        of_part = itertools.islice(items, length)
        held = ExitStack()
        if part in job.mine and held.enter_context(claim(job.folder, part, wait=wait)):
            claims[part] = held
            for start in range(0, length, job.batch_size):
                chosen = list(itertools.islice(of_part, job.batch_size))
                yield Batch(part, chosen, last=start + job.batch_size >= length)
        else:
            held.close()
            for _ in of_part:
                pass


def encoded(
    job: Job, batches: Iterator[Batch], seconds: dict[str, float], advance: Callable[[int], None]
) -> Iterator[Rows]:
    """Decode and encode `batches`; yields each part when its last batch is through."""
    rows: Rows | None = None
    started = time.perf_counter()
    for loaded in load(batches, job.encoder, job.source.modality, job.workers):
        read = time.perf_counter()
        seconds["read"] += read - started
        rows = rows or Rows(loaded.part)
        rows.failures += loaded.failures
        if loaded.inputs is not None:
            output = job.encoder.encode(job.source.modality, loaded.inputs)
            vectors = output.float().cpu().numpy()  # (items, D)
            sound = np.isfinite(vectors).all(axis=1)  # (items,)
            rows.blocks.append(vectors[sound])
            for item, finite in zip(loaded.items, sound, strict=True):
                if finite:
                    rows.items.append(item)
                else:
                    rows.failures.append(failure(item, SourceError("the encoder gave NaN")))
        advance(len(loaded.items) + len(loaded.failures))
        started = time.perf_counter()
        seconds["encode"] += started - read
        if loaded.last:
            yield rows
            rows = None
            started = time.perf_counter()


def write_rows(job: Job, rows: Rows, claims: Claims) -> float:
    """Write a part and give up its claim; returns the seconds it took."""
    started = time.perf_counter()
    dim = job.description.dim
    block = np.concatenate([np.empty((0, dim), np.float32), *rows.blocks])  # (rows, D)
    columns: dict[str, list[Any]] = {
        "id": [item.id for item in rows.items],
        "uri": [item.uri for item in rows.items],
        "text": [item.content if isinstance(item.content, str) else None for item in rows.items],
        "label": [list(item.label) or None for item in rows.items],
        "group": [item.group for item in rows.items],
    }
    for name in job.description.columns:
        columns[name] = [item.extra.get(name) for item in rows.items]
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
