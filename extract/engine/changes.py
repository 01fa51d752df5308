"""What changed in a source since a dataset was made from it.

    changes = find_changes(folder, source, part_rows)
    if changes: raise changes.error(key, folder)

Items are compared in the source's order, and by id from the first place on where that differs.
"""

import itertools
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cmcr.embeddings import Description, Key, Manifest
from cmcr.embeddings.inventory import Input, read_inputs, refresh_inputs
from cmcr.embeddings.parts import part_name
from cmcr.embeddings.schema import INCIDENTAL
from cmcr.errors import MismatchError
from cmcr.extract.engine.content import digest, in_threads, is_as_recorded, stamp
from cmcr.extract.items import Item
from cmcr.extract.sources.source import Source


@dataclass
class Tally:
    """How many, and the first of them."""

    count: int = 0
    first: str = ""

    def add(self, id: str) -> None:
        """Count one."""
        self.first = self.first or id
        self.count += 1

    def told(self, what: str) -> str:
        """Such as `3 new (first: a.wav)`."""
        return f"{self.count:,} {what}" + (f" (first: {self.first})" if self.count else "")


@dataclass
class Changes:
    """A source beside what is on record of it. True where the dataset is not of this source."""

    described: bool = False  # what the source says of itself: names, sizes, columns, a list's bytes
    fields: tuple[str, ...] = ()  # what else differs there
    recorded: bool = True  # the content that the rows were made from
    finished: bool = True
    failed: int = 0
    new: Tally = field(default_factory=Tally)
    changed: Tally = field(default_factory=Tally)
    gone: Tally = field(default_factory=Tally)
    touched: dict[int, int | None] = field(default_factory=dict)  # equal content, by number

    def __bool__(self) -> bool:
        return bool(self.described or self.new.count or self.changed.count or self.gone.count)

    def __str__(self) -> str:
        if not self.recorded:
            return "what it was made from is not on record"
        told = [self.new.told("new")] if self.finished else []
        told += [self.changed.told("changed"), self.gone.told("gone")]
        if self.described and not (self.new.count or self.changed.count or self.gone.count):
            told.append("but other sizes, order, labels or columns")
        return ", ".join([*told, *(f"another {name}" for name in self.fields)])

    def error(self, key: Key, folder: Path) -> MismatchError:
        """The refusal to mix."""
        since = "" if self.finished else " before the dataset was finished"
        rest = "takes over the rest" if self.recorded else "makes the dataset anew"
        return MismatchError(
            f"the source of {key} changed{since}: {self}",
            where=folder,
            cure=f"`cmcr extract` with --update embeds what is new or changed and {rest}; "
            "or give another --dataset or --store",
        )


def find_changes(folder: Path, there: Description, wanted: Description, source: Source) -> Changes:
    """What changed in `source`, which `wanted` describes, since the rows in `folder` were made.

    Only what size and time do not vouch for is read; `remember` then spares the next comparison
    that.
    """
    fields = [
        name
        for name in sorted({*there.source, *wanted.source} - INCIDENTAL)
        if there.source.get(name) != wanted.source.get(name)
    ]
    described = bool(fields) or there.columns != wanted.columns
    others = tuple(f"source.{name}" for name in fields if name != "sha256")
    finished = isinstance(there, Manifest)
    changes = Changes(described, others, finished=finished)
    if isinstance(there, Manifest):
        changes.failed = there.failures
    if source.sealed and not described and finished:
        return changes
    parts = len(there.parts) if isinstance(there, Manifest) else -(-source.total // there.part_rows)
    known = _on_record(folder, parts, there.part_rows, changes)
    _compare(known, source.items(), changes, "regions" not in fields)
    return changes


def remember(folder: Path, there: Description, changes: Changes) -> None:
    """Write down the new times of change of a finished dataset's inputs of the same content."""
    if changes.touched and isinstance(there, Manifest):
        refresh_inputs(folder, len(there.parts), changes.touched)


def _on_record(
    folder: Path, parts: int, part_rows: int, changes: Changes
) -> Iterator[Input | None]:
    """What each item was; None for one that is not embedded yet, or not on record."""
    for part, inputs in enumerate(read_inputs(folder, parts)):
        if inputs is None or not (changes.finished or (folder / part_name(part)).exists()):
            changes.recorded = changes.recorded and not changes.finished
            yield from itertools.repeat(None, part_rows)
            continue
        if not changes.finished:
            changes.failed += sum(known.failed for known in inputs)
        yield from inputs


def _compare(
    known: Iterator[Input | None], items: Iterator[Item], changes: Changes, same_regions: bool
) -> None:
    doubtful = _doubtful(known, items, changes, same_regions)
    for (number, before, item), sha256 in in_threads(lambda pair: digest(pair[2]), doubtful):
        if sha256 != before.sha256:
            changes.changed.add(item.id)
        elif (now := stamp(item)).mtime_ns != before.mtime_ns:
            changes.touched[number] = now.mtime_ns


def _doubtful(
    known: Iterator[Input | None], items: Iterator[Item], changes: Changes, same_regions: bool
) -> Iterator[tuple[int, Input, Item]]:
    """The items, by number and with what they were, that only a hash can tell about."""
    for number, (before, item) in enumerate(itertools.zip_longest(known, items)):
        if item is None:
            if before is not None:
                changes.gone.add(before.id)
        elif before is None:
            if changes.finished and changes.recorded:
                changes.new.add(item.id)
        elif before.id != item.id:
            rest = [before, *filter(None, known)]
            yield from _by_id(rest, itertools.chain([item], items), changes, same_regions)
            return
        elif not is_as_recorded(item, before, same_regions):
            yield number, before, item


def _by_id(
    known: list[Input], items: Iterator[Item], changes: Changes, same_regions: bool
) -> Iterator[tuple[int, Input, Item]]:
    changes.described = True
    left: dict[str, deque[Input]] = defaultdict(deque)
    for before in known:
        left[before.id].append(before)
    for number, item in enumerate(items):
        if not left[item.id]:
            if changes.finished:
                changes.new.add(item.id)
            continue
        before = left[item.id].popleft()
        if before.uri != item.uri or not is_as_recorded(item, before, same_regions):
            yield number, before, item
    for before in itertools.chain.from_iterable(left.values()):
        changes.gone.add(before.id)
