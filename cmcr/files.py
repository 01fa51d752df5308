"""Files that are whole or not there, hashes, and locks that the kernel frees.

with replacing(path) as unfinished: write(unfinished)   # path appears at once, or never
with locked(path) as mine: ...                          # mine is False: another process has it
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from pathlib import Path

# As `replacing` names its files, and as they were named before hosts were among it.
UNFINISHED = re.compile(r"\.(.+)\.([0-9]+|[0-9a-f]{16}|[A-Za-z0-9-]+-[0-9]+-[0-9a-f]{16})")
_LONG_AGO = 86_400  # seconds
_PROBE = 1 << 20  # bytes that a disk has room for, unless it is full
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside `target` that takes its name when the block ends without error.

    The name starts with a dot, so that readers of the folder pass it over, and ends with digits
    for the host, the process and random ones, so that no other process has it, on this machine or
    another.
    Those that processes killed before this one left of this target are taken away: of this host
    what nobody has locked, of other hosts, whose locks may not be seen here, what nobody has
    written to for a day.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    unfinished, held = _unfinished(target)
    try:
        try:
            yield unfinished
        except Exception as error:
            _tell_if_full(held, target, error)
            raise
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, target)
        _sync_folder(target.parent)
    finally:
        unfinished.unlink(missing_ok=True)
        os.close(held)


def _unfinished(target: Path) -> tuple[Path, int]:
    """A new file beside `target`, and the descriptor that holds its lock."""
    while True:
        ending = f"{_host()}-{os.getpid()}-{secrets.token_hex(8)}"
        path = target.with_name(f".{target.name}.{ending}")
        # O_EXCL follows no link, and the mode is what the user's umask leaves of it.
        held = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            _lock_if_there_are_locks(held)
            if os.fstat(held).st_nlink:  # nobody took it for a leftover before it was locked
                return path, held
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(held)
            raise
        os.close(held)


def _lock_if_there_are_locks(held: int) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _tell_if_full(held: int, target: Path, error: Exception) -> None:
    """Raise OSError with the file's name where a library failed to write, in whatever words."""
    try:
        os.pwrite(held, bytes(_PROBE), os.fstat(held).st_size)
    except OSError as refused:
        raise OSError(refused.errno, os.strerror(refused.errno or 0), str(target)) from error


def _sweep(target: Path) -> None:
    """Take away unfinished files of `target` that no process holds any more."""
    folder = target.parent.absolute()
    for left in _leftovers(folder).get(target.name, ()):
        host = re.fullmatch("(.+)-[0-9]+-[0-9a-f]+", left.rpartition(".")[2])
        if host and host[1] != _host():
            with suppress(OSError):
                if time.time() - os.stat(folder / left, follow_symlinks=False).st_mtime > _LONG_AGO:
                    os.unlink(folder / left)
            continue
        with suppress(OSError):  # another process has it, or has taken it away
            held = os.open(folder / left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                if stat.S_ISREG(os.fstat(held).st_mode):
                    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(folder / left)
            finally:
                os.close(held)


@cache  # a folder has as many names as parts, each of which would look at all of them
def _leftovers(folder: Path) -> Mapping[str, Sequence[str]]:
    """What looks unfinished in `folder` as this process first writes there, by its target."""
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if name := UNFINISHED.fullmatch(entry.name):
                found.setdefault(name[1], []).append(entry.name)
    return found


def _host() -> str:
    """Digits for this machine's name, which may be a quarter of what a file's name can hold."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def _sync_folder(folder: Path) -> None:
    """See that the names in `folder` outlive a power cut; not every file system can."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)


def link_or_copy(source: Path, target: Path) -> bool:
    """Give a file that is never written to again a second name: False where it had to be copied.

    A file system without hard links, another one, or too many links make it a copy.
    """
    try:
        os.link(source, target)
    except OSError:
        with replacing(target) as unfinished:
            shutil.copyfile(source, unfinished)
        return False
    return True


def read_regular(path: Path) -> bytes:
    """The bytes of a file; raises OSError for a pipe or a device too, which might never answer."""
    with _regular(path) as file:
        return file.read()


def _regular(path: Path) -> BufferedReader:
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode):
        return file
    file.close()
    number = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    raise OSError(number, f"{os.strerror(number)}: no regular file", str(path))


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target`, whole or not at all."""
    with replacing(target) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(target: Path, value: object) -> None:
    """Write `value` as indented JSON with sorted keys, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
    write_text(target, text + "\n")


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with _regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(
    path: Path, *, wait: bool = False, shared: bool = False, needed: bool = True
) -> Iterator[bool]:
    """Hold an exclusive lock on `path`; without `wait` yield False where another process has it.

    Any number of processes can hold it `shared`, while none holds it alone. The lock is the
    kernel's (flock): it ends with the process, however that ends. One that was waited for while its
    file was moved or removed is nobody's; it is taken again, on the file that `path` is by then.
    Where the file system has no locks, everyone has one that is not `needed`; else OSError is
    raised.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            try:
                fcntl.flock(file, kind)
            except BlockingIOError:
                yield False
                return
            except OSError as error:
                if needed or error.errno not in _WITHOUT_LOCKS:
                    raise
                yield True
                return
            if _is_at(file.fileno(), path):
                yield True
                return


def _is_at(held: int, path: Path) -> bool:
    """Whether the file of `path` is still the open one: a folder may be moved with its locks."""
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False
