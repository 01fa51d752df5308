"""What one extraction did, as it is told at its end and in --json."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cmcr.embeddings import Key
from cmcr.embeddings.parts import Failure
from cmcr.embeddings.schema import FAILURES
from cmcr.embeddings.verify import Health
from cmcr.extract.sources.folders import told

STAGES = ("read", "encode", "write")
_SHOWN = 4  # kinds of failure
_LONGEST = 100  # characters of a message

# What differs between two failures of one kind: quoted names, paths and numbers.
_PARTICULAR = re.compile(r"'[^']*'|\"[^\"]*\"|<[^>]*>|\S*/\S*|\d[\d.,]*")


@dataclass
class Kind:
    """Failures of one kind: how many, and id and message of the first."""

    error: str
    message: str
    first: str
    count: int = 0

    def __str__(self) -> str:
        message = self.message[:_LONGEST] + "…" * (len(self.message) > _LONGEST)
        named = message if self.error == "SourceError" else f"{self.error}: {message}"
        return f"{self.count:,} {named} (first: {self.first})"


class Kinds(dict[tuple[str, str], Kind]):
    """Failures counted by the error's class and its message without names and numbers."""

    def count(self, failures: Iterable[Failure]) -> None:
        """Add `failures`."""
        for failure in failures:
            error, message = failure["error"], failure["message"]
            kind = (error, _PARTICULAR.sub("…", message))
            self.setdefault(kind, Kind(error, message, failure["id"])).count += 1

    def most_first(self) -> list[Kind]:
        """The kinds, that with the most failures first."""
        return sorted(self.values(), key=lambda kind: -kind.count)

    def __str__(self) -> str:
        kinds = self.most_first()
        text = ", ".join(map(str, kinds[:_SHOWN]))
        rest = kinds[_SHOWN:]
        more = f", {sum(kind.count for kind in rest):,} of {len(rest)} other kinds" if rest else ""
        return text + more


@dataclass
class Summary:
    """What one extraction did.

    Rows and failures in the dataset; rows made now, rows taken over from before an update, and
    texts among those made that were too long for the encoder; whether an earlier dataset made way
    for it; how well the embeddings of a finished
    dataset tell its rows apart; seconds spent in each stage.
    """

    key: Key
    folder: Path
    rows: int = 0
    failures: int = 0
    made: int = 0
    taken: int = 0
    truncated: int = 0
    finished: bool = True
    updated: bool = False
    health: Health | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    kinds: Kinds = field(default_factory=Kinds)
    skipped: Mapping[str, int] = field(default_factory=dict)
    pattern: str | None = None

    @property
    def bottleneck(self) -> str:
        """The stage that the other two waited for."""
        return max(self.seconds, key=self.seconds.__getitem__)

    def fail(self, failures: Iterable[Failure]) -> None:
        """Count inputs that could not be embedded."""
        listed = list(failures)
        self.failures += len(listed)
        self.kinds.count(listed)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        kinds = [asdict(kind) for kind in self.kinds.most_first()]
        listed = str(self.folder / FAILURES) if self.failures else None
        told = vars(self) | {
            "key": str(self.key),
            "health": asdict(self.health) if self.health else None,
            "failed": kinds,
            "failures_file": listed,
        }
        return {name: value for name, value in told.items() if name not in ("folder", "kinds")}

    def __str__(self) -> str:
        return "\n".join([self._counts(), *map("  {}".format, self.notes())])

    def notes(self) -> list[str]:
        """What deserves a line of its own: health, failures, files passed over or not matched."""
        lines = []
        if self.health and self.made:
            lines.append(str(self.health))
        if self.health and self.health.problem:
            lines.append(f"warning: {self.health.problem}")
        if self.failures:
            lines.append(f"{self.failures:,} of {self.rows + self.failures:,} failed: {self.kinds}")
            lines.append(f"all of them: {self.folder / FAILURES}")
        if self.skipped:
            lines.append(f"skipped: {told(self.skipped)}")
        if self.pattern:
            lines.append(self.pattern)
        return lines

    def _counts(self) -> str:
        text = f"{self.key}  {self.rows:,} rows"
        if self.failures:
            text += f", {self.failures:,} failures"
        if self.taken:
            text += f", {self.taken:,} taken over"
        if self.truncated:
            text += f", {self.truncated:,} texts cut"
        if not self.made:
            if not self.finished:
                return f"{text}  waiting for other shards"
            return f"{text}  updated" if self.updated else f"{text}  up to date"
        total = sum(self.seconds.values())
        shares = "  ".join(f"{name} {part / total:.0%}" for name, part in self.seconds.items())
        rate = self.made / total
        told = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        return f"{text}  {told}/s  {shares}  (bottleneck: {self.bottleneck})"
