"""InfoNCE of both directions, from one product in blocks of rows, with its own gradient.

    loss = info_nce(x, y, temperature=0.01)     # unit vectors, (n, d) each

With S = x yᵀ/τ, loss = mean(½ (logsumexp_j S_ij + logsumexp_i S_ij) - S_ii), and its gradient in S
is (½ softmax_j S + ½ softmax_i S - 1)/n. No n × n matrix is held but one, and for large n none.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cmcr.connect.distributed import gather, logsumexp_of_all, share, total, world_size
from cmcr.devices import product
from cmcr.typed import typed

# So many scores are kept for the backward pass (1 GiB); more are computed a second time.
KEPT_SCORES = 1 << 28
# A block of scores this large stays in a CPU's cache while it is worked on; a GPU has no use for
# small ones.
CPU_BLOCK, GPU_BLOCK = 1 << 22, 1 << 27
# exp(-87) is the smallest that float32 holds in full. Where the columns' logsumexp lie closer
# together than this, all that exp(S_ij - max_j S_ij) rounds to zero is less than n · exp(-87 + 64)
# of its column.
SPREAD = 64.0


@typed
def info_nce(
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "n d"],
    temperature: float,
    count: int | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE of unit vectors, the mean of both directions; row i of x belongs to row i of y.

    `count` is the number of rows of all processes together.
    """
    count = count or len(x) * world_size()
    loss: Tensor = _InfoNCE.apply(x, gather(y, count), temperature)  # type: ignore[no-untyped-call]
    return loss


class _InfoNCE(torch.autograd.Function):
    """On a CPU one exponential a score, E_ij = exp(S_ij - max_j S_ij), serves both directions.

    A GPU has exponentials to spare, and to look at the spread first would make the host wait.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        first = share(len(y)).start
        scaled = x / temperature  # (n, d)
        positive = (scaled * y[first : first + len(x)]).sum(dim=1)  # (n,)
        kept = x.new_empty(len(x), len(y)) if len(x) * len(y) <= KEPT_SCORES else None
        shared = x.device.type == "cpu"
        highest, by_row, by_column = _logsumexps(scaled, y, kept, shared)
        if shared and not by_column.max() - by_column.min() < SPREAD:
            shared = False
            highest, by_row, by_column = _logsumexps(scaled, y, kept, shared)
        ctx.temperature, ctx.first, ctx.shared = temperature, first, shared
        ctx.save_for_backward(scaled, y, kept, highest, by_row, by_column)
        return (total((by_row - 2 * positive).sum()) + by_column.sum()) / (2 * len(y))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        scaled, y, kept, highest, by_row, by_column = ctx.saved_tensors
        weight = gradient / (2 * len(y))
        wants_x, wants_y, _ = ctx.needs_input_grad
        x_gradient = torch.empty_like(scaled) if wants_x else None
        y_gradient = torch.zeros_like(y) if wants_y else None
        top = by_column.max()
        for block in _blocks(scaled, y):
            if kept is not None:
                part = kept[block]  # (≤ rows, count): E or S
            else:
                part = product(scaled[block], y.T)
                if ctx.shared:
                    part.sub_(highest[block, None]).exp_()
            if ctx.shared:
                # E · (exp(max - by_row) + exp(max - by_column)), the second a product of two.
                rows = (highest[block] - by_row[block]).exp()[:, None]
                change = torch.addr(
                    rows, (highest[block] - top).exp(), (top - by_column).exp()
                ).mul_(part)
            else:
                change = (part - by_row[block, None]).exp_()
                change += (part - by_column).exp_()
            change.diagonal(ctx.first + block.start).sub_(2)
            if x_gradient is not None:
                x_gradient[block] = product(change, y) * (weight / ctx.temperature)
            if y_gradient is not None:
                y_gradient += product(change.T, scaled[block]) * weight
        return x_gradient, y_gradient, None


def _logsumexps(
    scaled: Tensor, y: Tensor, kept: Tensor | None, shared: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The largest score of each row, if `shared`, and the logsumexp of each, (n,), and column.

    `kept` is left with the scores, or with E if `shared`.
    """
    highest, by_row = (scaled.new_zeros(len(scaled)) for _ in range(2))
    by_column = scaled.new_full((len(y),), -torch.inf)
    for block in _blocks(scaled, y):
        part = product(scaled[block], y.T, out=None if kept is None else kept[block])
        if shared:
            peaks = part.amax(dim=1)  # (≤ rows,)
            part.sub_(peaks[:, None]).exp_()
            highest[block] = peaks
            by_row[block] = peaks + part.sum(dim=1).log()
            columns = peaks.max() + ((peaks - peaks.max()).exp() @ part).log()
        else:
            by_row[block] = part.logsumexp(dim=1)
            columns = part.logsumexp(dim=0)
        by_column = torch.logaddexp(by_column, columns)
    return highest, by_row, logsumexp_of_all(by_column)


def _blocks(x: Tensor, y: Tensor) -> list[slice]:
    rows = max(1, (CPU_BLOCK if x.device.type == "cpu" else GPU_BLOCK) // len(y))
    return [slice(start, min(start + rows, len(x))) for start in range(0, len(x), rows)]
