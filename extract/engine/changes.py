"""What changed in a source since a dataset was made from it.

    changes = find_changes(folder, there, wanted, source)
    if changes: raise changes.error(key, folder)

Items are compared with the rows on record in the source's order, and by id from the first place on
where the ids differ; what size and time of change do not vouch for is hashed.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cmcr.embeddings import Description, Key, Manifest
from cmcr.embeddings.inventory import Input, Inputs, Record, read_inputs, refresh_inputs
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

    def add(self, id: str, count: int = 1) -> None:
        """Count one, or as many of which this is the first."""
        self.first = self.first or id
        self.count += count

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
    moved: tuple[str, str] | None = None  # where the source lay, and where it lies now
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
        if self.moved:
            return MismatchError(
                f"{key} was made from {self.moved[0]}, this is {self.moved[1]}: {self}",
                where=folder,
                fix="give another source another --dataset (or --store); where it is the same one "
                f"that moved, `cmcr extract` with --update embeds what is new or changed and "
                f"{rest}, and what is gone is dropped",
            )
        return MismatchError(
            f"the source of {key} changed{since}: {self}",
            where=folder,
            fix=f"`cmcr extract` with --update embeds what is new or changed and {rest}; "
            "or give another --dataset or --store",
        )


def find_changes(
    folder: Path,
    there: Description,
    wanted: Description,
    source: Source,
    mine: Collection[int] | None = None,
) -> Changes:
    """What changed in `source`, which `wanted` describes, since the rows in `folder` were made.

    Of a source that was planned only the parts in `mine` are compared: shards share the work.

    Only what size and time do not vouch for is read; `remember` then spares the next comparison
    that.
    """
    former = there.source.get("sha256") == source.former and source.former is not None
    fields = [
        name
        for name in sorted({*there.source, *wanted.source} - INCIDENTAL)
        if there.source.get(name) != wanted.source.get(name) and not (former and name == "sha256")
    ]
    described = bool(fields) or there.columns != wanted.columns
    others = tuple(f"source.{name}" for name in fields if name != "sha256")
    finished = isinstance(there, Manifest)
    places = str(there.source.get("where")), str(wanted.source.get("where"))
    moved = places if places[0] != places[1] else None
    changes = Changes(described, others, finished=finished, moved=moved)
    if isinstance(there, Manifest):
        changes.failed = there.failures
    if source.sealed and not described and finished:
        return changes
    parts = len(there.parts) if isinstance(there, Manifest) else -(-source.total // there.part_rows)
    compared: Collection[int] = range(parts)
    items = source.items()
    if source.part is not None and mine is not None:
        if described:
            return changes
        compared, items = mine, itertools.chain.from_iterable(map(source.part, mine))
    known = _on_record(folder, compared, changes)
    same_regions = not {"regions", "frames", "windows"}.intersection(fields)
    doubtful = _doubtful(known, there.part_rows, items, changes, same_regions)
    _compare(doubtful, changes)
    if len(compared) < parts:
        changes.touched.clear()  # they are numbered from the first part on
    return changes


def remember(folder: Path, there: Description, changes: Changes) -> None:
    """Write down the new times of change of a finished dataset's inputs of the same content."""
    if changes.touched and isinstance(there, Manifest):
        refresh_inputs(folder, len(there.parts), changes.touched)


def _on_record(folder: Path, parts: Collection[int], changes: Changes) -> Iterator[Inputs | None]:
    """What the items of each part were; None where they are not embedded yet, or not on record."""
    for part, inputs in zip(parts, read_inputs(folder, parts), strict=True):
        if inputs is None or not (changes.finished or (folder / part_name(part)).exists()):
            changes.recorded = changes.recorded and not changes.finished
            yield None
            continue
        if not changes.finished:
            changes.failed += sum(inputs.column("failed"))
        yield inputs


def _compare(doubtful: Iterator[tuple[int, Input, Item]], changes: Changes) -> None:
    for (number, before, item), sha256 in in_threads(lambda pair: digest(pair[2]), doubtful):
        if sha256 != before.sha256:
            changes.changed.add(item.id)
        elif (now := stamp(item)).mtime_ns != before.mtime_ns:
            changes.touched[number] = now.mtime_ns


def _doubtful(
    known: Iterator[Inputs | None],
    part_rows: int,
    items: Iterator[Item],
    changes: Changes,
    same_regions: bool,
) -> Iterator[tuple[int, Input, Item]]:
    """The items, by number and with what they were, that only a hash can tell about."""
    numbers = itertools.count()
    for inputs in known:
        if inputs is None:
            for _ in zip(itertools.islice(items, part_rows), numbers, strict=False):
                pass
            continue
        columns = (inputs.column(name) for name in ("id", "size", "mtime_ns"))
        for row, (id, size, mtime_ns) in enumerate(zip(*columns, strict=True)):
            item = next(items, None)
            if item is None:
                changes.gone.add(id, len(inputs) - row)
                changes.gone.count += sum(len(rest) for rest in known if rest is not None)
                return
            if id != item.id:
                rest = itertools.chain([Inputs(inputs.table.slice(row))], known)
                yield from _by_id(rest, itertools.chain([item], items), changes, same_regions)
                return
            number = next(numbers)
            if not is_as_recorded(item, size, mtime_ns, same_regions):
                yield number, inputs[row], item
    for item in items:
        if changes.finished and changes.recorded:
            changes.new.add(item.id)


def _by_id(
    known: Iterator[Inputs | None], items: Iterator[Item], changes: Changes, same_regions: bool
) -> Iterator[tuple[int, Input, Item]]:
    changes.described = True
    left = Record()
    for inputs in known:
        if inputs is not None:
            left.add(inputs)
    found = bytearray(len(left))
    repeated: Counter[str] = Counter()
    for number, item in enumerate(items):
        numbers = left.find(item.id)
        at = repeated[item.id] if len(numbers) > 1 else sum(found[number] for number in numbers)
        if at == len(numbers):
            if changes.finished:
                changes.new.add(item.id)
            continue
        if len(numbers) > 1:
            repeated[item.id] += 1
        found[numbers[at]] = True
        before = left[numbers[at]]
        same = before.uri == item.uri
        if not (same and is_as_recorded(item, before.size, before.mtime_ns, same_regions)):
            yield number, before, item
    if gone := found.count(0):
        changes.gone.add(left[found.index(0)].id, gone)
