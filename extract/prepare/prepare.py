"""A published data set as manifests: what its publisher lists, what is there, and what is missing.

    prepared = prepare_dataset("ave", [Path("AVE_Dataset")])
    data/ave/images.csv, audio.csv           id, path, group, label, split
    data/ave/prepared/{frames,audio,clouds}  what was made of the publisher's files
    data/ave/prepared/ave.json               counts, and every item that is missing or bad

An item comes whole or not at all: where its picture cannot be had its sound is left out too, so
that no query is without what it looks for. A run that is killed goes on where it stopped, for made
files are whole and are not made again; manifests appear at the end.
"""

import csv
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cmcr.errors import CmcrError, SourceError, StoreError, UsageError, near
from cmcr.extract.prepare.folder import Folder
from cmcr.extract.prepare.making import Bad, provide
from cmcr.extract.prepare.published import ALL, Listed, Published, Table
from cmcr.extract.prepare.sets.catalogue import SETS
from cmcr.extract.sources.source import valid
from cmcr.files import locked, replacing, write_json, write_text
from cmcr.progress import progress

MADE = "prepared"  # folder beside the manifests
_AT_ONCE = 256  # items in hand
_SHOWN = 5
_MEDIA: tuple[Table, ...] = ("images", "audio", "shapes")


@dataclass
class Prepared:
    """What became of a data set. `published` is None where no number is known for the split."""

    dataset: str
    split: str
    out: str
    published: int | None
    listed: int = 0
    ready: int = 0
    files: dict[str, int] = field(default_factory=dict)  # manifest → rows
    missing: list[str] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        split = "" if self.split == ALL else f" ({self.split})"
        lines = [f"{self.dataset}{split}: {self.ready:,} of {self.listed:,} items are ready"]
        if self.published is not None and self.published != self.listed:
            lines.append(f"  published are {self.published:,}, the lists name {self.listed:,}")
        if self.missing:
            lines.append(f"  missing {len(self.missing):,}: {_some(self.missing)}")
        if self.bad:
            first = self.bad[0]
            lines.append(f"  bad     {len(self.bad):,}: {_some([row['id'] for row in self.bad])}")
            lines.append(f"          {first['file']}: {first['why']}")
        if self.missing or self.bad:
            lines.append(f"  all of them are in {Path(self.out, MADE, self.dataset)}.json")
        lines += [f"  {Path(self.out, name)}  {rows:,} rows" for name, rows in self.files.items()]
        return "\n".join(lines)


def published(name: str) -> Published:
    """The data set of this name. Raises UsageError where there is none."""
    if name not in SETS:
        raise UsageError(f"there is no data set {name!r} to prepare", fix=near(name, SETS))
    return SETS[name]


def prepare_dataset(
    name: str, folders: Sequence[Path], out: Path | None = None, split: str | None = None
) -> Prepared:
    """Write the manifests of the data set that lies in `folders` below `out`.

    Raises UsageError for a name, a folder or a split that is not there, SourceError for lists that
    cannot be read or of which nothing is there, StoreError where another process prepares the set.
    """
    definition = published(name)
    split = split or definition.split
    out = out or definition.out
    skip = out / MADE if any(out.absolute() == folder.absolute() for folder in folders) else out
    folder = Folder(folders, skip)
    with locked(out / f".{name}.lock") as mine:
        if not mine:
            raise StoreError(
                f"another process is preparing {name}", where=out, fix="wait for it to end"
            )
        prepared = Prepared(name, split, str(out), definition.counts.get(split))
        labels = _write_manifests(definition, folder, out, prepared)
        if definition.classes:
            write_text(out / "classes.txt", "".join(f"{label}\n" for label in sorted(labels)))
            prepared.files["classes.txt"] = len(labels)
        for path in folder.all(*definition.annotations):
            _copy(path, out / _place(path, definition))
        write_json(out / MADE / f"{name}.json", prepared.as_dict())
    return prepared


def _write_manifests(
    definition: Published, folder: Folder, out: Path, prepared: Prepared
) -> set[str]:
    """Fill in `prepared`; the labels of all items that are listed in the split."""
    labels: set[str] = set()
    splits: Counter[str] = Counter()
    with ExitStack() as stack:
        writers = {table: _Writer(out, table, stack) for table in definition.tables}
        pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        advance = stack.enter_context(progress(f"prepare {prepared.dataset}", prepared.published))
        items = _of_split(_read(definition, folder), prepared.split, splits)
        for batch in _batches(items, _AT_ONCE):
            for item, media in zip(
                batch, pool.map(partial(_provide, out / MADE), batch), strict=True
            ):
                prepared.listed += 1
                if item.label:
                    labels.add(item.label)
                bad = [medium for medium in media.values() if isinstance(medium, Bad)]
                if None in media.values():
                    prepared.missing.append(item.id)
                elif bad:
                    prepared.bad.append({"id": item.id, "file": bad[0].file, "why": bad[0].why})
                else:
                    prepared.ready += 1
                    _write_item(item, media, writers, definition.tables, out)
            advance(len(batch))
        prepared.files = {one.name: one.rows for one in writers.values() if one.rows}
        _refuse_nothing(definition, folder, prepared, splits)
    return labels


