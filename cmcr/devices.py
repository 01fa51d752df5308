"""Which device to compute on, and with how many threads.

device = find_device("auto")
with threads_for(batch**2 * dim): ...      # steps whose largest product has so many operations
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cmcr.errors import UsageError

if TYPE_CHECKING:
    import torch

# Threads wait for each other after every product. Where one of them has less to do than this many
# multiply-adds (some 0.5 ms), that is all they do as soon as another process takes a core.
WORTH_A_THREAD = 1 << 24


def find_device(name: str) -> "torch.device":
    """The device called `name`; "auto" is a GPU, else the CPU.

    Raises UsageError for a device that torch does not know or this machine does not have.
    """
    import torch

    if name == "auto":
        # torchrun says which GPU is whose.
        gpu = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return gpu if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the device {name!r} cannot be used: {reason}", cure="--device auto, cpu or cuda[:i]"
        ) from error
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
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    threads = max(1, min(operations // WORTH_A_THREAD, cores(), before))
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield threads
    finally:
        torch.set_num_threads(before)
