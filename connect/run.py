"""`cmcr connect`: from a store and a config to a connection on disk.

done = connect(store, config, name="clip-clap", device="cuda")
done.path, done.fresh, done.record.pairs
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection import CONFIG, MODEL, Connection, load_connection
from cmcr.connect.data import Pairs, SpaceData, Spaces, join, open_spaces
from cmcr.connect.fit import fit
from cmcr.connect.memory import aggregate
from cmcr.connect.record import Record, new_record, space_records
from cmcr.connect.train import CHECKPOINT, LOG, TrainingData, train
from cmcr.embeddings.schema import canonical_json
from cmcr.errors import StoreError, UsageError
from cmcr.files import locked
from cmcr.progress import progress


@dataclass(frozen=True)
class Connected:
    """Where a connection lies, what it is, and whether this call made it."""

    path: Path
    record: Record
    fresh: bool  # False: it was there already, made from the same config and datasets

    def __str__(self) -> str:
        first, second = self.record.spaces
        pairs = f"{self.record.pairs:,} {first.bridge} pairs"
        if any(self.record.unmatched):
            pairs += " ({:,} and {:,} rows without partner)".format(*self.record.unmatched)
        memory = ", ".join(
            f"{space.memory or 'no'} memory of {space.name}" for space in (first, second)
        )
        state = "connected" if self.fresh else "up to date"
        return (
            f"{state}: {first.name} and {second.name} by {self.record.config.model_name} "
            f"from {pairs}, {memory}: {self.path}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "path": str(self.path),
            "fresh": self.fresh,
            "connection": self.record.model_dump(mode="json"),
        }


def connect(
    store: Path, config: ConnectConfig, *, name: str, out: Path | None = None, device: str = "cpu"
) -> Connected:
    """Make the connection `name` in STORE/connections, or in the folder `out`.

    One that is up to date is left as it is, one that another process is making is waited for,
    and one that was interrupted goes on. Raises UsageError for a dataset that is not in the
    store, StoreError for a damaged one, MismatchError for spaces that have nothing in common,
    CmcrError for a loss that is not finite.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a connection", cure="use a plain file name")
    folder = out or store / "connections" / name
    spaces = open_spaces(store, config)
    with locked(folder / ".lock", wait=True):
        record = _up_to_date(folder, config, spaces)
        fresh = record is None
        if record is None:
            pairs = join(*spaces)
            _clear(folder)
            if config.method == "c-mcr":
                connection = _train(config, spaces, pairs, folder, device)
            else:
                connection = fit(config, spaces, pairs)
            connection.save(folder)
            record = connection.record
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return Connected(folder, record, fresh)


def _up_to_date(folder: Path, config: ConnectConfig, spaces: Spaces) -> Record | None:
    """The record of the connection in `folder`, if making it again would change nothing."""
    try:
        record = load_connection(folder).record
    except StoreError:
        return None
    current = record.config == config and record.spaces == space_records(spaces)
    return record if current else None


def _clear(folder: Path) -> None:
    """Take away an older connection and what a killed process left, but not the checkpoint."""
    for name in (CONFIG, MODEL, LOG, CHECKPOINT):
        for unfinished in folder.glob(f".{name}.*"):  # as `cmcr.files.replacing` names them
            unfinished.unlink(missing_ok=True)
    for name in (CONFIG, LOG):
        (folder / name).unlink(missing_ok=True)


def _train(
    config: ConnectConfig, spaces: Spaces, pairs: Pairs, folder: Path, device: str
) -> Connection:
    first, second = spaces
    bridge1, bridge2 = pairs.first.to(device), pairs.second.to(device)  # (pairs, D)
    pseudo1 = _pseudo_partners(first, bridge1, config.memory_temperature)
    pseudo2 = _pseudo_partners(second, bridge2, config.memory_temperature)
    data = TrainingData(bridge1, pseudo1, bridge2, pseudo2)
    record = new_record(config, spaces, pairs, joint_dim=config.joint_dim, device=device)
    heads = train(config, data, folder, _identity(record))
    return Connection(record, heads).to("cpu")


def _identity(record: Record) -> str:
    """Hex digest of all that decides the weights: a checkpoint of another is not taken up."""
    decisive = record.model_dump(mode="json", exclude={"model_sha256"})
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()


def _pseudo_partners(space: SpaceData, bridge: Tensor, temperature: float) -> Tensor | None:
    """ã for space 1, c̃ for space 2, (pairs, D); None for a space without memory."""
    if not space.memory:
        return None
    rows = sum(dataset.rows for dataset in space.memory)
    with progress(f"aggregate {space.name}/{space.memory_modality}", rows, "rows") as advance:

        def blocks() -> Iterator[np.ndarray]:
            for block in space.memory_blocks():
                yield block
                advance(len(block))

        return aggregate(bridge, blocks(), temperature)
