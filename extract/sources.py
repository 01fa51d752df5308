"""Where media comes from: a folder, a list, a tar, or data that ships with cmcr.

    source = open_source("audio", "recordings/")        # class folders give labels
    source = open_source("text", "captions.txt")        # one text a line
    source = open_source("image", "items.csv")          # columns path, and id, label, group, ...
    source = open_source("audio", "clips.tar")          # webdataset; also a folder of such tars
    source = open_source("text", "builtin:digits/phrases")
    source = open_source("text", "prompts:classes.txt:templates.txt")   # extract/prompts.py
    for item in source.items(): ...                     # always in the same order

A source can be read again and again, holds no more than one item in memory at a time, and its
description changes when what it would yield changes.
"""

import os
from contextlib import suppress
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import UsageError, near
from cmcr.extract.folders import folder
from cmcr.extract.manifests import READERS, manifest
from cmcr.extract.prompts import PREFIXES, prompts
from cmcr.extract.rows import Source
from cmcr.extract.webdataset import ENDINGS, is_tar, webdataset

__all__ = ["Source", "open_source"]


def open_source(modality: Modality, where: str, pattern: str | None = None) -> Source:
    """The source that `where` names.

    `pattern` is a regular expression for file names in a folder; its named groups `label` and
    `group` are those of the item, every other one becomes a column.

    Raises UsageError for a place that is not there or not of a known kind, SourceError for one
    that is damaged or holds nothing to embed.
    """
    if where.startswith(PREFIXES):
        return prompts(modality, where)
    if where.startswith("builtin:"):
        return _builtin(modality, where)
    path = Path(where).expanduser()
    if path.is_dir():
        shards = _shards(path)
        if shards:
            return webdataset(modality, path, shards)
        return folder(modality, path, pattern)
    if not path.is_file():
        raise UsageError(
            "there is no such folder or file",
            where=where,
            cure="put it there, or name another place: --source MODALITY=WHERE",
        )
    if is_tar(path):
        return webdataset(modality, path, [path])
    if path.suffix.lower() in READERS:
        return manifest(modality, path)
    raise UsageError(
        f"a source is not read from {path.suffix or 'a file without suffix'}",
        where=where,
        cure=f"a folder, builtin:NAME, or a file of {', '.join([*READERS, *ENDINGS])}",
    )


def _shards(path: Path) -> list[Path]:
    """The tars in a folder that holds nothing else."""
    shards = []
    with suppress(PermissionError), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not is_tar(Path(entry.name)) or not entry.is_file():
                return []
            shards.append(Path(entry.path))
    return sorted(shards)


def _builtin(modality: Modality, where: str) -> Source:
    from cmcr.extract.digits.sources import BUILTIN

    name = where.removeprefix("builtin:")
    if name not in BUILTIN or BUILTIN[name].modality != modality:
        fitting = [other for other, data in BUILTIN.items() if data.modality == modality]
        raise UsageError(
            f"there is no {modality} named {where}",
            cure=near(where, [f"builtin:{other}" for other in fitting]),
        )
    builtin = BUILTIN[name]
    return Source(
        modality,
        name=name.rpartition("/")[2],
        description={"kind": "builtin", "where": where, "sha256": builtin.sha256()},
        items=builtin.read,
        total=sum(1 for _ in builtin.read()),
        columns=builtin.columns,
    )
