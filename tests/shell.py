"""`cmcr` as a process of its own, as a shell starts it, and what the main job left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Demo(NamedTuple):
    """A store that `cmcr run digits` filled, its rows of results, and the seconds that it took."""

    store: Path
    rows: list[dict[str, Any]]
    seconds: float


def cmcr(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `cmcr`, without the shape checks of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "CMCR_CHECK_SHAPES"}
    return subprocess.run(
        [sys.executable, "-m", "cmcr", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )


def succeed(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = cmcr(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def refuse(code: int, *arguments: str | Path, cwd: Path | None = None) -> str:
    done = cmcr(*arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def below(pid: int) -> list[int]:
    """The processes that `pid` started, and those that they started."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        if status[0] != "Z":
            parents[int(folder.name)] = int(status[1])
    children = [child for child, parent in parents.items() if parent == pid]
    return [*children, *(deeper for child in children for deeper in below(child))]
