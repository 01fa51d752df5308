"""Embeddings from wherever they come, as tensors on a device, and products of them.

vectors = float32(dataset.embeddings()[:1000], "cuda")     # (1000, D)
scores = product(vectors, vectors.T)                       # (1000, 1000) float32
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor


def tensor(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """`array` as a tensor on `device`, in its own precision; copied only if it must be."""
    if isinstance(array, np.ndarray):
        # A stored embedding is a read-only memory map, which a tensor may not share.
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
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
