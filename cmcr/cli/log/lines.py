"""JSON lines: one object a line, one write a line, so that several runs can share a file.

    begin(Path("log.jsonl"), "extract")
    tell("extract   no recipe, store S")            # a message, level info
    tell("error: …", logging.ERROR, "error", what="…", where=None, fix="…")
    end(0)

Each has `time` (ISO 8601, UTC), `level`, `command`, `pid`, `event` and `message`, and what the
event brings: `start` the arguments, `result` what went to stdout, `extracted` the counts of a
dataset, `error` its three parts, `end` the exit code and the seconds. What the library warns of is
an event `message` of level `warning`. Where no log was begun, nothing is written.
"""

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cmcr import __version__

_PACKAGE = logging.getLogger("cmcr")
_TOLD = logging.getLogger("cmcr.told")  # what the command itself has shown already
_TOLD.propagate = False


class Lines(logging.Handler):
    """Appends each record to a file as one line; a log that cannot be written ends alone."""

    def __init__(self, path: Path, command: str) -> None:
        super().__init__(logging.INFO)
        self.path, self.command, self.started = path, command, time.monotonic()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        self.file: int | None = os.open(path, flags, 0o666)

    def emit(self, record: logging.LogRecord) -> None:
        """One `write` of the whole line: O_APPEND keeps those of two processes apart."""
        if self.file is None:
            return
        try:
            os.write(self.file, (json.dumps(self._fields(record), ensure_ascii=False, default=str)
                                 + "\n").encode(errors="backslashreplace"))  # fmt: skip
        except OSError as error:
            self.close()
            print(f"the log ends here: {error.strerror}: {self.path}", file=sys.stderr)

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        moment = datetime.fromtimestamp(record.created, UTC)
        return {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "command": self.command,
            "pid": record.process,
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }

    def close(self) -> None:
        """Close the file; nothing is written after."""
        if self.file is not None:
            os.close(self.file)
            self.file = None
        super().close()


def begin(path: Path, command: str) -> None:
    """Log to `path` from now on. Raises OSError for a file that cannot be written to."""
    if _open():
        return
    lines = Lines(path, command)
    _PACKAGE.setLevel(logging.INFO)
    _PACKAGE.addHandler(lines)
    _TOLD.addHandler(lines)
    if logging.lastResort is not None:  # else a warning that is logged is shown no more
        _PACKAGE.addHandler(logging.lastResort)
    tell(f"cmcr {__version__}", event="start", arguments=sys.argv[1:])


def tell(message: str, level: int = logging.INFO, event: str = "message", **fields: Any) -> None:
    """Write a line, where a log was begun."""
    if _open():
        _TOLD.log(level, "%s", message, extra={"event": event, "fields": fields})


def end(code: int) -> None:
    """The last line."""
    for lines in _open():
        seconds = round(time.monotonic() - lines.started, 3)
        tell(f"exit code {code}", event="end", exit_code=code, seconds=seconds)
        lines.close()
        _PACKAGE.removeHandler(lines)
        _TOLD.removeHandler(lines)
        if logging.lastResort is not None:
            _PACKAGE.removeHandler(logging.lastResort)
        _PACKAGE.setLevel(logging.NOTSET)


def _open() -> list[Lines]:
    return [handler for handler in _PACKAGE.handlers if isinstance(handler, Lines)]
