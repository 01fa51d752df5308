"""webdataset tars as a source: files of one key lie side by side and make one sample.

    source = webdataset("audio", Path("clips.tar"), [Path("clips.tar")])

    dog/0001.flac  dog/0001.json  dog/0001.txt        key dog/0001: up to the first dot of the name

The item's id is the key. `.json` gives id, label, group, text or caption, and columns; `.cls` the
label; `.txt` the text, never a point cloud. Several texts in a list are a row each (dog/0001#0, …)
and one `group` with the media of their key. Every file of the modality is an item: where the name
goes on after the key (0001.left.jpg), so does the id (0001.left). Other files, links and hidden
ones are passed over. A tar is read from front to back, one sample at a time; of a plain one the
media are not even read here but by the worker that decodes them. A compressed one (.tar.gz) is
unpacked again for each pass.
"""

import hashlib
import io
import itertools
import json
import lzma
import re
import shlex
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.items import LARGEST_MEMBER, Item, Refused, Slice, file_uri
from cmcr.extract.media.readers import files_of
from cmcr.extract.sources.source import (
    TEXT_COLUMNS,
    HashIds,
    Source,
    as_text,
    columns,
    extra,
    labels,
    valid,
)

ENDINGS = (".tar", ".tar.gz", ".tgz")
LARGEST_NOTE = 1 << 20  # bytes of a .json, .cls or .txt


@cache
def _suffixes(modality: Modality) -> frozenset[str]:
    """What a file of the modality ends in: a .txt is the caption of its key, no list of points."""
    suffixes = files_of(modality).suffixes
    return suffixes - {".txt"} if modality == "pointcloud" else suffixes


def is_tar(path: Path) -> bool:
    """Whether the file's name says that it is a tar."""
    return path.name.lower().endswith(ENDINGS)


def webdataset(modality: Modality, where: Path, shards: Sequence[Path]) -> Source:
    """The samples of the tars, in their order. `where` is the tar, or the folder that holds them.

    One pass over the headers (and the small .json files) counts the items. The description knows
    the members by their names and sizes and by what the .json and .cls files say: hashing
    terabytes would take longer than embedding them.

    Raises SourceError for a tar that is damaged or cut short, naming what would make it usable,
    for one whose files are not sorted by key, and where there is nothing of the modality.
    """
    digest, former = hashlib.sha256(), hashlib.sha256()
    names: dict[str, None] = {}
    total = 0
    ids = HashIds()
    for shard in shards:
        digest.update(f"{file_uri(shard.name)}\n".encode())
        status = shard.stat()
        state = f"{status.st_size}\0{status.st_mtime_ns}"
        former.update(f"{file_uri(shard.name)}\0{state}\n".encode())
        kinds: set[frozenset[bool]] = set()
        for sample in _samples(modality, shard):
            digest.update(repr((sample.members, sample.notes)).encode())
            # A dataset that was made of the first of several texts alone is another.
            if isinstance(_noted(sample.notes), list):
                digest.update(repr([item.id for item in sample.items]).encode())
            former.update(repr(sample.members).encode())
            for item in sample.items:
                ids.add(item.id)
            names.update(dict.fromkeys(sample.notes))
            total += len(sample.items)
            kinds.add(frozenset(_is_note(name) for name, _ in sample.members))
        if kinds == {frozenset([True]), frozenset([False])}:
            raise SourceError(
                "no .json or .cls in the tar lies beside the file that it is about",
                where=shard,
                fix="pack it again, sorted: tar --sort=name -cf NEW.tar -C FOLDER .",
            )
    if not total:
        raise SourceError(
            f"the tar holds no {modality} files",
            where=where,
            fix=f"files are read by their suffix: {' '.join(sorted(_suffixes(modality)))}",
        )
    return Source(
        modality,
        name=re.sub(r"\.(tar|tar\.gz|tgz)$", "", where.resolve().name, flags=re.IGNORECASE),
        description={"kind": "webdataset", "where": file_uri(where), "sha256": digest.hexdigest()},
        items=partial(_all_items, modality, tuple(shards)),
        total=total,
        columns=columns(names),
        ids=ids.hex,
        former=former.hexdigest(),
    )


def _all_items(modality: Modality, shards: Sequence[Path]) -> Iterator[Item]:
    for shard in shards:
        for sample in _samples(modality, shard):
            yield from sample.items


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tar holds under one key."""

    items: Sequence[Item]
    notes: dict[str, Any]
    members: Sequence[tuple[str, int]]  # names and sizes
    end: int  # the byte of the tar after it


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a tar."""

    tar: tarfile.TarFile
    info: tarfile.TarInfo
    name: str
    key: str

    def read(self) -> bytes:
        """Its bytes."""
        file = self.tar.extractfile(self.info)
        return file.read() if file is not None else b""


