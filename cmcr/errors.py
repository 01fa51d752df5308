"""The errors that cmcr tells a user; what libraries and the system raise becomes one of them.

    CmcrError            exit code 1
    ├── UsageError       exit code 2: a flag, a recipe or a name that cannot be used
    │   └── NameTakenError   a connection of that name is there (connect/make/replace.py)
    ├── SourceError      media, a manifest or an array that cannot be read as a source
    ├── EncoderError     an encoder or its weights that cannot be loaded
    ├── StoreError       a store that is damaged, unfinished or not there
    │   ├── VersionError a dataset or a connection of another version of cmcr
    │   └── MovedError   a dataset whose folder was given another name by hand
    └── MismatchError    two artefacts that do not belong together (other fingerprint, dim, ids)

Each says what is wrong, where, and how to mend it.

    UsageError("there is no dataset 'captoins'", fix=near("captoins", ["captions", "photos"]))
"""

from collections.abc import Iterable
from typing import Any

_LISTED = 20


class CmcrError(Exception):
    """Something a user can mend. `str()` gives the three parts, one to a line."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(what, where, fix)

    def __reduce__(self) -> tuple[Any, ...]:  # as it travels from a worker process
        return _again, (type(self), self.args, vars(self))

    def __str__(self) -> str:
        lines = [self.what]
        if self.where is not None:
            lines.append(f"  where: {self.where}")
        if self.fix is not None:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class UsageError(CmcrError):
    """A flag, a recipe or a name that cannot be used."""

    exit_code = 2


class SourceError(CmcrError):
    """Media, a manifest or an array that cannot be read as a source."""


class EncoderError(CmcrError):
    """An encoder or its weights that cannot be loaded."""


class StoreError(CmcrError):
    """A store that is damaged, unfinished or not there."""


class VersionError(StoreError):
    """A dataset or a connection in a format that this cmcr does not read."""

    def __init__(self, found: int, reads: int, *, where: object) -> None:
        self.found = found
        self.newer = found > reads
        super().__init__(
            f"written by {'a newer' if self.newer else 'an older'} cmcr "
            f"(format {found}, this one reads {reads})",
            where=where,
            fix="upgrade cmcr" if self.newer else "`cmcr upgrade STORE`",
        )


class MovedError(StoreError):
    """A dataset in a folder of another name than its manifest says: nothing else is wrong."""

    def __init__(self, made_as: str, lies_as: str, *, where: object) -> None:
        super().__init__(
            f"the folder was moved or copied: its manifest is of {made_as}, it lies as {lies_as}",
            where=where,
            fix=f"`cmcr rename {lies_as} {lies_as}` gives it the name it lies under, any other "
            "name as well; or move it back",
        )


class MismatchError(CmcrError):
    """Two artefacts that do not belong together."""


def _again(kind: type[CmcrError], args: tuple[Any, ...], fields: dict[str, Any]) -> CmcrError:
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


def near(wanted: str, there: Iterable[str]) -> str:
    """The fix for a name that is none of `there`: those spelt like it, then what there is."""
    from difflib import get_close_matches

    names = list(dict.fromkeys(there))
    if not names:
        return "there is none yet"
    alike = get_close_matches(wanted, names)
    meant = f"did you mean {' or '.join(alike)}? " if alike else ""
    rest = f" and {len(names) - _LISTED:,} more" if len(names) > _LISTED else ""
    return f"{meant}one of: {', '.join(names[:_LISTED])}{rest}"
