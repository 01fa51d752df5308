"""What a store's connections are, what uses a dataset or a connection, and another name for one.

    for line in describe_connections(store): print(line["connection"], line["method"])
    uses_of(store, Key("clip", "image", "photos"))       # ["connection mine was made from it", ...]
    rename_connection(store, "mine", "yours")
    remove_connection(store, "yours")

A connection's name is that of its folder; nothing within says it. Its results lie in the folder of
the same name and go with it. Its record names the datasets that it was made from, and keeps the
names that they had (`embeddings/upkeep/rename.py` says why). Projections know their connection
by the sha256 of its weights, so they stay its projections.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cmcr.connect.connection.chain import Chain
from cmcr.connect.connection.load import chain_content, load_connection
from cmcr.connect.connection.record import CONFIG, Record, current, read_content, read_record
from cmcr.connect.make.replace import settle
from cmcr.embeddings import Key, list_datasets
from cmcr.embeddings.schema import read_manifest
from cmcr.embeddings.upkeep.remove import throw_away
from cmcr.errors import CmcrError, StoreError, UsageError, near
from cmcr.files import locked, write_text

_RENAMED = ".renamed"  # the name before, until the results have the new one too


def connection_names(store: Path) -> list[str]:
    """The finished connections of `store`."""
    return sorted(path.parent.name for path in store.glob(f"connections/*/{CONFIG}"))


def describe_connections(store: Path) -> list[dict[str, Any]]:
    """One line a connection: method, bridge, spaces, pairs; what is wrong where it is damaged.

    `links` where it is a chain, whose `joints` are spaces of its own.
    """
    return [_described(store / "connections" / name) for name in connection_names(store)]


def _described(folder: Path) -> dict[str, Any]:
    line: dict[str, Any] = {"connection": folder.name, "joints": []}
    try:
        connection = load_connection(folder)
    except CmcrError as problem:
        return line | {"problem": problem.what}
    record = connection.record
    line |= {
        "method": record.model,
        "via": record.via,
        "spaces": " + ".join(space.name for space in record.spaces),
        "pairs": record.pairs or None,  # of an imported one nobody knows
        "joint_dim": record.joint_dim,
    }
    if not isinstance(connection, Chain):
        return line
    links = [
        {
            "method": link.record.model,
            "via": link.record.via,
            "spaces": " + ".join(
                "the spaces before" if space.name in connection.joints else space.name
                for space in link.record.spaces
            ),
            "pairs": link.record.pairs,
        }
        for link in connection.links
    ]
    return line | {"pairs": None, "links": links, "joints": connection.joints}


def uses_of(store: Path, what: Key | str) -> list[str]:
    """What was made from a dataset, or by a connection, in words; none of it is needed to read it.

    Of a dataset the connections, projections, merged datasets and results; of a connection its
    projections. Raises UsageError for a connection that is not there.
    """
    if isinstance(what, str):
        _check_there(store, what)
        made_by = {record.model_sha256 for record in _records(store / "connections" / what)}
        return [
            f"{key} was projected by it"
            for key, manifest in _manifests(store)
            if manifest.encoder.get("checkpoint_sha256") in made_by
        ]
    found = [
        f"connection {name} was made from it"
        for name in connection_names(store)
        if any(
            str(what) in space.datasets
            for record in _records(store / "connections" / name)
            for space in record.spaces
        )
    ]
    for key, manifest in _manifests(store):
        if manifest.source.get("dataset") == str(what):
            found.append(f"{key} is its projection")
        merged = manifest.source.get("of", []) if manifest.source.get("kind") == "merge" else []
        if any(one["dataset"] == str(what) for one in merged):
            found.append(f"{key} was merged from it")
    side = f"{what.space}_{what.modality}_{what.dataset}"
    for folder in sorted(store.glob("results/*/*--*")):
        if side in (folder.name.partition("--")[0], *folder.name.split("--")[1:2]):
            found.append(f"results {folder.relative_to(store / 'results')} were measured with it")
    return found


def _manifests(store: Path) -> Iterator[tuple[Key, Any]]:
    for key in list_datasets(store):
        try:
            yield key, read_manifest(key.folder(store))
        except StoreError:  # unfinished or damaged: `verify` says so
            continue


def _records(folder: Path) -> list[Record]:
    """The record of a connection, or those of the links of a chain; none where it is damaged."""
    try:
        if "links" not in read_content(folder):
            return [read_record(folder)]
        links, _ = chain_content(current(folder))
        return [read_record(current(folder) / link) for link in links]
    except StoreError:
        return []


def rename_connection(store: Path, old: str, new: str) -> bool:
    """Call the connection `old` of `store` `new`, its results too; False where it is done.

    Waits for a process that makes it. Raises UsageError for one that is not there, a name that is
    taken, or none.
    """
    _check_name(new)
    _check_name(old)
    folder, target = store / "connections" / old, store / "connections" / new
    their_target = store / "results" / new
    if not folder.is_dir() and _was(target) == old:
        folder = target
    _check_there(store, folder.name)
    with locked(folder / ".lock", wait=True):
        _check_there(store, folder.name)  # who was waited for may have taken it away
        settle(folder)
        ended = _end_renaming(store, folder)
        if folder != target and target.exists():
            raise UsageError(
                f"the store has a connection {new} already",
                where=target,
                fix=f"give another name, or `cmcr remove {new}` first",
            )
        if folder != target and their_target.exists():
            raise UsageError(
                f"there are results of a connection {new}",
                where=their_target,
                fix="give another name, or delete that folder",
            )
        if folder != target:
            write_text(folder / _RENAMED, old)
            os.rename(folder, target)
            _end_renaming(store, target)
    return folder != target or ended


def _was(folder: Path) -> str | None:
    """What the connection in `folder` was called before a renaming that is not at its end."""
    mark = folder / _RENAMED
    return mark.read_text(encoding="utf-8") if mark.is_file() else None


def _end_renaming(store: Path, folder: Path) -> bool:
    """Let the results follow a connection that was renamed; False where it has no such mark.

    They stay where a connection has the former name again, or there are results of the new one.
    """
    was = _was(folder)
    if was is None:
        return False
    results, target = store / "results" / was, store / "results" / folder.name
    if results.is_dir() and not target.exists() and not (store / "connections" / was).exists():
        os.rename(results, target)
    (folder / _RENAMED).unlink()
    return True


def remove_connection(store: Path, name: str) -> None:
    """Take a connection away, with its results. Waits for a process that makes it.

    Raises UsageError for one that is not there.
    """
    _check_there(store, name)
    folder = store / "connections" / name
    with locked(folder / ".lock", wait=True):
        _check_there(store, name)
        _end_renaming(store, folder)
        if (store / "results" / name).is_dir():
            throw_away(store, store / "results" / name)
        throw_away(store, folder)


def _check_there(store: Path, name: str) -> None:
    """Raise UsageError where the store has no such connection, finished, damaged or begun."""
    _check_name(name)
    if not (store / "connections" / name).is_dir():
        raise UsageError(
            f"the store has no connection {name}",
            where=store,
            fix=near(name, [*connection_names(store), *map(str, list_datasets(store))]),
        )


def _check_name(name: str) -> None:
    """Raise UsageError for what would be another folder than one in STORE/connections."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a connection", fix="use a plain file name")
