"""Processes that work for this one and go when it goes, however that ends.

    worker = start(["open_clip"])        # forked from a server that has imported that
    worker.take_up(work)                 # picklable: work(task, mark) gives an answer and a tensor
    worker.give(task)
    kind, answer, tensor = worker.receive()
    worker.end()

    this process ── socket ── server: imports, forks, knows who is at what
         └──────── sockets ── workers, forked from the server

The server is started once and ends when its socket does, and with it the workers: the kernel
sends them SIGKILL where it can (Linux), and each watches its own socket too. Nothing of this has
a name: no file, no semaphore, nothing in /dev/shm. A tensor travels as a memory file (memfd) that
belongs to whoever has it open, and through the socket where there is none.
"""

import atexit
import ctypes
import importlib
import logging
import mmap
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from queue import SimpleQueue
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor

from cmcr.errors import CmcrError, UsageError

log = logging.getLogger(__name__)

Mark: TypeAlias = Callable[[int], None]
Work: TypeAlias = Callable[[Any, Mark], tuple[Any, Tensor | None]]
Place: TypeAlias = tuple[int, int]  # how many tasks were begun, and what was marked in the last

NOWHERE: Place = (0, -1)
_PLACE = struct.Struct("qq")
_INLINE = 1 << 16  # bytes of a tensor that are not worth a file
_PATIENCE = 5.0  # seconds for a killed process to go; one that waits for a dead disk may never
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_TOLD_AFTER = 60.0  # seconds without an answer
# What is imported first may take long: a thread ends that too when the main process goes.
_SERVER = """
import os, select, sys, threading, time
from multiprocessing.connection import Connection
main = Connection({fd})
def watch():
    waiting = select.poll()
    waiting.register(main.fileno(), 0)  # a hang-up alone
    waiting.poll()
    time.sleep(0.5)  # for `serve` to take its workers along, unless it is importing
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
sys.path[:] = main.recv()
from cmcr.extract.engine.processes import serve
serve(main)
"""


class Worker:
    """A process at the other end of `socket`.

    A thread sends it what it is given: it may be busy, or be sending something itself, and more
    does not fit into a socket.
    """

    def __init__(self, server: "_Server", pid: int, socket: Connection) -> None:
        self.pid = pid
        self.socket = socket
        self._server = server
        self._outbox: SimpleQueue[bytes | None] = SimpleQueue()
        self._sender = threading.Thread(target=self._send, name=f"to {pid}", daemon=True)
        self._sender.start()

    def _send(self) -> None:
        with suppress(OSError):  # it is gone, as reading from it will tell
            while (message := self._outbox.get()) is not None:
                self.socket.send_bytes(message)

    def take_up(self, work: Work, niceness: int = 0) -> None:
        """Say what is to be done with tasks from now on; it answers "ready"."""
        pickled = pickle.dumps(work)
        main = _how_to_import_main() if b"__main__" in pickled else None
        self._outbox.put(pickle.dumps(("work", (main, pickled, niceness))))

    def give(self, task: Any) -> None:
        """A task more."""
        self._outbox.put(pickle.dumps(("task", task)))

    def receive(self) -> tuple[str, Any, Tensor | None]:
        """("ready", ...), ("done", answer, tensor) or ("error", exception, None).

        Raises EOFError or OSError where the process is gone.
        """
        kind, answer, about = self.socket.recv()
        return kind, answer, about and _receive_tensor(self.socket, *about)

    def place(self) -> Place | None:
        """Where it is in its tasks; None where nobody knows any more."""
        place: Place | None = self._server.ask("place", self.pid)
        return place

    def end(self) -> int | None:
        """Kill it; gives its exit code, negative for a signal, or None where nobody knows."""
        code: int | None = self._server.ask("end", self.pid)
        self._outbox.put(None)
        self._sender.join(_PATIENCE)
        if not self._sender.is_alive():
            self.socket.close()
        return code


def start(imports: Iterable[str] = ()) -> Worker:
    """A process that has imported these modules."""
    if _importing_main:
        raise UsageError(
            "a script starts processes that import it, while one of them does",
            fix='call `extract` under `if __name__ == "__main__":`, or with workers=0',
        )
    for again in (True, False):
        server = _running_server()
        ours, theirs = Pipe()
        server.ask("import", tuple(imports))
        pid = server.ask("fork", os.getcwd(), theirs)
        theirs.close()
        if pid is not None:
            return Worker(server, pid, ours)
        ours.close()
        if not again:
            break
    raise CmcrError(
        "no process can be started", fix="allow more processes (ulimit -u), or --workers 0"
    )


