"""`python ...` without its start: processes forked from one that has imported torch and cmcr.

    done = run("-m", "cmcr", "info", store)            # to its end
    process = Process("-c", program); process.kill()   # while it runs

They do what a process of their own does: arguments, folder, environment, exit code, signals, what
goes to stdout and stderr, how the interpreter ends, the worker processes below. Only the imports
and the seed of hashes are not their own, and the server that workers are forked from is forked from
the run. The server of this module is started once, without the shape checks of the tests; it ends
with the process that started it, and takes along what it forked.
"""

import atexit
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from shell import Done

IMPORTED = ("cmcr.cli.app", "cmcr.connect", "cmcr.evaluate", "cmcr.extract.contract",
            "cmcr.extract.embed", "faiss", "matplotlib.figure", "torch")  # fmt: skip
PATIENCE = 300.0  # seconds for a process
_MOST_FILES = 4096


class Process:
    """`python ARGUMENTS`, forked; `subprocess.Popen` as far as the tests use it.

    `env` is the environment but for the shape checks; with `session` it leads a group of its own.
    """

    def __init__(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> None:
        environment = {**os.environ, **(env or {})}
        environment.pop("CMCR_CHECK_SHAPES", None)
        self.returncode: int | None = None
        self._said = [_file(), _file()]  # of stdout and stderr
        self._server = _running_server()
        asked = (list(map(str, arguments)), str(cwd or Path.cwd()), environment, session)
        self.pid: int = self._server.start(asked, self._said)

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask("poll", self.pid)
        return self.returncode

    def wait(self, timeout: float = PATIENCE) -> int:
        until = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                said = "".join(map(_content, self._said))
                raise AssertionError(f"not ended in {timeout:.0f} s: {said}")
            time.sleep(0.005)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def done(self, timeout: float = PATIENCE) -> Done:
        """Wait for its end."""
        return Done(self.wait(timeout), *map(_content, self._said))

    def __del__(self) -> None:
        for file in self._said:
            os.close(file)


def _file() -> int:
    """A file without a name."""
    file, name = tempfile.mkstemp()
    os.unlink(name)
    return file


def _content(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode()


def run(
    *arguments: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Done:
    """`python ARGUMENTS` to its end."""
    return Process(*arguments, cwd=cwd, env=env).done()


class _Server:
    def __init__(self) -> None:
        self._socket, theirs = Pipe()
        without = ("CMCR_CHECK_SHAPES", "PYTHONPATH")
        environment = {name: it for name, it in os.environ.items() if name not in without}
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        theirs.close()

    def ask(self, what: str, about: Any) -> Any:
        self._socket.send((what, about))
        return self._socket.recv()

    def start(self, asked: Any, files: list[int]) -> int:
        self._socket.send(("start", asked))
        for file in files:
            send_handle(self._socket, file, self._process.pid)
        pid: int = self._socket.recv()
        return pid

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_server: _Server | None = None


def _running_server() -> _Server:
    global _server
    if _server is None:
        _server = _Server()
        atexit.register(_server.close)
    return _server


# In the server


def _serve(main: Connection) -> list[str]:
    """Fork what `main` asks for; gives arguments, in the forked process only."""
    running: set[int] = set()
    while True:
        try:
            what, about = main.recv()
        except EOFError:
            break
        if what == "start":
            files = [recv_handle(main) for _ in range(2)]
            pid = os.fork()
            if pid == 0:
                main.close()
                return _become(*about, files)
            for file in files:
                os.close(file)
            running.add(pid)
            main.send(pid)
        else:
            found, status = os.waitpid(about, os.WNOHANG)
            running.discard(found)
            main.send(os.waitstatus_to_exitcode(status) if found else None)
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _become(
    arguments: list[str], cwd: str, environment: dict[str, str], session: bool, files: list[int]
) -> list[str]:
    """Be as a process that was just started."""
    if session:
        os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
    os.closerange(3, _MOST_FILES)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    added = environment.get("PYTHONPATH", "")
    sys.path[:0] = [path for path in added.split(os.pathsep) if path]
    from cmcr.extract.engine import processes

    processes.subprocess = SimpleNamespace(  # type: ignore[assignment]
        Popen=_ForkedServer, DEVNULL=subprocess.DEVNULL
    )
    return arguments


class _ForkedServer:
    """What the engine starts its server with, forked: `subprocess.Popen` as far as it is used."""

    def __init__(self, command: list[str], pass_fds: list[int], **_: Any) -> None:
        self.pid = os.fork()
        if self.pid:
            return
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            from cmcr.extract.engine import processes

            main = Connection(os.dup2(pass_fds[0], 3))
            os.closerange(4, _MOST_FILES)
            sys.path[:] = main.recv()
            processes._server = None
            processes.serve(main)
        finally:
            os._exit(1)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        os.waitpid(self.pid, 0)


def _interpret(arguments: list[str]) -> None:
    """What the interpreter does with its arguments."""
    first, *rest = arguments
    if first == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(os.path.abspath(first)))
        runpy.run_path(first, run_name="__main__")


def _import() -> None:
    import gc
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()


if __name__ == "__main__":
    del sys.path[0]
    _import()
    _interpret(_serve(Connection(int(sys.argv[1]))))
