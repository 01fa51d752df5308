"""Batches of one part, decoded and preprocessed in worker processes, in the source's order.

The batches themselves are what the DataLoader's sampler yields, so items reach a worker only
when it has room for them, and a source of any length is read as it is needed.
"""

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cmcr.devices import threads_for
from cmcr.embeddings import Modality
from cmcr.embeddings.inventory import Input
from cmcr.embeddings.parts import Failure
from cmcr.errors import SourceError
from cmcr.extract.encoders.registry import Encoder
from cmcr.extract.engine.content import measure
from cmcr.extract.items import Decoded, Item
from cmcr.extract.media.crops import Crop, RecordedError, crop
from cmcr.extract.media.decode import decode

GIVING_WAY = 5  # a fourth of a core on which another process is busy
PREFETCH = 2  # batches ahead of the encoder, for each worker


@dataclass(frozen=True, slots=True)
class Batch:
    """Some items of one part and their places in it; `last` marks the part's last batch."""

    part: int
    items: Sequence[Item]
    places: Sequence[int]
    last: bool


@dataclass(frozen=True, slots=True)
class Loaded:
    """A batch after decoding: `inputs` is (items, ...), or None when none could be decoded.

    `measured` are all items of the batch by their places, as they were before they were decoded.
    `broken` says what the encoder's `preprocess` gave where its tensors make no batch.
    """

    part: int
    items: Sequence[Item]
    places: Sequence[int]
    inputs: Tensor | None
    failures: Sequence[Failure]
    measured: Mapping[int, Input]
    last: bool
    broken: str | None = None

    def pin_memory(self) -> "Loaded":
        """The same in page-locked memory, from which a copy to the GPU can run by the side."""
        return self if self.inputs is None else replace(self, inputs=self.inputs.pin_memory())


def load(
    batches: Iterator[Batch], encoder: Encoder, modality: Modality, workers: int
) -> Iterator[Loaded]:
    """Decode and preprocess `batches` in `workers` processes (0: in this one), in order.

    Workers are forked from a server that has imported what they need and holds no CUDA context.
    Raises SourceError when a worker is killed, as a decoder's crash or too little memory does.
    """
    context = multiprocessing.get_context("forkserver") if workers else None
    if context is not None:
        imports = getattr(encoder, "worker_imports", ())
        context.set_forkserver_preload([__name__, type(encoder).__module__, *imports])
    loader = DataLoader(
        Decoding(encoder, modality),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=PREFETCH if workers else None,
        multiprocessing_context=context,
        worker_init_fn=_give_way if encoder.device.type == "cpu" else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "exited unexpectedly" not in str(error) and "is killed by signal" not in str(error):
            raise
        fix = (
            "run the command again, with fewer --workers if memory ran out; finished parts are kept"
        )
        if "is killed by signal" not in str(error):
            fix += (
                '; a script of your own must call `extract` under `if __name__ == "__main__":`, or '
                "with workers=0, for these processes import the script"
            )
        raise SourceError(
            f"a process that decodes {modality} was killed: {str(error).splitlines()[0]}",
            fix=fix,
        ) from error


class Decoding(Dataset):
    """What runs in a worker: `Batch` to `Loaded`. One bad input costs only itself."""

    def __init__(self, encoder: Encoder, modality: Modality) -> None:
        self.preprocess = encoder.preprocess
        self.modality = modality

    def __getitems__(self, batch: Batch) -> Loaded:
        with threads_for(0):  # there is a worker for every core
            return self.load(batch)

    def load(self, batch: Batch) -> Loaded:
        """Decode and preprocess a batch, its failures set aside."""
        items, places, inputs, failures = [], [], [], []
        measured = {}
        for item, place in zip(batch.items, batch.places, strict=True):
            content = measure(item)
            measured[place] = content.as_input(item, failed=True)
            try:
                known, decoded = self.decode(item)
                inputs.append(self.preprocess(self.modality, decoded))
            except RecordedError:
                continue
            except Exception as error:  # decoders raise what they like
                failures.append(failure(item, error))
            else:
                items.append(known)
                places.append(place)
                measured[place] = content.as_input(item)
        broken = unstackable(inputs)
        stacked = torch.stack(inputs) if inputs and not broken else None  # (items, ...)
        return Loaded(batch.part, items, places, stacked, failures, measured, batch.last, broken)

    def decode(self, item: Item) -> tuple[Item, Decoded]:
        """The item as it is written, its media let go, and what the encoder takes."""
        if isinstance(item, Crop):
            return crop(item)
        decoded = decode(self.modality, item)
        return (item if self.modality == "text" else replace(item, content=None)), decoded


def unstackable(inputs: Sequence[object]) -> str | None:
    """Why preprocessed inputs make no batch; None where they are tensors of one kind."""
    kinds = {
        f"{tuple(one.shape)} {str(one.dtype).removeprefix('torch.')}"
        if isinstance(one, Tensor)
        else f"a {type(one).__name__}"
        for one in inputs
    }
    if len(kinds) > 1:
        return f"{len(kinds)} kinds, such as {' and '.join(sorted(kinds)[:2])}"
    return next((kind for kind in kinds if kind.startswith("a ")), None)


def failure(item: Item, error: Exception) -> Failure:
    """The row of `failures.parquet` for an item."""
    message = str(error).strip().partition("\n")[0]
    return {"id": item.id, "uri": item.uri, "error": type(error).__name__, "message": message}


def _give_way(worker: int) -> None:
    """Where the encoder computes on the same cores, let it go first.

    Its threads wait for one another, so a worker that takes one core stops them all. With less
    priority a worker decodes when the encoder has nothing to do, and then on every core. With the
    least it would get one part in seventy of a core on which somebody else is busy.
    """
    os.nice(GIVING_WAY)


def _unchanged(loaded: Any) -> Any:
    return loaded
