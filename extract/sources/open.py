"""Where media comes from: a folder, a list, a tar, or data that ships with cmcr.

    source = open_source("audio", "recordings/")        # class folders give labels
    source = open_source("text", "captions.txt")        # one text a line
    source = open_source("image", "items.csv")          # columns path, and id, label, group, ...
    source = open_source("image", "train.parquet")      # media in a column; also a folder of these
    source = open_source("audio", "clips.tar")          # webdataset; also a folder of such tars
    source = open_source("pointcloud", "modelnet40/", up="z")   # Princeton's meshes
    source = open_source("image", "photos.plan.parquet")          # extract/sources/plans.py
    source = open_source("text", "builtin:digits/phrases")
    source = open_source("text", "prompts:classes.txt:templates.txt")   # extract/sources/prompts.py
    for item in source.items(): ...                     # always in the same order

A source can be read again and again, holds no more than one item in memory at a time, and its
description changes when what it would yield changes. Its items have absolute paths: the same,
whatever folder the command is run from.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import SourceError, UsageError, near
from cmcr.extract.items import Item, UpAxis
from cmcr.extract.media.readers import Files, reader_of
from cmcr.extract.sources.folders import folder, one_file
from cmcr.extract.sources.manifests import READERS, manifest, media_column, media_table
from cmcr.extract.sources.plans import SUFFIX, is_plan, open_plan
from cmcr.extract.sources.prompts import PREFIXES, prompts
from cmcr.extract.sources.source import Source
from cmcr.extract.sources.webdataset import ENDINGS, is_tar, webdataset

__all__ = ["Source", "open_source"]


def open_source(
    modality: Modality,
    where: str,
    pattern: str | None = None,
    up: UpAxis = "y",
    files: Files | None = None,
) -> Source:
    """The source that `where` names.

    `pattern` is a regular expression for the names of files in a folder, or with a slash for
    their paths in it; its named groups `label` and `group` are those of the item, every other one
    becomes a column. `up` is the axis of its point clouds that points upwards. With `files` its
    items are of another kind than the modality's own, such as films, and one file is a source too.

    Raises UsageError for a place that is not there or not of a known kind, a modality that nothing
    reads, or an axis of what has none, SourceError for a place that is damaged or holds nothing to
    embed.
    """
    if is_plan(Path(where).expanduser()):
        return _planned(modality, where, pattern, up, files)
    if up != "y":
        return _turned(open_source(modality, where, pattern), up)
    reader_of(modality)  # raises for what nothing reads
    if pattern and not Path(where).expanduser().is_dir():
        raise UsageError(
            "a pattern reads the names of files in a folder, and this is none",
            where=where,
            fix="leave --pattern out; a list or a tar says label, group and columns itself",
        )
    if where.startswith(PREFIXES):
        return prompts(modality, where)
    if where.startswith("builtin:"):
        return _builtin(modality, where)
    path = _absolute(Path(where).expanduser())
    if path.is_dir():
        shards = _shards(path)
        if shards and files is None:
            return webdataset(modality, path, shards)
        tables = _shards(path, _is_table) if files is None else []
        if tables and (column := _common_column(modality, tables)):
            return media_table(modality, path, tables, column)
        return folder(modality, path, pattern, files)
    if not path.is_file():
        raise UsageError(
            "there is no such folder or file",
            where=where,
            fix="put it there, or name another place: --source MODALITY=WHERE",
        )
    if files is not None and path.suffix.lower() in files.suffixes:
        return one_file(modality, path)
    if is_tar(path) and files is None:
        return webdataset(modality, path, [path])
    if files is None and (column := media_column(modality, path)):
        return media_table(modality, path, [path], column)
    if path.suffix.lower() in READERS:
        return manifest(modality, path)
    raise UsageError(
        f"a source is not read from {path.suffix or 'a file without suffix'}",
        where=where,
        fix=f"a folder, builtin:NAME, or a file of {', '.join([*READERS, *ENDINGS])}"
        if files is None
        else f"a folder, a list of {', '.join(READERS)}, or a file of "
        f"{' '.join(sorted(files.suffixes))}",
    )


def _planned(
    modality: Modality, where: str, pattern: str | None, up: UpAxis, files: Files | None
) -> Source:
    if pattern or up != "y" or files is not None:
        raise UsageError(
            "a plan says already how its source is read and cut",
            where=where,
            fix="give --pattern, --up, --frames and --window to `cmcr plan`",
        )
    return open_plan(modality, _absolute(Path(where).expanduser()))


def _turned(source: Source, up: UpAxis) -> Source:
    if source.modality != "pointcloud":
        raise UsageError(
            f"no axis of {source.modality} points upwards", fix="give --up with point clouds only"
        )

    def items() -> Iterator[Item]:
        for item in source.items():
            yield replace(item, up=up)

    return replace(source, description={**source.description, "up": up}, items=items)


def _absolute(path: Path) -> Path:
    """`path` from the root on, so that rows say where media lie wherever they are read.

    Links stay as they are named; but what is up from a link only the file system knows.
    """
    return path.resolve() if ".." in path.parts else path.absolute()


def _shards(path: Path, is_one: Callable[[Path], bool] = is_tar) -> list[Path]:
    """The tars in a folder that holds nothing else but plans, or what else `is_one`."""
    shards = []
    with suppress(PermissionError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name.endswith(SUFFIX):
                continue
            if not is_one(Path(entry.name)) or not entry.is_file():
                return []
            shards.append(Path(entry.path))
    return sorted(shards)


def _is_table(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _common_column(modality: Modality, tables: Sequence[Path]) -> str | None:
    """The column of media in all tables; None where none has one. Raises SourceError for some."""
    columns = {table: media_column(modality, table) for table in tables}
    found = next(filter(None, columns.values()), None)
    for table, column in columns.items():
        if column != found:
            raise SourceError(
                f"other files of this folder hold {modality} in a column {found}, this one "
                + (f"in {column}" if column else "holds none"),
                where=table,
                fix="put it elsewhere, or write it again with that column",
            )
    return found


def _builtin(modality: Modality, where: str) -> Source:
    from cmcr.extract.digits.world.builtin import BUILTIN

    name = where.removeprefix("builtin:")
    if name not in BUILTIN or BUILTIN[name].modality != modality:
        fitting = [other for other, data in BUILTIN.items() if data.modality == modality]
        raise UsageError(
            f"there is no {modality} named {where}",
            fix=near(where, [f"builtin:{other}" for other in fitting]),
        )
    builtin = BUILTIN[name]
    return Source(
        modality,
        name=name.rpartition("/")[2],
        description={"kind": "builtin", "where": where, "sha256": builtin.sha256()},
        items=builtin.read,
        total=sum(1 for _ in builtin.read()),
        columns=builtin.columns,
        numbers=builtin.numbers,
        sealed=True,
    )
