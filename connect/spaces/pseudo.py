"""Pseudo partners of the bridge items, aggregated once and kept in the store.

    partners = pseudo_partners(store, space, pairs.first, temperature=0.01, device="cuda")

STORE/pseudo/DIGEST/part-00000.npy      (65,536 or fewer, D) float16, in the order of the pairs
                    part-00000.sha256   of the file, looked at before it is used

The digest is of the bridge rows, the memory and the temperature, so what is there can be used by
every connection for which these are the same. A part is a unit of work: several processes share
the parts, and a killed run loses at most the ones it was in. The folder can be deleted at any time.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cmcr.connect.distributed import rank, wait_for_all, world_size
from cmcr.connect.spaces.aggregation import aggregate
from cmcr.connect.spaces.datasets import SpaceData
from cmcr.connect.spaces.pairs import Rows
from cmcr.devices import tensor
from cmcr.embeddings.schema import canonical_json
from cmcr.files import locked, replacing, sha256_file, write_text
from cmcr.progress import progress

log = logging.getLogger(__name__)

PART_ROWS = 65_536


def pseudo_partners(
    store: Path, space: SpaceData, bridge: Rows, temperature: float, device: str
) -> Rows | None:
    """ã for space 1, c̃ for space 2, (pairs, D); None for a space without memory."""
    if not space.memory:
        return None
    folder = store / "pseudo" / _digest(space, bridge, temperature)
    parts = [folder / f"part-{part:05}.npy" for part in range(-(-len(bridge) // PART_ROWS))]
    memory: Iterable[Tensor | np.ndarray] | None = None
    with progress(f"aggregate {space.name}/{space.memory_modality}", len(bridge), "rows") as bar:
        for number in range(rank(), len(parts), world_size()):
            rows = slice(number * PART_ROWS, min((number + 1) * PART_ROWS, len(bridge)))
            with locked(parts[number].with_suffix(".lock"), wait=True):
                if not _is_whole(parts[number]):
                    memory = memory or _Memory(space, device)
                    queries = tensor(bridge[rows], device)  # (≤ PART_ROWS, D)
                    found = aggregate(queries, memory, temperature)
                    with replacing(parts[number]) as unfinished, unfinished.open("wb") as file:
                        np.save(file, found.half().cpu().numpy())
                    write_text(_digest_file(parts[number]), sha256_file(parts[number]) + "\n")
            bar(rows.stop - rows.start)
    wait_for_all()
    return Rows([np.load(part, mmap_mode="r") for part in parts])


def _is_whole(part: Path) -> bool:
    """Whether a part is there as it was written; what is not is made again."""
    digest = _digest_file(part)
    if not part.is_file() or not digest.is_file():
        return False
    whole = digest.read_text(errors="replace").strip() == sha256_file(part)
    if not whole:
        log.warning("%s is not as it was written, and is made again", part)
    return whole


def _digest_file(part: Path) -> Path:
    return part.with_suffix(".sha256")


class _Memory:
    """The memory of a space, to be read again and again: on the device when it fits there."""

    def __init__(self, space: SpaceData, device: str) -> None:
        self.space = space
        self.resident: list[Tensor] = []
        size = sum(dataset.rows * dataset.dim * 2 for dataset in space.memory)
        if torch.device(device).type == "cuda" and size < torch.cuda.mem_get_info(device)[0] / 2:
            self.resident = [tensor(block, device).half() for block in space.memory_blocks()]

    def __iter__(self) -> Iterator[Tensor | np.ndarray]:
        return iter(self.resident or self.space.memory_blocks())


def _digest(space: SpaceData, bridge: Rows, temperature: float) -> str:
    decisive = {
        "bridge": [dataset.fingerprint for dataset in space.bridge + space.pool],
        "rows": hashlib.sha256(bridge.rows.astype("<i8", copy=False).data).hexdigest(),
        "memory": [dataset.fingerprint for dataset in space.memory],
        "temperature": temperature,
    }
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()[:32]
