"""Inputs of many requests through one encoder: a batch leaves whenever the encoder is idle.

    batcher = Batcher(encoder, most=64)
    batcher.begin()
    vector = await batcher.embed("text", tensor, length=12)

There is no time to wait for and none to tune. Of what waits the oldest always goes, with those that
are most like it in length: a batch is padded little, and nothing starves.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import CmcrError
from cmcr.extract import Encoder, encode_batch
from cmcr.serve.schemas import ServiceError

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Waiting:
    """An input on its way: what is encoded, and who waits for its vector."""

    modality: Modality
    tensor: Tensor
    length: int
    answer: "asyncio.Future[np.ndarray]"


class Batcher:
    """One encoder and what waits for it."""

    def __init__(
        self,
        encoder: Encoder,
        most: int,
        told: Callable[[str, int], None] = lambda modality, count: None,
    ) -> None:
        self.encoder, self.most, self.told = encoder, most, told
        self.waiting: list[Waiting] = []  # the oldest first
        self.thread = ThreadPoolExecutor(1, f"encode-{encoder.name}")
        self._some = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start to work, in the running loop."""
        self._task = asyncio.create_task(self._work())

    @property
    def works(self) -> bool:
        """Whether inputs are taken up."""
        return self._task is not None and not self._task.done()

    async def end(self) -> None:
        """Stop; what waits is given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.thread.shutdown()

    async def embed(self, modality: Modality, tensor: Tensor, length: int = 0) -> np.ndarray:
        """The vector, (D,) float32. Raises ServiceError where there is none."""
        answer: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.waiting.append(Waiting(modality, tensor, length, answer))
        self._some.set()
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = self._next()
            if not batch:
                self._some.clear()
                continue
            modality = batch[0].modality
            self.told(modality, len(batch))
            try:
                stack = torch.stack([one.tensor for one in batch])  # (batch, ...)
                vectors = await loop.run_in_executor(
                    self.thread, encode_batch, self.encoder, modality, stack
                )
            except Exception as error:
                _refuse(batch, error)
                continue
            for one, vector in zip(batch, vectors, strict=True):
                if one.answer.done():
                    continue
                if np.isfinite(vector).all():
                    one.answer.set_result(vector)
                else:
                    one.answer.set_exception(
                        ServiceError(
                            400, "the input has no finite embedding", "input", "not_finite"
                        )
                    )

    def _next(self) -> list[Waiting]:
        """The oldest and what goes with it; what nobody waits for any more is let go."""
        self.waiting = [one for one in self.waiting if not one.answer.done()]
        if not self.waiting:
            return []
        oldest = self.waiting[0]
        kind = (oldest.modality, oldest.tensor.shape, oldest.tensor.dtype)
        alike = [
            one
            for one in self.waiting
            if (one.modality, one.tensor.shape, one.tensor.dtype) == kind
        ]
        alike.sort(key=lambda one: one.length)
        at, last = alike.index(oldest), max(len(alike) - self.most, 0)
        starts = range(max(at - self.most + 1, 0), min(at, last) + 1)
        start = min(starts, key=lambda one: _spread(alike[one : one + self.most]))
        batch = alike[start : start + self.most]
        taken = set(map(id, batch))
        self.waiting = [one for one in self.waiting if id(one) not in taken]
        return batch


def _spread(batch: list[Waiting]) -> int:
    """By how much the longest is longer than the shortest; they are in order."""
    return batch[-1].length - batch[0].length


def _refuse(batch: list[Waiting], error: Exception) -> None:
    log.error("a batch of %d %s failed", len(batch), batch[0].modality, exc_info=error)
    told = error.what if isinstance(error, CmcrError) else "the encoder failed"
    for one in batch:
        if not one.answer.done():
            one.answer.set_exception(ServiceError(500, told, code="encoder_failed"))
