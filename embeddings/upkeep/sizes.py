"""`cmcr info --sizes`: where the bytes of a store are.

    for size in measure_sizes(store): print(size.kind, size.name, size.bytes, size.shared)

Leftovers are what no command reads again: files that a killed process did not finish, removals and
updates that were interrupted (an update goes on from them). Pseudo partners and the rest can be
made again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cmcr.embeddings.index import ABOUT, INDEX
from cmcr.embeddings.upkeep.remove import REMOVED
from cmcr.embeddings.verify import check_store
from cmcr.embeddings.writer import fresh_store
from cmcr.files import UNFINISHED

Kind = Literal[
    "dataset", "index", "connection", "results", "pseudo partners", "matches", "leftovers", "other"
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Bytes of files; `shared` of them are hard links to files that a line before has."""

    kind: Kind
    name: str
    bytes: int
    shared: int = 0


def measure_sizes(store: Path) -> list[Size]:
    """Bytes by dataset, index, connection, results and the rest, in this order, then by name.

    Raises UsageError for what is no store.
    """
    check_store(store)
    found: dict[tuple[Kind, str], list[int]] = {}
    seen: set[tuple[int, int]] = set()
    for path, status in sorted(_files(store)):
        line = found.setdefault(_belongs_to(path.relative_to(store).parts, store), [0, 0])
        line[0] += status.st_size
        file = status.st_dev, status.st_ino
        line[1] += status.st_size if file in seen else 0
        seen.add(file)
    kinds = Kind.__args__  # type: ignore[attr-defined]
    order = sorted(found, key=lambda one: (kinds.index(one[0]), one[1]))
    return [Size(*one, *found[one]) for one in order if found[one][0]]


def _files(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files below `folder`, links not followed; what is gone meanwhile is passed over."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def _belongs_to(parts: tuple[str, ...], store: Path) -> tuple[Kind, str]:
    if parts[0] in (REMOVED, fresh_store(store).name):
        return "leftovers", parts[0]
    if UNFINISHED.fullmatch(parts[-1]):
        return "leftovers", "unfinished files"
    if parts[0].startswith("space=") and len(parts) > 3:
        space, modality, dataset = (part.partition("=")[2] for part in parts[:3])
        is_index = parts[-1] in (INDEX, ABOUT)
        return "index" if is_index else "dataset", f"{space}/{modality}:{dataset}"
    if parts[0] == "connections" and len(parts) > 2:
        return "connection", parts[1]
    if parts[0] == "results" and len(parts) > 2:
        return "results", parts[1]
    if parts[0] == "pseudo":
        return "pseudo partners", "pseudo"
    if parts[0] == "matches":
        return "matches", "matches"
    return "other", parts[0]
