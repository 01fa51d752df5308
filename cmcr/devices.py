"""Which device to compute on."""

from typing import TYPE_CHECKING

from cmcr.errors import UsageError

if TYPE_CHECKING:
    import torch


def find_device(name: str) -> "torch.device":
    """The device called `name`; "auto" is the first GPU, else the CPU.

    Raises UsageError for a device that torch does not know or this machine does not have.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the device {name!r} cannot be used: {reason}", cure="--device auto, cpu or cuda[:i]"
        ) from error
    return device