def _read(definition: Published, folder: Folder) -> Iterator[Listed]:
    try:
        yield from definition.read(folder)
    except CmcrError:
        raise
    except Exception as error:  # of csv, json, gzip, pickle, HDF5, and lists of another shape
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise SourceError(
            f"the lists of {definition.name} cannot be read: {what}",
            where=folder,
            fix=f"give them as {definition.where} offers them",
        ) from error


def _of_split(items: Iterable[Listed], split: str, seen: Counter[str]) -> Iterator[Listed]:
    for item in items:
        seen[item.split] += 1
        if split in (ALL, item.split):
            yield item


def _batches(items: Iterable[Listed], size: int) -> Iterator[list[Listed]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch


def _provide(made: Path, item: Listed) -> dict[Table, Path | Bad | None]:
    if None in item.media.values():
        return dict.fromkeys(item.media)
    return {
        table: provide(medium, made, item.id)
        for table, medium in item.media.items()
        if medium is not None
    }


def _refuse_nothing(
    definition: Published, folder: Folder, prepared: Prepared, splits: Counter[str]
) -> None:
    if not prepared.listed and splits:
        raise UsageError(
            f"{definition.name} has no split {prepared.split!r} in this folder",
            where=folder,
            fix=near(prepared.split, [*sorted(splits), ALL]),
        )
    if not prepared.ready:
        raise SourceError(
            f"of {prepared.listed:,} items that {definition.name} lists none is there"
            + (
                f" ({len(prepared.bad):,} are bad: {prepared.bad[0]['why']})"
                if prepared.bad
                else ""
            ),
            where=folder,
            fix=f"{definition.needs or 'the media'}; got from {definition.where}",
        )


class _Writer:
    """A manifest with the columns of its first row; it appears when `stack` ends without error."""

    def __init__(self, out: Path, table: Table, stack: ExitStack) -> None:
        self.name = f"{table}.tsv" if table == "texts" else f"{table}.csv"
        self.rows = 0
        self._path = out / self.name
        self._stack = stack
        self._writer: csv.DictWriter[str] | None = None

    def write(self, row: dict[str, str]) -> None:
        if self._writer is None:
            unfinished = self._stack.enter_context(replacing(self._path))
            file = self._stack.enter_context(unfinished.open("w", encoding="utf-8", newline=""))
            delimiter = "\t" if self.name.endswith(".tsv") else ","
            self._writer = csv.DictWriter(file, list(row), delimiter=delimiter, lineterminator="\n")
            self._writer.writeheader()
        self._writer.writerow(row)
        self.rows += 1


def _write_item(
    item: Listed,
    media: dict[Table, Path | Bad | None],
    writers: dict[Table, _Writer],
    tables: tuple[Table, ...],
    out: Path,
) -> None:
    """A row in each table. Rows that tell of one thing share a `group`, where there are several."""
    group = {"group": item.id} if len(tables) > 1 else {}
    known = {**group, "label": item.label, "split": item.split, **item.more}
    for table, path in media.items():
        assert isinstance(path, Path)
        writers[table].write({"id": item.id, "path": _relative(path, out), **known})
    if item.texts:
        table = next(table for table in tables if table not in _MEDIA)
        for number, text in enumerate(item.texts):
            id = f"{item.id}#{number}" if item.media else item.id
            writers[table].write({"id": id, "text": valid(text), **(known if item.media else {})})


def _relative(path: Path, out: Path) -> str:
    """What is below the manifest by its path from there, the publisher's own files by theirs."""
    made = out / MADE
    return str(path.relative_to(out)) if path.is_relative_to(made) else str(path)


def _place(path: Path, definition: Published) -> Path:
    """An annotation's path beside the manifests: in its folder where the pattern names one."""
    pattern = next(one for one in definition.annotations if path.match(one))
    return Path(path.parent.name, path.name) if "/" in pattern else Path(path.name)


def _copy(path: Path, target: Path) -> None:
    content = path.read_bytes()
    if not target.exists() or target.read_bytes() != content:
        with replacing(target) as unfinished:
            unfinished.write_bytes(content)


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
