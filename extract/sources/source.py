"""What the kinds of source have in common: the Source itself, and fields made fit for a column.

A manifest's row and a sample's JSON say what they like; a shard holds UTF-8 strings, lists of
them, and nulls. Nothing that a source can say may stop the writing of a part.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cmcr.embeddings import Modality
from cmcr.extract.items import Item

TEXT_COLUMNS = ("text", "caption")
OWN = ("id", "path", "label", "group", *TEXT_COLUMNS)  # what a row says of its item
RESERVED = ("embedding", "uri", "space", "modality", "dataset")  # the store's own


@dataclass(frozen=True)
class Source:
    """A re-readable sequence of items.

    `columns` are the names in every item's `extra`: text, or numbers where they are in `numbers`.
    `sealed` says that the description changes with every byte of the content; `ids` is the digest
    of all ids (`HashIds`), where one was made. `skipped` counts by suffix the files that were
    passed over, and `pattern` says how many names a pattern matched. `former` is the digest that
    describes the same source in a dataset that was made when times of change counted. One that was
    planned (`plans.py`) gives the items of one `part` of `part_rows` without those before it.
    """

    modality: Modality
    name: str
    description: Mapping[str, Any]
    items: Callable[[], Iterator[Item]]
    total: int
    columns: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    sealed: bool = False
    ids: str | None = None
    skipped: Mapping[str, int] = field(default_factory=dict)
    pattern: str | None = None
    former: str | None = None
    part: Callable[[int], Iterator[Item]] | None = None
    part_rows: int | None = None


class HashIds:
    """One digest of ids in their order: `add` each, then ask for `hex`."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, id: str) -> None:
        """Take in one more."""
        self._hash.update(f"{id}\0".encode())

    def add_all(self, ids: Sequence[str]) -> None:
        """Take in several more."""
        if ids:
            self._hash.update("\0".join([*ids, ""]).encode())

    @property
    def hex(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def valid(text: str) -> str:
    """`text` without the halves of characters that JSON can spell and UTF-8 cannot."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def as_text(value: Any) -> str | None:
    """A field as a column holds it: None for what is missing, JSON for what is nested."""
    if value is None or value != value:  # NaN is how pandas says that it has none
        return None
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    return valid(str(value))


def labels(value: Any) -> tuple[str, ...]:
    """One label, or a list of them."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(text for text in map(as_text, values) if text)


def column(name: str) -> str:
    """The column that a field of a source becomes: its name, apart from those of the store."""
    return f"{name}_" if name in RESERVED else valid(name)


def columns(names: Iterable[str]) -> tuple[str, ...]:
    """The columns that fields of these names become, each once, without the item's own."""
    return tuple(dict.fromkeys(column(name) for name in names if name not in OWN))


def extra(row: Mapping[str, Any]) -> dict[str, str]:
    """What a row says beyond its item's own fields, by column."""
    fields = {column(name): as_text(value) for name, value in row.items() if name not in OWN}
    return {name: text for name, text in fields.items() if text is not None}
