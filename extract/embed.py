"""Extraction: a source through an encoder into a dataset of the store.

    summary = extract(store, encoder, source, dataset="esc10")

What is there already is gone on with, found up to date, refused, or, as an update, made anew
beside the old dataset, out of whose rows those are taken over whose content is known.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from cmcr.devices import cores
from cmcr.embeddings import (
    Description,
    Key,
    Manifest,
    build_index,
    index_is_current,
    list_datasets,
    open_dataset,
)
from cmcr.embeddings.index import check_factory
from cmcr.embeddings.inventory import read_ids
from cmcr.embeddings.parts import (
    Failure,
    failures_so_far,
    part_contents,
    part_name,
    read_failures,
)
from cmcr.embeddings.schema import Precision, read_manifest
from cmcr.embeddings.verify import measure
from cmcr.embeddings.writer import (
    begin,
    begin_fresh,
    begun,
    discard_fresh,
    finish,
    held,
    is_complete,
    put_in_place,
    reopen,
)
from cmcr.errors import MismatchError, StoreError, UsageError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.changes import Changes, find_changes, remember
from cmcr.extract.engine.encode import Amp, Autocast, encode_batches, find_autocast, usual_batch
from cmcr.extract.engine.known import Known, read_known
from cmcr.extract.engine.local import Job, make_parts, moved, refuse_too_many
from cmcr.extract.engine.summary import Summary
from cmcr.extract.engine.workers import ITEM_TIMEOUT, Batch, load
from cmcr.extract.sources.source import HashIds, Source

Engine = Callable[[Job, Summary, float], None]
PART_ROWS = 8_192
MAX_FAILURES = 0.01


def extract(
    store: Path,
    encoder: Encoder,
    source: Source,
    dataset: str,
    *,
    space: str | None = None,
    batch_size: int | None = None,
    amp: Amp = "auto",
    part_rows: int | None = None,
    workers: int | None = None,
    item_timeout: float = ITEM_TIMEOUT,
    max_failures: float = MAX_FAILURES,
    shard_index: int = 0,
    num_shards: int = 1,
    precision: Precision = "float16",
    index: str | None = "Flat",
    licence: str | None = None,
    update: bool = False,
    engine: Engine = make_parts,
) -> Summary:
    """Embed `source` as a dataset of `store`, going on where an earlier run stopped.

    The space is called `space`, else as the encoder is. `batch_size` None is a size that suits
    the modality; one that does not fit into the device's memory is halved. `amp` is the automatic
    mixed precision on CUDA, recorded with the encoder. `part_rows` None means those that a plan was
    made for, else `PART_ROWS`. `workers` None means one a core; an input
    that keeps one of them for more than `item_timeout` seconds fails. `index` is a FAISS factory
    string, None for no index. `licence` is that of the weights, written down.
    Process `shard_index` of `num_shards` makes the parts whose number leaves that remainder,
    and whichever finds all parts there writes the manifest; of a source that was planned it reads
    no other parts, and needs no lock that reaches other hosts. With `update` the dataset follows a
    source that changed: what is known is taken over, what failed is tried again. `engine` makes the
    parts: this process, or actors on Ray (`cluster/actors.py`).

    Raises UsageError for a modality that the encoder does not take or an index that FAISS does not
    know, EncoderError when it lacks what it needs for it, MismatchError when the dataset holds rows
    built with different settings or of another state of the source, SourceError when more than
    `max_failures` (a share of the inputs) could not be embedded; what is finished is kept, and a
    dataset that was finished before is not judged again.
    """
    if not 0 <= shard_index < num_shards:
        raise UsageError(f"there is no shard {shard_index} of {num_shards}: they count from 0")
    if update and num_shards > 1:
        raise UsageError("one process updates a dataset", fix="--update without --num-shards")
    if update and source.part is not None:
        raise UsageError(
            "an update follows the source itself, not a plan of it",
            where=source.description["where"],
            fix="name the source that was planned: --source MODALITY=WHERE --update",
        )
    part_rows = rows_a_part(source, part_rows)
    if index is not None:
        check_factory(encoder.dim, index)
    description, autocast = describe(
        encoder, source, dataset, space, precision, part_rows, amp, licence
    )
    key = description.key
    folder = key.folder(store)
    parts = -(-source.total // part_rows)
    mine = range(shard_index, parts, num_shards)
    processes = cores() if workers is None else workers
    retry = partial(_any_succeeds, encoder, source, autocast, processes, item_timeout)
    with held(store, key, alone=update):
        description, known = _find_known(store, description, source, update, retry, mine)
        if known is None and update:
            discard_fresh(store, key)  # of an update that is no longer wanted
        place = store if known is None else begin_update(store, description, source, max_failures)
        job = Job(
            folder=begin(place, description),
            description=description,
            encoder=encoder,
            source=source,
            parts=parts,
            mine=mine,
            batch_size=batch_size or usual_batch(source.modality),
            workers=processes,
            item_timeout=item_timeout,
            autocast=autocast,
            known=known,
        )
        summary = Summary(key, folder, skipped=source.skipped, pattern=source.pattern)
        summary.updated = known is not None
        # A finished dataset stays one, whatever limit it was finished under.
        judged = not is_complete(job.folder)
        if judged:
            engine(job, summary, max_failures)
            _refuse_moved(job)
            summary.finished = finish(job.folder, description, parts) is not None
        if summary.finished:
            _conclude(summary, place, index)
        if judged or known is not None:
            refuse_too_many(summary, max_failures, job.folder)
        if known is not None and summary.finished:
            put_in_place(store, key)
    return summary


def revisit(store: Path, key: Key, source: Source, index: str | None = "Flat") -> Summary:
    """A finished dataset compared with its source, without the encoder that made it.

    Raises MismatchError where the source changed, StoreError for a damaged dataset.
    """
    folder = key.folder(store)
    with held(store, key, alone=False):
        before = read_manifest(folder).model_dump(include=set(Description.model_fields))
        now = {"source": source.description, "columns": source.columns, "numbers": source.numbers}
        found = compare(store, Description.model_validate(before | now), source)
        if found is not None and found[1]:
            raise found[1].error(key, folder)
        if found is not None:
            remember(folder, *found)
        summary = Summary(key, folder, skipped=source.skipped, pattern=source.pattern)
        _conclude(summary, store, index)
    return summary


def _conclude(summary: Summary, place: Path, index: str | None) -> None:
    """What there is in the end, with its index."""
    # `finish` hashed all parts, now or before; `cmcr verify` does it again.
    data = open_dataset(place, summary.key, check=False)
    summary.rows, summary.failures, summary.health = data.rows, 0, measure(data)
    summary.kinds.clear()
    summary.fail(read_failures(data.folder))
    if index is not None and not index_is_current(data, index):
        build_index(data, index)


def describe(
    encoder: Encoder,
    source: Source,
    dataset: str,
    space: str | None,
    precision: Precision,
    part_rows: int,
    amp: Amp,
    licence: str | None,
) -> tuple[Description, Autocast | None]:
    """What the dataset is to be, and how the encoder is to compute; both are written down.

    Raises UsageError for a modality that the encoder does not take, EncoderError when it lacks
    what it needs for it.
    """
    if source.modality not in encoder.modalities:
        raise UsageError(
            f"the encoder {encoder.name} takes no {source.modality}",
            fix=f"it takes {', '.join(sorted(encoder.modalities))}",
        )
    if ready := getattr(encoder, "ready", None):
        ready(source.modality)
    autocast = find_autocast(amp, encoder.device)
    made_with = {"autocast": autocast, "licence": licence}
    told = {name: it for name, it in made_with.items() if it}
    # A fingerprint may leave it to the space's name to say which encoder it is of.
    named = {"encoder": encoder.name} if space not in (None, encoder.name) else {}
    description = Description(
        space=space or encoder.name,
        modality=source.modality,
        dataset=dataset,
        dim=encoder.dim,
        precision=precision,
        part_rows=part_rows,
        columns=source.columns,
        numbers=source.numbers,
        encoder={**named, **encoder.fingerprint(), **told},
        source=dict(source.description),
    )
    return description, autocast


def rows_a_part(source: Source, wanted: int | None) -> int:
    """Inputs in one part: those that a plan was made for, else `wanted`, else `PART_ROWS`.

    Raises UsageError where a plan was made for others than are wanted.
    """
    planned = source.part_rows or wanted or PART_ROWS
    if wanted not in (None, planned):
        raise UsageError(
            f"the plan has {planned:,} inputs in a part, not {wanted:,}",
            where=source.description["where"],
            fix=f"leave --part-rows out, or plan again: `cmcr plan --part-rows {wanted}`",
        )
    return planned


def compare(
    store: Path, description: Description, source: Source, mine: Collection[int] | None = None
) -> tuple[Description, Changes] | None:
    """What is in the store under this name, and what changed since; None where nothing is.

    Of a source that was planned only the parts in `mine` are compared.
    Raises MismatchError for rows of another encoder, checkpoint or preprocessing, there or, where
    the dataset is a new one, elsewhere in its space.
    """
    folder = description.key.folder(store)
    there = begun(folder)
    if there is None:
        _refuse_another_encoder(store, description)
        return None
    # Neither files nor columns that changed are other settings, but another axis is.
    axis = {name: source.description[name] for name in ("up",) if name in source.description}
    content = {name: value for name, value in there.source.items() if name != "up"}
    before = {"source": content | axis, "columns": there.columns, "numbers": there.numbers}
    begin(store, description.model_copy(update=before))
    return there, find_changes(folder, there, description, source, mine)


def _refuse_another_encoder(store: Path, description: Description) -> None:
    """Raise MismatchError where the space has rows of another encoder or checkpoint."""
    ours = description.encoder
    for key in list_datasets(store):
        if key.space != description.space:
            continue
        try:
            theirs = read_manifest(key.folder(store)).encoder
        except StoreError:  # unfinished or damaged: `verify` says so
            continue
        fields = {"encoder": "encoder", "checkpoint_sha256": "checkpoint"}
        differ = [name for field, name in fields.items() if theirs.get(field) != ours.get(field)]
        if differ and not theirs.get("imported"):
            raise MismatchError(
                f"the space {key.space} is of another {' and '.join(differ)}, as in {key}",
                where=key.folder(store),
                fix="give the new rows a space of their own: --space NAME",
            )


def _find_known(
    store: Path,
    description: Description,
    source: Source,
    update: bool,
    retry: Callable[[Sequence[Failure]], bool],
    mine: Collection[int],
) -> tuple[Description, Known | None]:
    """The rows that an update takes over; None where there is nothing to update.

    With it the description by which the dataset goes on: one that was made when times of change
    counted keeps its own. What failed counts where `retry` says that some of it would not now.
    Raises MismatchError as `compare` does, and without `update` also where the source changed.
    """
    found = compare(store, description, source, mine)
    if found is None:
        return description, None
    there, changes = found
    folder = description.key.folder(store)
    if changes and not update:
        raise changes.error(description.key, folder)
    if not changes:
        remember(folder, there, changes)
    if update and (
        changes
        or (changes.moved and changes.recorded)
        or (changes.failed and retry(_failures(folder, there)))
    ):
        return description, read_known(folder, there, description)
    if source.former is not None and there.source.get("sha256") == source.former:
        before = {**description.source, "sha256": source.former}
        description = description.model_copy(update={"source": before})
    return description, None


def _failures(folder: Path, there: Description) -> Sequence[Failure]:
    return read_failures(folder) if isinstance(there, Manifest) else failures_so_far(folder)


def _any_succeeds(
    encoder: Encoder,
    source: Source,
    autocast: Autocast | None,
    workers: int,
    item_timeout: float,
    failures: Sequence[Failure],
) -> bool:
    """Whether an input that failed can be embedded now; they are tried until one can."""
    failed = {(failure["id"], failure["uri"]) for failure in failures}
    items = (item for item in source.items() if (item.id, item.uri) in failed)
    batches = (Batch(0, [item], [0], last=True) for item in items)
    loaded = load(batches, encoder, source.modality, min(workers, len(failed)), item_timeout)
    encoded = encode_batches(encoder, source.modality, loaded, autocast)
    return any(np.isfinite(vectors).all(axis=1).any() for _, vectors in encoded)


def begin_update(
    store: Path, description: Description, source: Source, max_failures: float
) -> Path:
    """The store in which the new dataset is made; what is there already is of this very source.

    Where more of that failed than `max_failures`, what failed is tried again.
    """
    place = begin_fresh(store, description.key)
    folder = description.key.folder(place)
    there = begun(folder)
    if there is not None and (
        there.identity != description.identity
        or (changes := find_changes(folder, there, description, source))
        or changes.moved
    ):
        discard_fresh(store, description.key)
        begin_fresh(store, description.key)
    elif there is not None:
        _drop_failures(folder, max_failures)
    return place


def _drop_failures(folder: Path, max_failures: float) -> None:
    """Take away the parts in which inputs failed, where more did than `max_failures` allows."""
    parts = {path: part_contents(path) for path in sorted(folder.glob("part-*.parquet"))}
    failures = sum(len(failed) for _, failed in parts.values())
    if failures > max_failures * (failures + sum(rows for rows, _ in parts.values())):
        reopen(folder)
        for path, (_, failed) in parts.items():
            if failed:
                path.unlink()


def _refuse_moved(job: Job) -> None:
    """Raise SourceError when the parts are not of the items that the source was opened with."""
    if job.source.ids is None or not all(
        (job.folder / part_name(part)).exists() for part in range(job.parts)
    ):
        return
    ids = HashIds()
    for part in read_ids(job.folder, job.parts):
        if part is None:
            return
        ids.add_all(part)
    if ids.hex != job.source.ids:
        raise moved(job)
