"""Semantic consistency: for each bridge item, what the other modality of its space would be.

    pseudo = aggregate(text, image_memory, temperature=0.01)              # one tensor, (q, d)
    pseudo = aggregate(text, dataset.batches(), temperature=0.01)         # larger than memory

This is attention with keys = values, taken with an online softmax (arXiv 1805.02867): the memory
is read once, and what is held does not grow with it.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cmcr.devices import product, tensor
from cmcr.errors import MismatchError
from cmcr.typed import typed

# A block of 1024 x 1024 scores stays in a CPU's cache; a GPU wants larger matrix products.
CPU_CHUNK_ROWS = 1024
GPU_CHUNK_ROWS = 8192


@torch.no_grad()
@typed
def aggregate(
    queries: Float[Tensor, "q d"],
    memory: Float[Tensor, "m all"] | Iterable[Tensor | np.ndarray],
    temperature: float,
    *,
    chunk_rows: int | None = None,
    besides: int = 0,
) -> Float[Tensor, "q all"]:
    """ã_i = Σ_k softmax_k(cos(b_i, a_k)/τ1) a_k for every query b_i (C-MCR section 3.3).

    `memory` holds the a_k: one tensor, or chunks of (rows, d) of any float precision. The result
    is the weighted sum itself, in float32 on the device of `queries`: its norm is at most 1, and
    it is normalised only after noise is added (`perturb` in training/objective.py). At most
    `chunk_rows` squared scores exist at a time. With `besides` a row of the memory goes on for so
    many columns after its d: they are weighted alike, and the result has them too. Raises
    MismatchError for a memory without rows or of another dim.
    """
    device = queries.device
    rows = chunk_rows or (CPU_CHUNK_ROWS if device.type == "cpu" else GPU_CHUNK_ROWS)
    # A GPU multiplies what the shards hold, float16, with float32 sums.
    kind = torch.float16 if device.type == "cuda" else torch.float32
    units = F.normalize(queries.float(), dim=1)  # (q, d)
    count, dim = units.shape
    highest = units.new_full((count, 1), -torch.inf)  # the largest cosine so far
    weight = units.new_zeros((count, 1))  # Σ exp((cos - highest)/τ1) so far
    total = units.new_zeros((count, dim + besides))  # Σ exp((cos - highest)/τ1) a so far
    seen = 0
    for values in _chunks(memory, rows, device, kind):  # (≤ rows, d + besides)
        if values.shape[1] != dim + besides:
            raise MismatchError(
                f"the queries have {dim} dimensions, the memory has {values.shape[1] - besides}",
                fix="take both from one space",
            )
        seen += len(values)
        keys = F.normalize(values[:, :dim].float(), dim=1).T  # (d, ≤ rows)
        for start in range(0, count, rows):
            block = slice(start, start + rows)
            cosine = product(units[block], keys, kind)  # (≤ rows, ≤ rows)
            peak = torch.maximum(highest[block], cosine.amax(dim=1, keepdim=True))
            # Subtracting before dividing by τ1 keeps the digits that the division would round off.
            scale = ((highest[block] - peak) / temperature).exp()
            scores = cosine.sub_(peak).div_(temperature).exp_()
            weight[block] = weight[block] * scale + scores.sum(dim=1, keepdim=True)
            total[block] = total[block] * scale + product(scores, values, kind)
            highest[block] = peak
    if not seen:
        raise MismatchError("the memory has no rows", fix="embed something for it, or leave it out")
    return total / weight


def _chunks(
    memory: Tensor | Iterable[Tensor | np.ndarray],
    rows: int,
    device: torch.device,
    kind: torch.dtype,
) -> Iterator[Tensor]:
    for chunk in [memory] if isinstance(memory, Tensor) else memory:
        for start in range(0, len(chunk), rows):
            yield tensor(chunk[start : start + rows], device).to(kind)