def _samples(modality: Modality, shard: Path) -> Iterator[Sample]:
    """The samples of a tar. Raises SourceError where it is damaged, after those before."""
    whole, end = 0, 0
    try:
        with tarfile.open(shard, "r:*", tarinfo=Header) as tar:
            for key, members in itertools.groupby(_members(tar), lambda member: member.key):
                sample = _sample(modality, file_uri(shard), key, members)
                whole, end = whole + 1, sample.end
                yield sample
    except (
        tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, RecursionError
    ) as error:  # fmt: skip
        why = str(error).partition("\n")[0]
        if not whole:
            raise SourceError(
                f"not a tar that can be read: {why}",
                where=shard,
                fix="fetch it again, or pack it with `tar -cf`",
            ) from error
        unpack = "cat" if shard.suffix.lower() == ".tar" else "gzip -dc"
        raise SourceError(
            f"the tar is cut short or damaged after {whole} whole samples: {why}",
            where=shard,
            fix="fetch it again; or keep what is whole: "
            f"({unpack} {shlex.quote(str(shard))} | head -c {end}; head -c 1024 /dev/zero) "
            "> WHOLE.tar",
        ) from error


def _members(tar: tarfile.TarFile) -> Iterator[Member]:
    """The regular files of a tar that are not hidden."""
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # else it remembers every one
        if info.issparse():
            raise SourceError(
                f"the tar holds a sparse file, {info.name}, and those are not read",
                where=tar.name,
                fix="pack it again without --sparse",
            )
        name = valid(info.name.removeprefix("./"))
        folder, slash, base = name.rpartition("/")
        if info.isreg() and not base.startswith("."):
            yield Member(tar, info, name, key=folder + slash + base.partition(".")[0])


def _sample(modality: Modality, shard: str, key: str, members: Iterable[Member]) -> Sample:
    items: list[Item] = []
    notes: dict[str, Any] = {}
    listed: list[tuple[str, int]] = []
    trouble = None
    held = end = 0
    for member in members:
        stem, _, ending = member.name.rpartition(".")
        size = member.info.size
        listed.append((member.name, size))
        end = member.info.offset_data + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if _is_note(member.name):
            try:
                notes |= _note(member)
            except (ValueError, RecursionError) as error:
                trouble = f"{member.name} cannot be read: {error}"
        elif f".{ending.lower()}" in _suffixes(modality):
            uri = f"{shard}#{member.name}"
            if modality == "text":
                items.append(_caption(stem, uri, member))
            elif isinstance(member.tar.fileobj, io.BufferedReader):  # a plain tar
                items.append(
                    Slice(stem, uri, file=shard, offset=member.info.offset_data, size=size)
                )
            elif held + size > LARGEST_MEMBER:
                too_large = f"{(held + size) >> 20} MiB under one key of a compressed tar"
                items.append(Refused(stem, uri, why=f"{too_large}: too large to hold"))
            else:
                held += size
                items.append(Item(stem, uri, member.read()))
    if modality == "text" and not items:
        items = [Item(key, f"{shard}#{key}.json", text) for text in _noted_texts(notes)]
    if trouble is not None:
        items = [Refused(item.id, item.uri, why=trouble) for item in items]
    known = [_with_notes(item, key, notes) for item in items]
    if len(known) > 1 and items[0].id == items[1].id:  # the texts of one list
        known = [replace(item, id=f"{item.id}#{number}") for number, item in enumerate(known)]
    return Sample(known, notes, listed, end)


def _with_notes(item: Item, key: str, notes: dict[str, Any]) -> Item:
    name = as_text(notes.get("id"))
    shared = (name or key) if isinstance(_noted(notes), list) else None
    return replace(
        item,
        id=name or item.id,
        label=labels(notes.get("label")),
        group=as_text(notes.get("group")) or shared,
        extra=extra(notes),
    )


def _is_note(name: str) -> bool:
    return name.lower().endswith((".json", ".cls"))


def _note(member: Member) -> dict[str, Any]:
    """What a .json or .cls says. Raises ValueError when it cannot be read."""
    if member.info.size > LARGEST_NOTE:
        raise ValueError(f"it is larger than {LARGEST_NOTE >> 10} KiB")
    text = member.read().decode("utf-8-sig")
    if member.name.lower().endswith(".cls"):
        return {"label": text.strip()}
    note = json.loads(text)
    if not isinstance(note, dict):
        raise ValueError("it is not a JSON object")
    return note


def _caption(stem: str, uri: str, member: Member) -> Item:
    if member.info.size > LARGEST_NOTE:
        return Refused(stem, uri, why=f"more than {LARGEST_NOTE >> 10} KiB are not one text")
    try:
        return Item(stem, uri, member.read().decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        return Refused(stem, uri, why=f"the text is not UTF-8: {error}")


def _noted(notes: dict[str, Any]) -> Any:
    """The caption in a .json, or the list of them."""
    return next((notes[name] for name in TEXT_COLUMNS if name in notes), None)


def _noted_texts(notes: dict[str, Any]) -> list[str]:
    """The captions in a .json, without those that say nothing."""
    noted = _noted(notes)
    texts = map(as_text, noted if isinstance(noted, list) else [noted])
    return [text for text in texts if text is not None]


class Header(tarfile.TarInfo):
    """A header that is neither a file's nor the end's is an error, and so is no end at all."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As TarInfo.frombuf, but raises ReadError, which TarFile hands on."""
        try:
            info = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not buf:
                raise tarfile.ReadError("it ends without the blocks that end a tar") from error
            if buf.strip(b"\0"):
                raise tarfile.ReadError(f"a damaged header: {error}") from error
            raise
        if info.type in _LONG_HEADERS and info.size > LARGEST_NOTE:
            raise tarfile.ReadError(f"a header of {info.size >> 10:,} KiB")
        return info


# Their content is a name or some fields, and is read into memory.
_LONG_HEADERS = frozenset(
    [
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    ]
)
