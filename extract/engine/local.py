"""The extraction loop: read, decode in worker processes, encode, write parts.

    items ─▶ batches ─▶ workers: decode, preprocess ─▶ encode ─▶ part k ─▶ writer thread

Part k holds items k·R to (k+1)·R-1 of the source and a batch never reaches across parts, so
whatever was interrupted, and whoever made which part, the bytes are the same.

The parts of a source that was planned are read one by one, and have owners instead of locks: a
network's file system may not keep locks between hosts. Two that make one part by mistake write the
same file.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from cmcr.embeddings import Description
from cmcr.embeddings.inventory import Input, read_ids, write_inputs
from cmcr.embeddings.parts import (
    Failure,
    failures_so_far,
    part_contents,
    part_name,
    write_failures,
    write_part,
)
from cmcr.embeddings.schema import FAILURES
from cmcr.embeddings.writer import claim, finished_part
from cmcr.errors import SourceError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.content import in_threads
from cmcr.extract.engine.encode import Autocast, encode_batches
from cmcr.extract.engine.known import Known, Taken
from cmcr.extract.engine.summary import Summary
from cmcr.extract.engine.workers import (
    LARGEST_BATCH,
    Batch,
    Loaded,
    content_bytes,
    failure,
    load,
)
from cmcr.extract.items import Item
from cmcr.extract.sources.source import Source
from cmcr.progress import progress


@dataclass(frozen=True)
class Job:
    """One dataset in the making.

    `mine` are the parts that this process is to make, `known` the rows that need not be made.
    """

    folder: Path
    description: Description
    encoder: Encoder
    source: Source
    parts: int
    mine: range
    batch_size: int
    workers: int
    item_timeout: float
    autocast: Autocast | None
    known: Known | None


@dataclass
class Rows:
    """The rows of one part as they come in."""

    part: int
    items: list[Item] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    blocks: list[np.ndarray] = field(default_factory=list)  # (batch, D) each
    failures: list[Failure] = field(default_factory=list)
    measured: dict[int, Input] = field(default_factory=dict)  # by place
    taken: int = 0


Claims = dict[int, ExitStack]
TakenOver = dict[int, list[tuple[int, Taken]]]  # by part, each with its place
Step = TypeVar("Step")


def make_parts(job: Job, summary: Summary, max_failures: float) -> None:
    """Make the parts of `job.mine` that are not there yet, then any that others gave up."""
    count_made(job, summary)
    claims: Claims = {}
    taken: TakenOver = {}
    with (
        ExitStack() as cleanup,
        ThreadPoolExecutor(1, "write") as thread,
        progress(str(summary.key), job.source.total, "rows") as advance,
    ):
        cleanup.callback(_give_up, claims)
        advance(summary.rows + summary.failures)
        for wait in (False, True):
            writing: list[Future[float]] = []
            for rows in encoded(job, plan(job, claims, taken, wait), taken, summary, advance):
                writing.append(thread.submit(write_rows, job, rows, claims))
                if len(writing) > 1:
                    summary.seconds["write"] += writing.pop(0).result()
                summary.made += len(rows.items) - rows.taken
                summary.taken += rows.taken
                summary.rows += len(rows.items)
                summary.fail(rows.failures)
                if rows.part != job.mine[-1] and too_many(summary, max_failures):
                    summary.finished = False
                    break
            summary.seconds["write"] += sum(future.result() for future in writing)
            if not summary.finished:
                stop(job, summary, max_failures)
            if all(finished_part(job.folder, part) for part in job.mine):
                break


def count_made(job: Job, summary: Summary) -> list[int]:
    """Count what the parts of `job.mine` hold that are there; gives those that are not."""
    left = []
    for part in job.mine:
        if finished_part(job.folder, part):
            embedded, failures = part_contents(job.folder / part_name(part))
            summary.rows += embedded
            summary.fail(failures)
        else:
            left.append(part)
    return left


def stop(job: Job, summary: Summary, max_failures: float) -> None:
    """End a run in which too much failed. Raises SourceError."""
    write_failures(job.folder / FAILURES, failures_so_far(job.folder))
    refuse_too_many(summary, max_failures, job.folder)


def _give_up(claims: Claims) -> None:
    for held in claims.values():
        held.close()


def plan(job: Job, claims: Claims, taken: TakenOver, wait: bool) -> Iterator[Batch]:
    """The batches to make, their parts claimed as the reader gets to them.

    With `wait`, a part that another process is making is waited for, and made here only if
    that process ends without it. The texts of a part go by length, so that a batch is padded
    little. What an update knows goes to `taken` instead; a part has a last batch all the same.
    Raises SourceError when the source ends too early.
    """
    for part, items in _parts_of(job):
        length = min(job.description.part_rows, job.source.total - part * job.description.part_rows)
        of_part: Iterator[tuple[int, Item]] = _exactly(job, items, length)
        held = ExitStack()
        if part in job.mine and held.enter_context(_taken(job, part, wait)):
            claims[part] = held
            if job.source.modality == "text":
                of_part = iter(sorted(of_part, key=lambda placed: len(placed[1].content or "")))
            if job.known is not None:
                of_part = _unknown(job.known, of_part, taken.setdefault(part, []))
            chosen = _chosen(of_part, job.batch_size)
            while following := _chosen(of_part, job.batch_size):
                yield _batch(part, chosen, last=False)
                chosen = following
            yield _batch(part, chosen, last=True)
        else:
            held.close()
            if job.source.part is None:
                for _ in of_part:
                    pass


def _parts_of(job: Job) -> Iterator[tuple[int, Iterator[Item]]]:
    """The parts with an iterator that stands at their first item; each is to be gone through."""
    if job.source.part is not None:
        for part in job.mine:
            yield part, job.source.part(part)
        return
    items = job.source.items()
    for part in range(job.mine[-1] + 1 if job.mine else 0):
        yield part, items


def _taken(job: Job, part: int, wait: bool) -> AbstractContextManager[bool]:
    if job.source.part is not None:
        return nullcontext(not finished_part(job.folder, part))
    return claim(job.folder, part, wait=wait)


def _chosen(of_part: Iterator[tuple[int, Item]], most: int) -> list[tuple[int, Item]]:
    """The next items of a batch: fewer than `most` where they hold their media, and large ones."""
    chosen: list[tuple[int, Item]] = []
    held = 0
    while len(chosen) < most and held < LARGEST_BATCH and (placed := next(of_part, None)):
        chosen.append(placed)
        held += content_bytes(placed[1])
    return chosen


def _batch(part: int, chosen: list[tuple[int, Item]], last: bool) -> Batch:
    places = [place for place, _ in chosen]
    return Batch(part, [item for _, item in chosen], places, last)


def _exactly(job: Job, items: Iterator[Item], length: int) -> Iterator[tuple[int, Item]]:
    place = -1
    for place, item in enumerate(itertools.islice(items, length)):
        yield place, item
    if place + 1 < length:
        raise moved(job)


def _unknown(
    known: Known, of_part: Iterator[tuple[int, Item]], taken: list[tuple[int, Taken]]
) -> Iterator[tuple[int, Item]]:
    """The items that are to be embedded; the others go to `taken`."""
    for (place, item), row in in_threads(lambda placed: known.take(placed[1]), of_part):
        if row is None:
            yield place, item
        else:
            taken.append((place, row))


def encoded(
    job: Job,
    batches: Iterator[Batch],
    taken: TakenOver,
    summary: Summary,
    advance: Callable[[int], None],
) -> Iterator[Rows]:
    """Decode and encode `batches`; yields each part when its last batch is through."""
    modality = job.source.modality
    loaded_batches = _timed(
        load(batches, job.encoder, modality, job.workers, job.item_timeout), summary.seconds, "read"
    )
    rows: Rows | None = None
    for loaded, vectors in _timed(
        encode_batches(
            job.encoder, modality, loaded_batches, job.autocast, patience=job.item_timeout
        ),
        summary.seconds,
        "encode",
        inner="read",
    ):
        rows = rows or Rows(loaded.part)
        rows.failures += loaded.failures
        rows.measured |= loaded.measured
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
                rows.measured[place] = replace(rows.measured[place], failed=True)
        advance(len(loaded.items) + len(loaded.failures))
        if loaded.last:
            _take_over(rows, taken.pop(rows.part, []))
            advance(rows.taken)
            yield rows
            rows = None


def _take_over(rows: Rows, taken: list[tuple[int, Taken]]) -> None:
    for place, known in taken:
        rows.items.append(known.item)
        rows.places.append(place)
        rows.blocks.append(known.vector[None].astype(np.float32))  # (1, D)
        rows.measured[place] = known.measured
    rows.taken = len(taken)


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
    inputs = [rows.measured[place] for place in sorted(rows.measured)]
    if job.source.part is None or not finished_part(job.folder, rows.part):
        write_inputs(job.folder, rows.part, inputs)
        write_part(job.folder, job.description, rows.part, columns, block, rows.failures)
    claims.pop(rows.part).close()
    return time.perf_counter() - started


def too_many(summary: Summary, max_failures: float) -> bool:
    """Whether more than this share of the inputs failed so far."""
    return summary.failures > max_failures * (summary.rows + summary.failures)


def refuse_too_many(summary: Summary, max_failures: float, folder: Path) -> None:
    """Raise SourceError where that is so; `folder` is where the failures are listed."""
    if too_many(summary, max_failures):
        inputs = summary.rows + summary.failures
        raise SourceError(
            f"{summary.failures:,} of {inputs:,} inputs could not be embedded, more than "
            f"--max-failures {max_failures:g} allows: {summary.kinds}",
            where=folder / FAILURES,
            fix="all of them are listed there; mend the inputs and run the command again with "
            "--update, or allow more failures: what is finished is kept",
        )


def moved(job: Job) -> SourceError:
    """The error for a source that is not what it was when it was opened."""
    now = [item.id for item in job.source.items()]
    parts = [ids for ids in read_ids(job.folder, job.parts) if ids is not None]
    embedded = {id for ids in parts for id in ids}
    left, gone = (id for id in now if id not in embedded), sorted(embedded.difference(now))
    told = [f"{job.source.total:,} items when it was opened, {len(now):,} now"]
    if gone:
        told.append(f"{len(gone):,} gone (first: {gone[0]})")
    if len(parts) == job.parts and (first := next(left, None)):
        told.append(f"{1 + sum(1 for _ in left):,} not embedded (first: {first})")
    return SourceError(
        f"the source changed while it was being embedded: {', '.join(told)}",
        where=job.source.description["where"],
        fix="run the command again with --update when it is at rest; what is embedded is kept",
    )
