"""Preprocessed batches through the encoder, without letting the device wait.

    for loaded, vectors in encode_batches(encoder, "audio", load(...), autocast, batch_size): ...

The copy to the device starts from page-locked memory and the vectors of a batch are fetched when
the next one has been launched, so on CUDA copying, encoding and the host's work overlap.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import EncoderError
from cmcr.extract.encoder import Encoder
from cmcr.extract.loading import Loaded

Amp = Literal["auto", "off", "bf16", "fp16"]
Autocast = Literal["bfloat16", "float16"]

# Inputs decoded, sent and encoded at once where --batch-size does not say.
BATCH_SIZES: dict[Modality, int] = {"audio": 64, "image": 128, "pointcloud": 64, "text": 512}


def find_autocast(amp: Amp, device: torch.device) -> Autocast | None:
    """What `amp` means on `device`: auto is bfloat16 where a GPU has it, else float16."""
    if amp == "off" or device.type != "cuda":
        return None
    if amp == "auto":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if amp == "bf16" else "float16"


def encode_batches(
    encoder: Encoder, modality: Modality, batches: Iterable[Loaded], autocast: Autocast | None
) -> Iterator[tuple[Loaded, np.ndarray]]:
    """Each batch with its vectors, (items, D) float32, in order.

    A batch that does not fit into the device's memory is halved, and so are those after it.
    Raises EncoderError when not even one input fits.
    """
    limit = 1 << 30
    waiting: tuple[Loaded, Tensor] | None = None
    for loaded in batches:
        if loaded.inputs is None:
            output = torch.empty(0, encoder.dim)
        else:
            output, limit = _encode(encoder, modality, loaded.inputs, autocast, limit)
        if waiting is not None:
            yield waiting[0], _fetched(waiting[1])
        waiting = loaded, output
    if waiting is not None:
        yield waiting[0], _fetched(waiting[1])


def _encode(
    encoder: Encoder, modality: Modality, inputs: Tensor, autocast: Autocast | None, limit: int
) -> tuple[Tensor, int]:
    """The vectors of `inputs`, (items, D) on the device, and the limit that they were found at."""
    context = torch.autocast("cuda", getattr(torch, autocast)) if autocast else nullcontext()
    while True:
        try:
            with context:
                starts = range(0, len(inputs), limit)
                pieces = [encoder.encode(modality, inputs[at : at + limit]) for at in starts]
        except torch.OutOfMemoryError as error:
            limit = min(limit, len(inputs)) // 2
            if not limit:
                raise EncoderError(
                    f"the device has too little memory to encode one {modality} input",
                    cure="free memory on the device, or --device cpu",
                ) from error
            torch.cuda.empty_cache()
        else:
            return torch.cat(pieces), limit


def _fetched(output: Tensor) -> np.ndarray:
    vectors: np.ndarray = output.float().cpu().numpy()  # (items, D)
    return vectors
