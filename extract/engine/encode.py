"""Preprocessed batches through the encoder, without letting the device wait.

    for loaded, vectors in encode_batches(encoder, "audio", load(...), autocast, batch_size): ...

The copy to the device starts from page-locked memory and the vectors of a batch are fetched when
the next one has been launched, so on CUDA copying, encoding and the host's work overlap.
"""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import EncoderError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.workers import Loaded

log = logging.getLogger(__name__)

Amp = Literal["auto", "off", "bf16", "fp16"]
Autocast = Literal["bfloat16", "float16"]

PATIENCE = 300.0  # seconds for one batch
FEWEST = 8  # inputs of a first batch that cannot all be bad
NORM_TOLERANCE = 1e-2  # of a unit vector; half precision stays well inside

_BATCH_SIZES: dict[Modality, int] = {"image": 128, "text": 512}


def usual_batch(modality: Modality) -> int:
    """Inputs decoded, sent and encoded at once where --batch-size does not say."""
    return _BATCH_SIZES.get(modality, 64)


def find_autocast(amp: Amp, device: torch.device) -> Autocast | None:
    """What `amp` means on `device`: auto is bfloat16 where a GPU has it, else float16."""
    if amp == "off" or device.type != "cuda":
        return None
    if amp == "auto":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if amp == "bf16" else "float16"


def encode_batches(
    encoder: Encoder,
    modality: Modality,
    batches: Iterable[Loaded],
    autocast: Autocast | None,
    patience: float = PATIENCE,
) -> Iterator[tuple[Loaded, np.ndarray]]:
    """Each batch with its vectors, (items, D) float32, in order.

    A batch that takes the encoder longer than `patience` seconds is told of.

    A batch that does not fit into the device's memory is halved, and so are those after it. A row
    of NaN or infinity is handed on: it is the failure of one input.

    Raises EncoderError when not even one input fits, and for what an encoder may not give: inputs
    that make no batch, what `check_shape` and `check_norms` refuse, and a source's first batch of
    `FEWEST` inputs or more without one finite row. Only part 0 has that batch, whoever makes it:
    the inputs of another may all be bad, and how many may be is for the caller to judge.
    """
    begun = False
    for loaded, output in _launched(encoder, modality, batches, autocast, patience):
        with _told_of(encoder, modality, len(output), patience):
            vectors: np.ndarray = output.float().cpu().numpy()  # (items, D)
        check_norms(encoder, modality, vectors)
        if loaded.part == 0 and not begun and len(vectors):
            begun = bool(np.isfinite(vectors).all(axis=1).any())
            if not begun and len(vectors) >= FEWEST:
                raise _broken(
                    encoder,
                    f"gave only NaN or infinity for the first {len(vectors)} {modality} inputs",
                    "try --amp off and another --checkpoint; should these inputs be at fault, "
                    "leave them out of the source",
                )
        yield loaded, vectors


def encode_batch(encoder: Encoder, modality: Modality, inputs: Tensor) -> np.ndarray:
    """The vectors of one batch of preprocessed inputs, (items, D) float32. As `encode_batches`."""
    loaded = Loaded(0, (), (), inputs, (), {}, last=True)
    with torch.inference_mode():
        ((_, vectors),) = encode_batches(encoder, modality, [loaded], None)
    return vectors


@contextmanager
def _told_of(encoder: Encoder, modality: Modality, count: int, patience: float) -> Iterator[None]:
    """Say so when this block takes longer than `patience` seconds: nobody else would."""
    timer = threading.Timer(
        patience,
        log.warning,
        [
            "the encoder %s has been at one batch of %d %s inputs for %g s; Ctrl-C stops it, "
            "and finished parts are kept", encoder.name, count, modality, patience,
        ],
    )  # fmt: skip
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _launched(
    encoder: Encoder,
    modality: Modality,
    batches: Iterable[Loaded],
    autocast: Autocast | None,
    patience: float,
) -> Iterator[tuple[Loaded, Tensor]]:
    """Each batch with its vectors, (items, D) on the device, once the next one is on its way."""
    limit = 1 << 30
    waiting: tuple[Loaded, Tensor] | None = None
    for loaded in batches:
        if loaded.broken:
            raise _broken(
                encoder,
                f"gave {loaded.broken}, where {modality} inputs of one batch must become tensors "
                "of one shape and type",
                method="preprocess",
            )
        if loaded.inputs is None:
            output = torch.empty(0, encoder.dim)
        else:
            with _told_of(encoder, modality, len(loaded.inputs), patience):
                output, limit = _encode(encoder, modality, loaded.inputs, autocast, limit)
        if waiting is not None:
            yield waiting
        waiting = loaded, output
    if waiting is not None:
        yield waiting


def _encode(
    encoder: Encoder, modality: Modality, inputs: Tensor, autocast: Autocast | None, limit: int
) -> tuple[Tensor, int]:
    """The vectors of `inputs`, (items, D) on the device, and the limit that they were found at."""
    context = torch.autocast("cuda", getattr(torch, autocast)) if autocast else nullcontext()
    while True:
        try:
            with context:
                pieces = []
                for start in range(0, len(inputs), limit):
                    given = inputs[start : start + limit]
                    pieces.append(encoder.encode(modality, given))
                    check_shape(encoder, modality, len(given), pieces[-1])
        except torch.OutOfMemoryError as error:
            limit = min(limit, len(inputs)) // 2
            if not limit:
                raise EncoderError(
                    f"the device has too little memory to encode one {modality} input",
                    fix="free memory on the device, or --device cpu",
                ) from error
            torch.cuda.empty_cache()
        else:
            return torch.cat(pieces), limit


def check_shape(encoder: Encoder, modality: Modality, count: int, output: object) -> None:
    """Raise EncoderError unless `output` is a (count, D) tensor of floats."""
    if not isinstance(output, Tensor):
        wrong = f"a {type(output).__name__} where a tensor belongs"
    elif output.shape != (count, encoder.dim):
        wrong = f"{tuple(output.shape)} where ({count}, {encoder.dim}) belongs"
    elif not output.is_floating_point():
        wrong = f"{str(output.dtype).removeprefix('torch.')} where floats belong"
    else:
        return
    raise _broken(encoder, f"gave {wrong}, for {count} {modality} inputs")


def check_norms(encoder: Encoder, modality: Modality, vectors: np.ndarray) -> None:
    """Raise EncoderError where a finite row of (items, D) is not a unit vector."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)  # (items,)
    finite = norms[np.isfinite(norms)]
    if len(finite) and np.abs(finite - 1).max() > NORM_TOLERANCE:
        furthest = finite[np.abs(finite - 1).argmax()]
        raise _broken(encoder, f"gave a vector of norm {furthest:.4g} for {modality}, not 1")


def _broken(
    encoder: Encoder, what: str, fix: str | None = None, method: str = "encode"
) -> EncoderError:
    kind = type(encoder)
    return EncoderError(
        f"the encoder {encoder.name} {what}",
        where=f"{kind.__module__}.{kind.__qualname__}.{method}",
        fix=fix or f"mend it; `cmcr encoders --check {encoder.name}` tries what is promised",
    )
