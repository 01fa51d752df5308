"""Which device to compute on."""

import os
from typing import TYPE_CHECKING

from cmcr.errors import UsageError

if TYPE_CHECKING:
    import torch


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
