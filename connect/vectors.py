"""Embeddings from wherever they come, as float32 tensors on a device.

vectors = float32(dataset.embeddings()[:1000], "cuda")     # (1000, D)
"""

import numpy as np
import torch
from torch import Tensor


def float32(array: np.ndarray | Tensor, device: torch.device | str) -> Tensor:
    """`array`, of any float precision, as a float32 tensor on `device`; copied only if it must be.

    float16 travels to the device before it is widened: half the bytes.
    """
    if isinstance(array, np.ndarray):
        # A stored embedding is a read-only memory map, which a tensor may not share.
        array = torch.from_numpy(array if array.flags.writeable else array.copy())
    return array.to(device).float()
