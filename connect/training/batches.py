"""The four blocks of embeddings that training draws its batches from.

    batches = Batches(TrainingSet(b1, a, b2, c), "cuda")
    for number, batch in batches.epoch(order, count=100, first=0): ...

They lie on the device when they fit there, in the precision of the shards; otherwise a thread reads
the rows of the next batch from the shards while the device works on this one.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cmcr.connect.spaces.pairs import Rows
from cmcr.devices import tensor


@dataclass(frozen=True)
class TrainingSet:
    """Row i of each block is bridge item i: `Rows` of the shards, or tensors of a batch."""

    bridge1: Any  # (n, D1)
    pseudo1: Any  # ã, (n, D1), or None
    bridge2: Any  # (n, D2)
    pseudo2: Any  # c̃, (n, D2), or None

    def __iter__(self) -> Iterator[Any]:
        return iter((self.bridge1, self.pseudo1, self.bridge2, self.pseudo2))


class Batches:
    """`TrainingSet` by batches on `device`."""

    def __init__(self, data: TrainingSet, device: str, budget: int | None = None) -> None:
        """`budget` in bytes is what may lie on the device: half of what is free, if None."""
        self.device = torch.device(device)
        self.rows = len(data.bridge1)
        size = sum(block.nbytes for block in data if block is not None)
        self.resident = size <= (_free_memory(self.device) // 2 if budget is None else budget)
        self.data = _each(data, self._loaded) if self.resident else data

    def __len__(self) -> int:
        return self.rows

    def epoch(self, order: Tensor, count: int, first: int) -> Iterator[tuple[int, TrainingSet]]:
        """Batch `first` and those after it of `count` equal ones, each with its number.

        Equal batches: none is left over that is too small for BatchNorm or for InfoNCE.
        """
        chunks = list(enumerate(order.tensor_split(count)))[first:]
        if self.resident:
            for number, chunk in chunks:
                yield number, _each(self.data, lambda block, rows=chunk: block[rows])
            return
        with ThreadPoolExecutor(1, "read") as thread:
            ahead = thread.submit(self._read, chunks[0][1].cpu())
            for number, _ in chunks:
                batch = ahead.result()
                if number + 1 < count:
                    ahead = thread.submit(self._read, chunks[number + 1 - first][1].cpu())
                yield number, _each(batch, self._sent)

    def _loaded(self, block: Rows | Tensor) -> Tensor:
        """A whole block on the device, read a part at a time."""
        if isinstance(block, Tensor):
            return block.to(self.device)
        whole = torch.empty(block.shape, dtype=tensor(block[:0], "cpu").dtype, device=self.device)
        start = 0
        for rows in block.batches():
            whole[start : start + len(rows)] = tensor(rows, "cpu")
            start += len(rows)
        return whole

    def _read(self, rows: Tensor) -> TrainingSet:
        return _each(self.data, lambda block: tensor(block[rows.numpy()], "cpu"))

    def _sent(self, block: Tensor) -> Tensor:
        if self.device.type == "cuda":
            return block.pin_memory().to(self.device, non_blocking=True)
        return block


def _each(data: TrainingSet, change: Any) -> TrainingSet:
    return TrainingSet(*(None if block is None else change(block) for block in data))


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
