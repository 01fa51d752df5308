"""One training run over several processes, each with its share of every batch.

    torchrun --nproc-per-node 4 -m cmcr connect --via text

Every process has all weights, sees all negatives and computes the global loss; what it has of the
gradient is its part of a sum. With one process nothing here does anything.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cmcr.typed import typed

# The first process may aggregate for hours before the others hear of it.
PATIENCE = timedelta(days=2)


def world_size() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; alone when it did not."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def wait_for_all() -> None:
    """Go on when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def share(count: int) -> slice:
    """The rows of a batch of `count` that are this process's."""
    return slice(*_bounds(count)[rank() : rank() + 2])


def _bounds(count: int) -> Sequence[int]:
    return [count * process // world_size() for process in range(world_size() + 1)]


@typed
def gather(x: Float[Tensor, "share d"], count: int) -> Float[Tensor, "count d"]:
    """The rows of all processes in their order, `count` together; gradients find their way back."""
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x, count)  # type: ignore[no-untyped-call]
    return gathered


def total(x: Tensor) -> Tensor:
    """The sum over all processes; the gradient stays that of each one's part."""
    if world_size() == 1:
        return x
    summed: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
    return summed


def total_of_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all processes."""
    if world_size() > 1:
        gradients = [weight.grad for weight in parameters if weight.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        pieces = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


@typed
def logsumexp_of_all(x: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """log Σ exp over all processes, entry by entry; no gradient."""
    if world_size() == 1:
        return x
    everyone = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(everyone, x.contiguous())
    return torch.stack(everyone).logsumexp(dim=0)


def total_both_ways(x: Tensor) -> Tensor:
    """The sum over all processes, and the sum of all gradients on the way back."""
    summed: Tensor = _TotalBothWays.apply(x)  # type: ignore[no-untyped-call]
    return summed


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, count: int) -> Tensor:
        bounds = _bounds(count)
        sizes = [end - start for start, end in itertools.pairwise(bounds)]
        ctx.count = count
        # Shares differ by one row at most; gloo gathers equal shapes only.
        padded = x.new_zeros(max(sizes), x.shape[1])
        padded[: len(x)] = x
        everyone = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(everyone, padded)
        return torch.cat([rows[:size] for rows, size in zip(everyone, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[share(ctx.count)], None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        summed = x.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _TotalBothWays(_Total):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        summed = gradient.clone()
        dist.all_reduce(summed)
        return summed
