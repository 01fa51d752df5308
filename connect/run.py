"""`cmcr connect`: from a store and a config to a connection on disk.

done = connect(store, config, name="clip-clap", device="cuda")
done.path, done.fresh, done.record.pairs
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from cmcr.connect.banks import TrainingData
from cmcr.connect.checkpoint import CHECKPOINT, LOG
from cmcr.connect.compare import METHODS, choose, read_methods
from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection import CARD, CONFIG, MODEL, Connection, load_connection
from cmcr.connect.data import SpaceData, open_spaces
from cmcr.connect.fit import Problem, describe, finished, fit, pose, score, start
from cmcr.connect.parallel import process_group, rank, wait_for_all
from cmcr.connect.pseudo import pseudo_partners
from cmcr.connect.record import Record
from cmcr.connect.replace import differences, refuse
from cmcr.connect.swap import NEW, settle, take_place
from cmcr.connect.train import train
from cmcr.embeddings.health import Health, measure
from cmcr.embeddings.schema import Key, Modality, canonical_json
from cmcr.errors import StoreError, UsageError
from cmcr.files import locked


@dataclass(frozen=True)
class Connected:
    """Where a connection lies, what it is, and whether this call made it."""

    path: Path
    record: Record = field(repr=False)
    fresh: bool  # False: it was there already, made from the same config and datasets
    instead: tuple[str, ...] = ()  # how the one differed that it took the place of
    # Of each dataset with two rows or more:
    health: Mapping[Key, Health] = field(default_factory=dict, repr=False)

    @property
    def methods(self) -> dict[str, dict[str, float]]:
        """The validation of each method that `auto` compared; empty where one was named."""
        return read_methods(self.path)

    def __str__(self) -> str:
        first, second = self.record.spaces
        pairs = f"{self.record.pairs:,} {first.bridge} pairs"
        if any(self.record.unmatched):
            pairs += " ({:,} and {:,} rows without partner)".format(*self.record.unmatched)
        memory = ", ".join(
            f"{space.memory or 'no'} memory of {space.name}" for space in (first, second)
        )
        state = "connected" if self.fresh else "up to date"
        if self.instead:
            state += f" anew ({'; '.join(self.instead)})"
        return (
            f"{state}: {first.name} and {second.name} by {self.record.model} "
            f"from {pairs}, {memory}: {self.path}"
        )


def connect(
    store: Path,
    config: ConnectConfig,
    *,
    name: str,
    out: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    replace: bool = False,
    opened: Callable[[Mapping[Key, Health]], None] | None = None,
) -> Connected:
    """Make the connection `name` in STORE/connections, or in the folder `out`.

    One that is up to date is left as it is, one that another process is making is waited for,
    and one that was interrupted goes on. Another one of that name is refused, unless `replace` it
    is: it is kept until the new one is finished. With `tensorboard` the curves also go to
    FOLDER/tensorboard. `opened` is told how well each dataset's embeddings tell its rows apart,
    before anything is trained. Raises UsageError for a dataset that is not in the store or a name
    that another connection has, StoreError for a damaged dataset, MismatchError for spaces that
    have nothing in common, CmcrError for a loss that is not finite.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a connection", cure="use a plain file name")
    folder = out or store / "connections" / name
    spaces = open_spaces(store, config)
    health = {
        dataset.key: found
        for space in spaces
        for dataset in space.datasets
        if (found := measure(dataset)) is not None
    }
    with process_group(torch.device(device)), alone(folder):
        if opened is not None and rank() == 0:
            opened(health)
        others = differences(folder, config, spaces)
        if not replace:
            refuse(folder, others)
        place = folder / NEW if others else folder
        record = None if others else _sound(folder)
        fresh = record is None
        wait_for_all()
        if record is None:
            if rank() == 0:
                _clear(place)
            problem = pose(config, store, spaces, device)
            if config.method == "auto":
                with_curves = partial(make, tensorboard=tensorboard)
                connection = choose(config, problem, place, device, with_curves)
            else:
                connection = make(config, problem, place, device, tensorboard)
            if rank() == 0:
                connection.save(place)
            record = connection.record
        if rank() == 0:
            (place / CHECKPOINT).unlink(missing_ok=True)
            if others:
                take_place(folder)
        wait_for_all()
    return Connected(folder, record, fresh, tuple(others), health)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; of processes that train together the first holds it for all.

    What a killed process began to replace is finished first.
    """
    if rank() > 0:
        wait_for_all()
        yield
        return
    with locked(folder / ".lock", wait=True):
        settle(folder)
        wait_for_all()
        yield


def _sound(folder: Path) -> Record | None:
    """The record of the connection in `folder`; None where it is unfinished or damaged."""
    try:
        return load_connection(folder).record
    except StoreError:
        return None


def _clear(folder: Path) -> None:
    """Take away an older connection and what a killed process left, but not the checkpoint."""
    for name in (CONFIG, MODEL, CARD, LOG, METHODS, CHECKPOINT):
        for unfinished in folder.glob(f".{name}.*"):  # as `cmcr.files.replacing` names them
            unfinished.unlink(missing_ok=True)
    for name in (CONFIG, LOG, METHODS):
        (folder / name).unlink(missing_ok=True)


def make(
    config: ConnectConfig, problem: Problem, folder: Path, device: str, tensorboard: bool = False
) -> Connection:
    """The connection of one method; what training leaves on its way goes to `folder`."""
    if not config.trained:
        return fit(config, problem)
    partners = [
        pseudo_partners(problem.store, space, bridge, config.memory_temperature, device)
        for space, bridge in zip(
            problem.spaces, (problem.pairs.first, problem.pairs.second), strict=True
        )
    ]
    seen = problem.fitted_rows
    pseudo = [None if rows is None else rows.subset(seen) for rows in partners]
    data = TrainingData(problem.fitted.first, pseudo[0], problem.fitted.second, pseudo[1])
    sides = start(config, problem)
    identity = _identity(describe(config, problem, sides, device))
    for side in sides:
        side.to(device)
    held = problem.held
    train(
        config,
        data,
        sides,
        (_modalities(problem.spaces[0]), _modalities(problem.spaces[1])),
        folder,
        identity,
        device=device,
        validate=None if held is None else lambda: score(sides, problem.spaces, held),
        tensorboard=tensorboard,
    )
    return finished(config, problem, sides, device)


def _modalities(space: SpaceData) -> tuple[Modality, Modality | None]:
    return space.bridge_modality, space.memory_modality


def _identity(record: Record) -> str:
    """Hex digest of all that decides the weights: a checkpoint of another is not taken up."""
    decisive = record.model_dump(mode="json", exclude={"model_sha256", "validation"})
    return hashlib.sha256(canonical_json(decisive).encode()).hexdigest()
