"""`cmcr` as a shell starts it and within this process, and what the main job left."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from cmcr.cli.app import main


class Demo(NamedTuple):
    """A store that `cmcr run digits` filled, its rows of results, and the seconds that it took."""

    store: Path
    rows: list[dict[str, Any]]
    seconds: float


class Done(NamedTuple):
    """A command that has ended."""

    returncode: int
    stdout: str
    stderr: str


def process(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """Run `cmcr` as a process of its own, without the shape checks of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "CMCR_CHECK_SHAPES"}
    done = subprocess.run(
        [sys.executable, "-m", "cmcr", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def cmcr(*arguments: str | Path, cwd: Path | None = None) -> Done:
    """Run a command line within this process, which has torch already.

    What leaves `main` other than by an exit is a traceback to a user, and an error here.
    """
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(cwd or Path.cwd()),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["cmcr", *map(str, arguments)]),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return Done(int(code or 0), out.getvalue(), err.getvalue())


def succeed(*arguments: str | Path, cwd: Path | None = None) -> Done:
    done = cmcr(*arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done


def refuse(code: int, *arguments: str | Path, cwd: Path | None = None) -> str:
    done = cmcr(*arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
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
