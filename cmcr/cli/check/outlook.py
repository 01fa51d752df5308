"""What a look at a recipe found: its datasets, connections and tables, and what is missing.

outlook.recipe            # the recipe with all of it that can be run
outlook.lacks             # what is missing, and the fix; all of it
outlook.skipped           # what hangs on that, by name
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmcr.cli.check.costs import MEASURED_ON, duration, volume
from cmcr.cli.recipes.pipelines import Pipeline, SourceSection
from cmcr.embeddings import Key

if TYPE_CHECKING:
    from cmcr.extract import Source

_SHOWN = 8  # names


class Lack(NamedTuple):
    """Something that is missing, and how to get it."""

    what: str
    where: str
    fix: str


@dataclass
class Dataset:
    """One dataset of the recipe. `total` is None where only the work itself will tell."""

    key: Key
    encoder: str
    source: SourceSection
    total: int | None = None
    dim: int | None = None
    done: int = 0
    finished: bool = False
    settled: bool = False  # finished, and not to be updated: it needs neither encoder nor source
    away: bool = False  # its source or its media are
    seconds: float | None = None  # for what is left; None where the rate is not known
    bytes: int | None = None
    lacks: list[Lack] = field(default_factory=list)

    @property
    def left(self) -> int | None:
        """Items that are still to be embedded."""
        return None if self.total is None else max(self.total - self.done, 0)

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.finished:
            return "there"
        if self.lacks:
            return "cannot be made"
        return "unfinished" if self.done else "to do"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "dataset": str(self.key),
            "from": self.source.where,
            "state": self.state,
            "items": self.total,
            "left": 0 if self.finished else self.left,
            "seconds": self.seconds,
            "bytes": self.bytes,
        }

    def as_line(self) -> dict[str, Any]:
        """For a table in the terminal."""
        told = self.as_dict()
        seconds, bytes = told.pop("seconds"), told.pop("bytes")
        return told | {
            "time": duration(seconds) if seconds else "",
            "size": volume(bytes) if bytes else "",
        }


class Skipped(NamedTuple):
    """Something that is not done, and for want of what."""

    what: str
    name: str
    why: str


@dataclass
class Outlook:
    """Everything that was looked at. `recipe` holds what of it can be run.

    `opened` is for those who run it.
    """

    recipe: Pipeline
    store: Path
    device: str
    datasets: list[Dataset]
    skipped: list[Skipped]
    others: list[Lack]  # that belong to no one dataset
    free: int  # bytes of the disk
    opened: Mapping[SourceSection, "Source"] = field(default_factory=dict)

    @property
    def lacks(self) -> Mapping[Lack, list[str]]:
        """All that is missing, each once, with the datasets that it is missing to."""
        found: dict[Lack, list[str]] = {}
        for dataset in self.datasets:
            for lack in dataset.lacks:
                found.setdefault(lack, []).append(str(dataset.key))
        for lack in self.others:
            found.setdefault(lack, [])
        return found

    @property
    def to_do(self) -> list[Dataset]:
        """The datasets that would be made or gone on with."""
        return [one for one in self.datasets if not one.finished and not one.lacks]

    @property
    def bytes(self) -> int:
        """Of all that is left, as far as it is known."""
        return sum(one.bytes or 0 for one in self.to_do)

    @property
    def seconds(self) -> float:
        """For all that is left whose rate is known."""
        return sum(one.seconds or 0.0 for one in self.to_do)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "store": str(self.store),
            "device": self.device,
            "datasets": [one.as_dict() for one in self.datasets],
            "items": sum(one.left or 0 for one in self.to_do),
            "seconds": self.seconds,
            "seconds_unknown_for": self._unknown(),
            "bytes": self.bytes,
            "bytes_free": self.free,
            **self.missing(),
        }

    def missing(self) -> dict[str, Any]:
        """What is missing and what is skipped for it, for --json."""
        return {
            "missing": [lack._asdict() | {"datasets": names} for lack, names in self.lacks.items()],
            "skipped": [one._asdict() for one in self.skipped],
        }

    def __str__(self) -> str:
        states = Counter(one.state for one in self.datasets)
        lines = [f"{len(self.datasets)} datasets: " + _counts(states)]
        if self.to_do:
            left = sum(one.left or 0 for one in self.to_do)
            lines.append(
                f"{left:,} items to embed, {self._time()}, {volume(self.bytes)} of embeddings and "
                f"indexes; {volume(self.free)} are free"
            )
        if self.lacks:
            lines += self.told().splitlines()
        return "\n  ".join(lines)

    def told(self) -> str:
        """What is missing, and what is skipped for it."""
        lines = []
        for lack, names in self.lacks.items():
            lines.append(f"missing: {lack.what}")
            lines.append(f"  where: {lack.where}")
            lines.append(f"  fix:   {lack.fix}")
            if names:
                lines.append(f"  for:   {', '.join(names)}")
        lines += [
            f"skipped: {one.what} {one.name}: {one.why}"
            for one in self.skipped
            if one.what != "extract"  # they stand with what they lack
        ]
        return "\n".join(lines)

    def _unknown(self) -> list[str]:
        return [str(one.key) for one in self.to_do if one.seconds is None and one.left != 0]

    def _time(self) -> str:
        unknown = self._unknown()
        told = []
        if self.seconds:
            told.append(f"about {duration(self.seconds)} at the rates of {MEASURED_ON}")
        if unknown:
            which = f" for {_some(unknown)}" if self.seconds else ""
            where = "" if self.device == "cpu" else " on a GPU"
            told.append(f"no rate known{where}{which} (`cmcr extract --dry-run` measures one)")
        return ", ".join(told) or "no time"


def _counts(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