class _Server:
    """The server as this process sees it."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.gone = False
        self._lock = threading.Lock()
        self._busy = True  # it is importing
        self._socket, theirs = Pipe()
        # Ctrl-C reaches the whole group; what it means is decided here.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _SERVER.format(fd=theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._socket.send(sys.path)

    def ask(self, what: str, about: Any = None, handle: Connection | None = None) -> Any:
        """The server's answer; None where it is gone."""
        with self._lock:
            if self.gone:
                return None
            try:
                self._busy = True
                self._socket.send((what, about))
                if handle is not None:
                    send_handle(self._socket, handle.fileno(), self._process.pid)
                began = time.monotonic()
                while not self._socket.poll(_TOLD_AFTER):
                    log.warning(
                        "the process that decoding ones are forked from has been at it for %.0f s: "
                        "%s %s", time.monotonic() - began, what, about,
                    )  # fmt: skip
                answer = self._socket.recv()
                self._busy = False
                return answer
            except (EOFError, OSError):
                self._end()
                return None
            except BaseException:  # its answer would be taken for another's
                self._end()
                raise

    def close(self) -> None:
        """End it and all that it started."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        self.gone = True
        self._socket.close()
        if self.owner == os.getpid():
            if self._busy:  # importing, as a rule, which nobody needs any more
                self._process.kill()
            self._process.wait()


_server: _Server | None = None


def _running_server() -> _Server:
    global _server
    if _server is None or _server.gone or _server.owner != os.getpid():
        _server = _Server()
    return _server


@atexit.register
def _close_server() -> None:
    if _server is not None and not _server.gone and _server.owner == os.getpid():
        _server.close()


def _how_to_import_main() -> dict[str, Any]:
    from multiprocessing.spawn import get_preparation_data

    needed = ("sys_path", "sys_argv", "init_main_from_name", "init_main_from_path")
    return {name: it for name, it in get_preparation_data("worker").items() if name in needed}


# In the server


def serve(main: Connection) -> NoReturn:
    """Do what `main` asks for until it closes its end; take the workers along."""
    places: dict[int, mmap.mmap] = {}
    with suppress(EOFError, OSError):
        while True:
            what, about = main.recv()
            if what == "import":
                for module in about:
                    with suppress(Exception):  # the worker that needs it says why it cannot
                        importlib.import_module(module)
                main.send(True)
            elif what == "fork":
                socket = recv_handle(main)
                place = mmap.mmap(-1, _PLACE.size)
                place[:] = _PLACE.pack(*NOWHERE)
                pid = _fork()
                if pid == 0:
                    main.close()
                    with suppress(OSError):  # the server may have been started elsewhere
                        os.chdir(about)
                    _work(Connection(socket), place)
                os.close(socket)
                if pid is not None:
                    places[pid] = place
                main.send(pid)
            elif what == "place":
                main.send(_PLACE.unpack(places[about]) if about in places else None)
            elif what == "end":
                main.send(_end(about) if places.pop(about, None) is not None else None)
    for pid in places:
        os.kill(pid, signal.SIGKILL)
    for pid in places:
        _end(pid)
    os._exit(0)


def _fork() -> int | None:
    with warnings.catch_warnings():  # of threads of libraries, which do nothing at this time
        warnings.simplefilter("ignore")
        try:
            return os.fork()
        except OSError:
            return None


def _end(pid: int) -> int | None:
    os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


# In a worker


def _work(socket: Connection, place: mmap.mmap) -> NoReturn:
    """Do tasks until the other end closes."""
    _go_with(os.getppid())
    threading.Thread(target=_watch, args=[socket.fileno()], daemon=True).start()
    torch.set_num_threads(1)  # there is a process for every core
    work: Work | None = None
    tasks, nice = 0, 0

    def mark(number: int) -> None:
        place[:] = _PLACE.pack(tasks, number)

    with suppress(EOFError, OSError):
        while True:
            what, given = socket.recv()
            try:
                if what == "work":
                    main, pickled, niceness = given
                    if niceness > nice:
                        os.nice(niceness - nice)
                        nice = niceness
                    if main is not None:
                        _import_main(main)
                    work = pickle.loads(pickled)
                    answer, tensor = None, None
                    tasks, place[:] = 0, _PLACE.pack(*NOWHERE)
                else:
                    assert work is not None
                    tasks += 1
                    mark(-1)
                    answer, tensor = work(given, mark)
            except Exception as error:
                socket.send(("error", _sendable(error), None))
            else:
                _send(socket, "ready" if what == "work" else "done", answer, tensor)
    os._exit(1)


def _go_with(parent: int) -> None:
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before that was said
        os._exit(1)


def _watch(socket: int) -> None:
    """End this process when the other end of its socket is closed, whatever it is doing."""
    waiting = select.poll()
    waiting.register(socket, 0)  # a hang-up alone
    waiting.poll()
    os._exit(1)


_importing_main = False


def _import_main(main: dict[str, Any]) -> None:
    """Run the script that the work is defined in, but for what is under `__main__`."""
    from multiprocessing.spawn import prepare

    global _importing_main
    _importing_main = True
    prepare(main)
    _importing_main = False


def _sendable(error: Exception) -> Exception:
    told = "".join(traceback.format_exception(error))
    try:
        error = pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(str(error))
    error.add_note(f"in a worker process:\n{told}")
    return error


def _send(socket: Connection, kind: str, answer: Any, tensor: Tensor | None) -> None:
    if tensor is None:
        socket.send((kind, answer, None))
        return
    values = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    block = memoryview(values)  # type: ignore[arg-type]
    file = _memory_file(block) if block.nbytes > _INLINE else None
    socket.send((kind, answer, (tensor.dtype, tuple(tensor.shape), file is not None)))
    if file is None:
        socket.send_bytes(block)
    else:
        send_handle(socket, file, os.getppid())
        os.close(file)


def _memory_file(block: memoryview) -> int | None:
    """A file without a name that holds `block`; None where the system has none to give."""
    if not hasattr(os, "memfd_create"):
        return None
    file = None
    try:
        file = os.memfd_create("cmcr", os.MFD_CLOEXEC)
        while block:
            block = block[os.write(file, block) :]
    except OSError:  # a limit on the size of files, among others
        if file is not None:
            os.close(file)
        return None
    return file


def _receive_tensor(
    socket: Connection, dtype: torch.dtype, shape: tuple[int, ...], in_file: bool
) -> Tensor:
    if not in_file:
        block = bytearray(socket.recv_bytes())
        return (
            torch.frombuffer(block, dtype=dtype) if block else torch.empty(0, dtype=dtype)
        ).reshape(shape)
    file = recv_handle(socket)
    try:
        return torch.frombuffer(mmap.mmap(file, 0), dtype=dtype).reshape(shape)
    finally:
        os.close(file)
