"""A name that another connection has already: what differs, and whether it may be replaced.

    others = differences(folder, config, spaces)     # ["epochs: 36 → 40"], or [] to go on with it
    refuse(folder, others)

One that was never finished, or that is damaged beyond reading, has nothing to lose.
"""

from collections.abc import Sequence
from pathlib import Path

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.record import Record, read_content, read_record
from cmcr.connect.methods.problem import space_records
from cmcr.connect.spaces.datasets import Spaces
from cmcr.errors import StoreError, UsageError, VersionError

_SHOWN = 4
CHAIN = "it is a chain of several connections"


class NameTakenError(UsageError):
    """A connection of that name is there, and it is another one."""

    def __init__(self, folder: Path, others: Sequence[str], cure: str | None = None) -> None:
        shown = "; ".join(others[:_SHOWN])
        more = f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        self.others = tuple(others)
        super().__init__(
            f"the folder holds a connection already, and it differs: {shown}{more}",
            where=folder,
            cure=f"{cure + '; or ' if cure else ''}give the new one another --name or --out, or "
            "--replace the old one, which is kept until the new one is finished",
        )


def refuse(folder: Path, others: Sequence[str]) -> None:
    """Raise NameTakenError where there is something in `others`."""
    if others:
        version = _version_error(folder)
        raise NameTakenError(folder, others, version.cure if version else None)


def differences(folder: Path, config: ConnectConfig, spaces: Spaces) -> list[str]:
    """What tells the finished connection in `folder` from the one that is asked for."""
    if version := version_difference(folder):
        return version
    record = standing(folder)
    if not isinstance(record, Record):
        return [CHAIN] if record else []
    if record.requested is None:
        return [f"it was imported from {record.imported.get('file', 'elsewhere')}"]
    old, new = record.requested.model_dump(), config.model_dump()
    changed = {name for name in new if old[name] != new[name]}
    told = [f"{name}: {_text(old[name])} → {_text(new[name])}" for name in new if name in changed]
    if changed.isdisjoint(["spaces", "via", "train", "memory"]):
        told += _changed_data(record, spaces)
    return told


def imported_differences(folder: Path, record: Record) -> list[str]:
    """What tells the finished connection in `folder` from an imported one of this record."""
    if version := version_difference(folder):
        return version
    there = standing(folder)
    if not isinstance(there, Record):
        return [CHAIN] if there else []
    if not there.imported:
        return [f"it was made here, by {there.model}"]
    names = [" and ".join(space.name for space in one.spaces) for one in (there, record)]
    pairs = {
        "checkpoint": (there.imported.get("sha256", "")[:8], record.imported["sha256"][:8]),
        "spaces": (names[0], names[1]),
        "via": (there.via, record.via),
    }
    return [f"{name}: {old} → {new}" for name, (old, new) in pairs.items() if old != new]


def standing(folder: Path) -> Record | bool:
    """The record of the connection in `folder`; True for a chain, False where none can be read."""
    try:
        return True if "links" in read_content(folder) else read_record(folder)
    except StoreError:
        return False


def version_difference(folder: Path) -> list[str]:
    """That the connection in `folder` is of another version of cmcr, where it is."""
    error = _version_error(folder)
    return [error.what] if error else []


def can_be_made_again(folder: Path) -> bool:
    """Whether `connect` made what lies in `folder`, in a format that is read here."""
    if _version_error(folder):
        return False
    record = standing(folder)
    return not isinstance(record, Record) or record.requested is not None


def _version_error(folder: Path) -> VersionError | None:
    try:
        read_content(folder)
    except VersionError as error:
        return error
    except StoreError:
        return None
    return None


def _changed_data(record: Record, spaces: Spaces) -> list[str]:
    changed = []
    for old, new in zip(record.spaces, space_records(spaces), strict=True):
        there, wanted = old.datasets, new.datasets
        changed += [f"the content of {key} changed" for key in wanted
                    if there.get(key, wanted[key]) != wanted[key]]  # fmt: skip
        changed += [f"there is {key} now" for key in wanted if key not in there]
        changed += [f"there is no {key} any more" for key in there if key not in wanted]
    return changed


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
