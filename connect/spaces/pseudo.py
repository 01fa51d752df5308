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
from collections.abc import Callable, Iterator, Mapping
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
    memory = memory_of(space, device)

    def found(rows: slice) -> Tensor:
        return aggregate(tensor(bridge[rows], device), memory, temperature)

    title = f"aggregate {space.name}/{space.memory_modality}"
    return Rows(kept(store, _decisive(space, bridge, temperature), title, len(bridge), found))


def kept(
    store: Path,
    decisive: Mapping[str, object],
    title: str,
    count: int,
    make: Callable[[slice], Tensor],
) -> list[np.ndarray]:
    """`make` of `count` rows, PART_ROWS at a time: float16, kept under what decides them."""
    digest = hashlib.sha256(canonical_json(decisive).encode()).hexdigest()[:32]
    folder = store / "pseudo" / digest
    parts = [folder / f"part-{part:05}.npy" for part in range(-(-count // PART_ROWS))]
    with progress(title, count, "rows") as bar:
        for number in range(rank(), len(parts), world_size()):
            rows = slice(number * PART_ROWS, min((number + 1) * PART_ROWS, count))
            with locked(parts[number].with_suffix(".lock"), wait=True):
                if not _is_whole(parts[number]):
                    found = make(rows)  # (≤ PART_ROWS, D)
                    with replacing(parts[number]) as unfinished, unfinished.open("wb") as file:
                        np.save(file, found.half().cpu().numpy())
                    write_text(_digest_file(parts[number]), sha256_file(parts[number]) + "\n")
            bar(rows.stop - rows.start)
    wait_for_all()
    return [np.load(part, mmap_mode="r") for part in parts]


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


class Blocks:
    """Rows to be read again and again, by blocks: on the device when they fit there."""

    def __init__(self, read: Callable[[], Iterator[np.ndarray]], numbers: int, device: str) -> None:
        """`read` begins anew each time; `numbers` is how many there are in all rows."""
        self.read, self.numbers, self.device = read, numbers, device
        self.resident: list[Tensor] = []

    def __iter__(self) -> Iterator[Tensor | np.ndarray]:
        if not self.resident and self._fits():
            self.resident = [tensor(block, self.device).half() for block in self.read()]
        return iter(self.resident or self.read())

    def _fits(self) -> bool:
        if torch.device(self.device).type != "cuda":
            return False
        free: int = torch.cuda.mem_get_info(self.device)[0]
        return self.numbers * 2 < free / 2


def memory_of(space: SpaceData, device: str) -> Blocks:
    """The memory of a space."""
    numbers = sum(dataset.rows * dataset.dim for dataset in space.memory)
    return Blocks(space.memory_blocks, numbers, device)


def _decisive(space: SpaceData, bridge: Rows, temperature: float) -> dict[str, object]:
    return {
        "bridge": [dataset.fingerprint for dataset in space.bridge + space.pool],
        "rows": rows_digest(bridge),
        "memory": [dataset.fingerprint for dataset in space.memory],
        "temperature": temperature,
    }


def rows_digest(rows: Rows) -> str:
    """Which rows of their datasets they are."""
    return hashlib.sha256(rows.rows.astype("<i8", copy=False).data).hexdigest()
