"""Media again, by the `uri` that a row of the store carries.

    found = find_media("image", ["photos/a.jpg", "clips.tar#0001.jpg", "builtin:digits/scenes#…"])
    found["photos/a.jpg"]        # a PIL image, or the exception that says why there is none

A tar or a builtin source is read once for all that is wanted of it. Texts are not looked up: their
rows carry them.
"""

import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.decode import LARGEST_MEMBER, decode
from cmcr.extract.digits.sources import BUILTIN
from cmcr.extract.items import Decoded, Item
from cmcr.extract.webdataset import is_tar

_BUILTIN = "builtin:"


def find_media(modality: Modality, uris: Iterable[str]) -> "Mapping[str, Decoded | Exception]":
    """What each of `uris` decodes to, or the exception where its media are gone or damaged.

    A region of a picture has the picture's uri, and gives the whole picture.
    """
    wanted: dict[str, dict[str, None]] = defaultdict(dict)
    for uri in uris:
        wanted[_container(uri)][uri] = None
    found: dict[str, Decoded | Exception] = {}
    for container, members in wanted.items():
        gone = SourceError(f"there is no such item in {container}")
        found |= dict.fromkeys(members, gone)
        try:
            for item in _items(container, members):
                found[item.uri] = _decoded(modality, item)
        except Exception as error:  # decoders and tars raise what they like
            found |= {uri: error for uri in members if found[uri] is gone}
    return found


def _container(uri: str) -> str:
    """The builtin source or the tar that `uri` is in, else `uri` itself."""
    container, mark, _ = uri.rpartition("#")
    return container if mark and (uri.startswith(_BUILTIN) or is_tar(Path(container))) else uri


def _items(container: str, uris: Mapping[str, None]) -> Iterator[Item]:
    if container.startswith(_BUILTIN):
        source = BUILTIN[container.removeprefix(_BUILTIN)]
        yield from (item for item in source.read() if item.uri in uris)
    elif container in uris:
        yield Item(container, container)
    else:
        yield from _members(container, uris)


def _members(container: str, uris: Mapping[str, None]) -> Iterator[Item]:
    with tarfile.open(container) as tar:
        for info in tar:
            uri = f"{container}#{info.name.removeprefix('./')}"
            file = tar.extractfile(info) if uri in uris and info.size <= LARGEST_MEMBER else None
            if file is not None:
                yield Item(uri, uri, file.read())


def _decoded(modality: Modality, item: Item) -> "Decoded | Exception":
    try:
        return decode(modality, item)
    except Exception as error:  # as above: one item that cannot be read takes no other with it
        return error
