"""Media again, by the `uri` that a row of the store carries.

    found = find_media("image", ["photos/a.jpg", "clips.tar#0001.jpg", "builtin:digits/scenes#…"])
    found["photos/a.jpg"]        # a PIL image, or the exception that says why there is none
    find_media("image", uris, roots=[Path("/mnt/photos")])       # media that were moved

Media are looked for below each of `roots` first: for /old/photos/dog/1.jpg that is
ROOT/old/photos/dog/1.jpg, then ROOT/photos/dog/1.jpg, and so on; then where they lay. A tar or a
builtin source is read once for all that is wanted of it, of a Parquet file the row groups that
have it. Texts are not looked up: their rows carry
them.
"""

import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.digits.world.builtin import BUILTIN
from cmcr.extract.items import LARGEST_MEMBER, Decoded, Item, file_uri, local_path
from cmcr.extract.media.decode import decode
from cmcr.extract.media.readers import Reader, reader_of
from cmcr.extract.media.video import files_open, span, spans
from cmcr.extract.sources.manifests import media_cell, media_column
from cmcr.extract.sources.webdataset import is_tar

_BUILTIN = "builtin:"


def find_media(
    modality: Modality, uris: Iterable[str], roots: Sequence[Path] = ()
) -> "Mapping[str, Decoded | Exception]":
    """What each of `uris` decodes to, or the exception where its media are gone or damaged.

    A region of a picture has the picture's uri, and gives the whole picture. `FILE#t=12.5,15` is
    what a film shows at 12.5 s, or the sound from there to 15 s.
    """
    reader = reader_of(modality)
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for uri in uris:
        wanted[_container(uri)][uri] = None
    found: dict[str, Decoded | Exception] = {}
    for container, members in wanted.items():
        gone = SourceError(f"there is no such item in {container}")
        found |= dict.fromkeys(members, gone)
        try:
            if times := {uri: _seconds(uri) for uri in members if _seconds(uri)}:
                found |= _spans(modality, container, times, roots)
                continue
            for uri, item in _items(modality, container, members, roots):
                found[uri] = _decoded(modality, item, reader)
        except Exception as error:  # decoders and tars raise what they like
            found |= {uri: error for uri in members if found[uri] is gone}
    return found


def lookup_imports(uris: Iterable[str]) -> list[str]:
    """Modules that take long to import and that `find_media` needs for `uris`."""
    return ["sklearn.datasets"] if any(uri.startswith(_BUILTIN) for uri in uris) else []


def _container(uri: str) -> str:
    """The builtin source, the tar, the film or recording that `uri` is in, else `uri` itself."""
    container, mark, _ = uri.rpartition("#")
    if _seconds(uri):
        return container
    within = uri.startswith(_BUILTIN) or is_tar(Path(container)) or _is_table(container)
    return container if mark and within else uri


def _is_table(container: str) -> bool:
    return container.lower().endswith(".parquet")


_SECONDS = re.compile(r"#t=([0-9.]+),([0-9.]+)$")


def _seconds(uri: str) -> tuple[float, float] | None:
    """From where to where, of the uri of a span."""
    found = _SECONDS.search(uri)
    return (float(found[1]), float(found[2])) if found else None


def _spans(
    modality: Modality,
    container: str,
    times: Mapping[str, tuple[float, float] | None],
    roots: Sequence[Path],
) -> "dict[str, Decoded | Exception]":
    """What is in a film or a recording, which is read once, from its first second that counts."""
    ordered = sorted(times.items(), key=lambda one: one[1] or (0.0, 0.0))
    file = Item(container, file_uri(_place(local_path(container), roots)))
    found: dict[str, Decoded | Exception] = {}
    with files_open():
        items = spans(file, modality, (at for _, at in ordered if at))
        for (uri, _), item in zip(ordered, items, strict=True):
            try:
                found[uri] = span(item)[1]
            except Exception as error:  # as below
                found[uri] = error
    return found


def _items(
    modality: Modality, container: str, uris: Mapping[str, None], roots: Sequence[Path]
) -> Iterator[tuple[str, Item]]:
    """The items that `uris` name, each with the uri that it goes by."""
    if container.startswith(_BUILTIN):
        source = BUILTIN[container.removeprefix(_BUILTIN)]
        yield from ((item.uri, item) for item in source.read() if item.uri in uris)
        return
    place = _place(local_path(container), roots)
    if container in uris:
        yield container, Item(container, file_uri(place))
    elif _is_table(container):
        column = media_column(modality, place) or ""
        rows = [(uri.rpartition("#")[2], uri) for uri in uris]
        for row, uri in sorted((int(row), uri) for row, uri in rows if row.isdecimal()):
            if cell := media_cell(place, column, row):
                yield uri, cell
    else:
        yield from ((item.uri, item) for item in _members(container, place, uris))


def _place(path: Path, roots: Sequence[Path]) -> Path:
    """Where the file that lay at `path` lies now: below a root, by the longest end of its path."""
    parts = path.parts[1:] if path.is_absolute() else path.parts
    for root in roots:
        for start in range(len(parts)):
            moved = root.joinpath(*parts[start:])
            if ".." not in moved.parts and moved.is_file():
                return moved
    return path


def _members(container: str, place: Path, uris: Mapping[str, None]) -> Iterator[Item]:
    with tarfile.open(place) as tar:
        for info in tar:
            uri = f"{container}#{info.name.removeprefix('./')}"
            file = tar.extractfile(info) if uri in uris and info.size <= LARGEST_MEMBER else None
            if file is not None:
                yield Item(uri, uri, file.read())


def _decoded(modality: Modality, item: Item, reader: Reader | None) -> "Decoded | Exception":
    try:
        return decode(modality, item, reader)
    except Exception as error:  # as above: one item that cannot be read takes no other with it
        return error
