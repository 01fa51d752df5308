"""`cmcr merge`: one dataset of several, without embedding or copying anything.

    merged = merge_datasets(store, [Key("clip", "image", "a"), Key("clip", "image", "b")],
                            Key("clip", "image", "all"))

The parts of the first, then those of the second, and so on, are parts of the new dataset under
names that count through: hard links where the file system has them, else copies. No part is ever
written to, so both names may stay, and either dataset may be removed. Rows keep their order, their
failures stand one after another, and so do the inputs where each dataset knows its own. The sources
are left as they are.

The manifest is written last, as of any dataset: what was killed is an unfinished dataset, of which
the same command links what is missing. `cmcr extract` does not go on with a merged dataset: it is
of several sources. An update of one of them is taken over by removing the merged one and merging
again.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cmcr.embeddings.index import about_index, build_index, index_is_current
from cmcr.embeddings.inventory import join_inputs
from cmcr.embeddings.parts import part_metadata, part_name, read_failures, write_failures
from cmcr.embeddings.reader import Dataset, open_dataset
from cmcr.embeddings.schema import FAILURES, MANIFEST, Description, Key, Manifest, Part
from cmcr.embeddings.writer import BEGUN, begin, begun, held, is_complete
from cmcr.errors import MismatchError, UsageError
from cmcr.files import link_or_copy, locked, sha256_file, write_text

_SHOWN = 4  # of ids, or settings, that stand in the way


@dataclass(frozen=True)
class Merged:
    """The merged dataset, and what this call did for it; nothing where it was there already."""

    dataset: Dataset
    sources: tuple[Key, ...]
    linked: int  # parts
    copied: int
    indexed: bool
    fresh: bool

    def __str__(self) -> str:
        of = " and ".join(map(str, self.sources))
        if not self.fresh:
            done = "its index made" if self.indexed else "up to date"
            return f"{done}: {self.dataset.key}  {self.dataset.rows:,} rows of {of}"
        made = f"{self.linked:,} parts linked" + f", {self.copied:,} copied" * bool(self.copied)
        return f"merged: {of} into {self.dataset.key}  {self.dataset.rows:,} rows, {made}"

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "dataset": str(self.dataset.key),
            "merged": list(map(str, self.sources)),
            "rows": self.dataset.rows,
            "failures": self.dataset.manifest.failures,
            "linked": self.linked,
            "copied": self.copied,
            "indexed": self.indexed,
            "fresh": self.fresh,
        }


def merge_datasets(store: Path, keys: Sequence[Key], into: Key) -> Merged:
    """Make `into` of the datasets `keys`, in this order, and an index if they have one.

    They are of one space, modality, encoder, width, precision and columns, and no id is in two of
    them. Every part is checked first. Waits for processes that work on any of them. Raises
    UsageError for datasets that are not there or a name that is taken, MismatchError for datasets
    that do not go together, StoreError for a damaged one.
    """
    _check_names(store, keys, into)
    with ExitStack() as stack:
        for key in sorted({*keys, into}):  # in one order, so that no two wait for each other
            stack.enter_context(held(store, key, alone=key == into))
        datasets = [open_dataset(store, key) for key in keys]
        _refuse_differences(datasets)
        _refuse_shared_ids(datasets)
        description = _describe(datasets, into)
        folder = _begin(store, description)
        fresh = not is_complete(folder)
        linked = copied = 0
        if fresh:
            with locked(folder / ".lock", wait=True):
                linked, copied = _gather(folder, description, datasets)
        merged = open_dataset(store, into, check=False)
        factory = _index_of(datasets)
        indexed = factory is not None and not index_is_current(merged, factory)
        if factory is not None and indexed:
            build_index(merged, factory)
    return Merged(merged, tuple(keys), linked, copied, indexed, fresh)


def _check_names(store: Path, keys: Sequence[Key], into: Key) -> None:
    if len(set(keys)) < 2 or len(set(keys)) < len(keys):
        raise UsageError("two different datasets or more make one", fix="cmcr merge A B --into C")
    if into in keys:
        raise UsageError(
            f"{into} is one of those that are merged",
            fix="give the merged dataset a name of its own; `cmcr remove` and `cmcr rename` then "
            "give it the old one",
        )
    if len(places := {(key.space, key.modality) for key in (*keys, into)}) > 1:
        spelt = ", ".join(sorted(f"{space}/{modality}" for space, modality in places))
        raise UsageError(
            f"datasets of one space and modality can be merged, these are of {spelt}", where=store
        )


def _refuse_differences(datasets: Sequence[Dataset]) -> None:
    first, *others = datasets
    for other in others:
        if other.encoder_identity != first.encoder_identity:
            raise MismatchError(
                f"{first.key} and {other.key} were made by two different encoders",
                where=other.folder,
                fix="extract both with the same encoder, checkpoint and preprocessing",
            )
        for name in ("dim", "precision", "columns", "numbers"):
            one, two = (getattr(dataset.manifest, name) for dataset in (first, other))
            if one != two:
                raise MismatchError(
                    f"{first.key} and {other.key} differ in {name}: {_text(one)} and {_text(two)}",
                    where=other.folder,
                    fix="make both with the same flags, from sources with the same columns",
                )


def _text(value: object) -> str:
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value)


def _refuse_shared_ids(datasets: Sequence[Dataset]) -> None:
    """An id may occur twice within one dataset: several captions of one picture share it."""
    known: dict[str, Key] = {}
    for dataset in datasets:
        ids = dict.fromkeys(dataset.ids())
        if twice := [id for id in ids if id in known]:
            shown = ", ".join(map(repr, twice[:_SHOWN])) + ", …" * (len(twice) > _SHOWN)
            imported = dataset.manifest.encoder.get("imported")
            raise MismatchError(
                f"{len(twice):,} ids are in {known[twice[0]]} and in {dataset.key}: {shown}",
                where=dataset.folder,
                fix=f"import {dataset.key} again with --metadata that has a column `id` of its "
                "own: without one a row's number is its id"
                if imported
                else "embed one of them again with other ids (a manifest's column `id`), or "
                "without the items that the other one has",
            )
        known |= dict.fromkeys(ids, dataset.key)


def _describe(datasets: Sequence[Dataset], into: Key) -> Description:
    """What the merged dataset is made from; its source changes where a part of them does."""
    first = datasets[0].manifest
    written = [
        str((part_metadata(dataset.folder / part.name) or {}).get("description"))
        for dataset in datasets
        for part in dataset.manifest.parts
    ]
    return Description(
        space=into.space,
        modality=into.modality,
        dataset=into.dataset,
        dim=first.dim,
        precision=first.precision,
        part_rows=max(dataset.manifest.part_rows for dataset in datasets),
        columns=first.columns,
        numbers=first.numbers,
        encoder=first.encoder,
        source={
            "kind": "merge",
            "of": [
                {
                    "dataset": str(dataset.key),
                    "parts_sha256": _digest(dataset.manifest.parts),
                    "source": dataset.manifest.source,
                }
                for dataset in datasets
            ],
        },
        written_as=tuple(dict.fromkeys(written)),
    )


def origins(dataset: Dataset) -> frozenset[str]:
    """The dataset and all that it was merged from, by name and by the hash of their parts."""
    found = {str(dataset.key), _digest(dataset.manifest.parts)}
    sources = [dataset.manifest.source]
    while sources:
        source = sources.pop()
        for one in source.get("of", []) if source.get("kind") == "merge" else []:
            found |= {one["dataset"], one["parts_sha256"]}
            sources.append(one["source"])
    return frozenset(found)


def _digest(parts: Sequence[Part]) -> str:
    return hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()


def _begin(store: Path, description: Description) -> Path:
    there = begun(description.key.folder(store))
    if there is not None and there.identity != description.identity:
        raise UsageError(
            f"the store has a dataset {description.key} already, which is not of these datasets "
            "as they are now",
            where=description.key.folder(store),
            fix=f"give another --into, or `cmcr remove {description.key}` first",
        )
    return begin(store, description)


def _gather(folder: Path, description: Description, datasets: Sequence[Dataset]) -> tuple[int, int]:
    """Link or copy the parts that are missing, then write what is known of them all."""
    parts: list[Part] = []
    done = [0, 0]
    for dataset in datasets:
        for part in dataset.manifest.parts:
            target = folder / part_name(len(parts))
            parts.append(part.model_copy(update={"name": target.name}))
            if target.exists() and sha256_file(target) == part.sha256:
                continue
            target.unlink(missing_ok=True)
            done[link_or_copy(dataset.folder / part.name, target)] += 1
    failures = [one for dataset in datasets for one in read_failures(dataset.folder)]
    write_failures(folder / FAILURES, failures)
    join_inputs(folder, [(dataset.folder, len(dataset.manifest.parts)) for dataset in datasets])
    manifest = Manifest(
        **description.model_dump(),
        rows=sum(part.rows for part in parts),
        failures=len(failures),
        parts=parts,
    )
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    (folder / BEGUN).unlink(missing_ok=True)
    copied, linked = done
    return linked, copied


def _index_of(datasets: Sequence[Dataset]) -> str | None:
    """The FAISS factory string of the first index among theirs."""
    for dataset in datasets:
        if about := about_index(dataset.folder):
            return str(about["factory"])
    return None
