"""Where numbers are computed, and how they come there: devices, threads, arrays, products, memory.

device = find_device("auto")
with threads_for(batch**2 * dim): ...      # steps whose largest product has so many operations
given = rows(array, dim, "clip")           # what a user gives as embeddings, or an error
product(float32(given, device), other)     # in the precision that the device is quick in
with freed_memory_kept(): ...              # steps that allocate the same again and again
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from cmcr.errors import MismatchError, SourceError, UsageError

# Threads wait for each other after every product. Where one of them has less to do than this many
# multiply-adds (some 0.5 ms), that is all they do as soon as another process takes a core.
WORTH_A_THREAD = 1 << 24


def find_device(name: str) -> torch.device:
    """The device called `name`; "auto" is a GPU, else the CPU.

    Raises UsageError for a device that torch does not know or this machine does not have.
    """
    if name == "auto":
        # torchrun says which GPU is whose.
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return gpu if torch.cuda.is_available() else torch.device("cpu")
    fix = "--device auto, cpu or cuda[:i]"
    if not name.startswith(("cpu", "cuda")):
        raise UsageError(f"there is no device {name!r}", fix=fix)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the device {name!r} cannot be used: {reason}", fix=fix) from error
    return device


def cores() -> int:
    """The cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


@contextmanager
def threads_for(operations: int) -> Iterator[int]:
    """Compute on as many threads as products of `operations` multiply-adds keep busy; gives them.

    At least one, at most one a core, and never more than torch has been told to use. It counts
    for torch and for the BLAS and OpenMP libraries of NumPy, SciPy and FAISS. The number of
    threads can change the last bits of a sum, so it follows from the work alone, not from what
    else the machine is doing.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    threads = max(1, min(operations // WORTH_A_THREAD, cores(), before))
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield threads
    finally:
        torch.set_num_threads(before)


def free_memory() -> int | None:
    """Bytes that this process can still take; None where the system does not say.

    What the machine has left, or less where a control group (a container) allows less.
    """
    left = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        left.append(int(available.split()[1]) << 10)
    for folder, limit, used, freed in _control_groups():
        with suppress(OSError, ValueError):  # "max": no limit
            most = int((folder / limit).read_text())
            lines = (folder / "memory.stat").read_text().splitlines()
            cached = sum(int(line.split()[1]) for line in lines if line.split()[0] == freed)
            left.append(most - int((folder / used).read_text()) + cached)
    return min(left, default=None)


def _control_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Folders that limit memory, with the names of their files and of what can be freed there."""
    root = Path("/sys/fs/cgroup")
    own = Path()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own = Path(next(line[4:] for line in lines if line.startswith("0::/")))
    for folder in (root / own, *(root / above for above in own.parents)):
        yield folder, "memory.max", "memory.current", "inactive_file"
    yield root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"


Vectors: TypeAlias = np.ndarray | Tensor | Sequence[Sequence[float]]

_SMALLEST = 1e-12  # a norm below is zero: what `normalize` would not make a unit vector


def rows(given: object, dim: int | None, of: str) -> np.ndarray | Tensor:
    """What a user gives as embeddings of the space `of`, as an array or a tensor (n, dim).

    Any dim will do where it is None.

    Raises MismatchError for another shape, SourceError for what are no numbers.
    """
    if isinstance(given, Tensor) and (given.is_complex() or given.dtype == torch.bool):
        raise _no_numbers(of, f"they are of type {given.dtype}")
    array = given if isinstance(given, Tensor) else _array(given, of)
    if array.ndim != 2 or array.shape[1] != (dim or array.shape[1]):
        raise MismatchError(
            f"embeddings of {of} are (n, {dim or 'D'}), these are {tuple(array.shape)}",
            fix="project each space's embeddings under its own name, one vector a row",
        )
    return array


def _array(given: object, of: str) -> np.ndarray:
    try:
        array = np.asarray(given)
    except (TypeError, ValueError) as error:  # rows of unequal lengths, among others
        raise _no_numbers(of, str(error)) from error
    if array.dtype.kind not in "fiu":
        raise _no_numbers(of, f"they are of type {array.dtype}")
    native = array.dtype.isnative and array.dtype.kind == "f" and array.itemsize <= 8
    return array if native else array.astype(np.float32)


def _no_numbers(of: str, reason: str) -> SourceError:
    return SourceError(
        f"embeddings of {of} are rows of numbers: {reason}",
        fix="give an array, a tensor or a list of lists of floats",
    )


def refuse_what_has_no_direction(block: Tensor, of: str, start: int = 0) -> None:
    """Raise SourceError for rows of (n, D) float32 that are not finite or zero.

    `start` is the number of the first row.
    """
    norms = torch.linalg.vector_norm(block, dim=1)  # (n,)
    good = norms.isfinite() & (norms > _SMALLEST)
    if good.all():
        return
    bad = torch.nonzero(~good).flatten()
    first = int(bad[0])
    what = "is zero" if norms[first].isfinite() else "holds NaN, infinity or far too large values"
    raise SourceError(
        f"row {start + first} of the embeddings of {of} {what}"
        + (f", and {len(bad) - 1:,} rows after it are no better" if len(bad) > 1 else ""),
        fix="leave such rows out: nothing can be found by them",
    )


def tensor(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """`array` as a tensor on `device`, in its own precision; copied only if it must be."""
    if isinstance(array, np.ndarray):
        # A stored embedding is a read-only memory map, which a tensor may not share, and no tensor
        # runs backwards.
        shared = array.flags.writeable and min(array.strides, default=0) >= 0
        array = torch.from_numpy(array if shared else array.copy())
    return array.to(device)


def float32(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """`array`, of any float precision, as a float32 tensor on `device`.

    float16 travels to the device before it is widened: half the bytes.
    """
    return tensor(array, device).float()


@cache
def reduced(device: torch.device) -> torch.dtype | None:
    """The precision that `device` multiplies float32 matrices in: bfloat16, None for float32."""
    if device.type != "cuda":
        return None
    with torch.cuda.device(device):
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None


def product(
    x: Tensor, y: Tensor, kind: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor:
    """x y, (n, d) and (d, m) → (n, m), in float32.

    The operands are rounded to `kind`, or to what `reduced` says, where that is a precision that
    the device has units for; sums are float32 in any case. The result goes to `out` if it is given.
    """
    kind = kind or reduced(x.device)
    if kind in (None, torch.float32):
        return torch.mm(x.float(), y.float(), out=out)
    found = torch.mm(x.to(kind), y.to(kind), out_dtype=torch.float32)
    return found if out is None else out.copy_(found)


# mallopt(3). What is set at the end is where glibc's own adjustment of these values ends.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_KEEP = {_TRIM_THRESHOLD: 2**31 - 1, _MMAP_MAX: 0}
_RELEASE = {_TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20, _MMAP_MAX: 65_536}


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed within, and give it back at the end; elsewhere than glibc do nothing."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    _set(libc, _KEEP)
    try:
        yield
    finally:
        _set(libc, _RELEASE)
        libc.malloc_trim(0)


def share_arenas() -> None:
    """Let all threads allocate from two arenas of glibc, so that one reuses what another freed.

    Elsewhere than glibc do nothing. To be called before there are threads.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_ARENA_MAX, 2)


def _set(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)
