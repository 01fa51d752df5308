"""`cmcr connect`: from a store and a config to a connection on disk.

done = connect(store, config, name="clip-clap", device="cuda")
done.path, done.fresh, done.record.pairs
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.load import load_connection
from cmcr.connect.connection.model_card import pools_line, trained_line
from cmcr.connect.connection.record import CARD, CONFIG, MODEL, Record
from cmcr.connect.distributed import process_group, rank, wait_for_all
from cmcr.connect.make.replace import NEW, differences, refuse, settle, take_place
from cmcr.connect.methods.auto import METHODS, choose, keep_to, read_methods, warning
from cmcr.connect.methods.pools import blind, with_pools
from cmcr.connect.methods.problem import pose
from cmcr.connect.training.checkpoint import CHECKPOINT
from cmcr.connect.training.log import TRAINING_LOG
from cmcr.devices import WORTH_A_THREAD, cores, threads_for
from cmcr.embeddings import Key
from cmcr.embeddings.verify import Health, measure
from cmcr.errors import StoreError, UsageError
from cmcr.files import locked

Opened = Callable[[Mapping[Key, Health]], None]


@dataclass(frozen=True)
class Connected:
    """Where a connection or a chain lies, what it is, and whether this call made any of it."""

    path: Path
    record: Record = field(repr=False)
    fresh: bool  # False: it was there already, made from the same config and datasets
    # The validation of each method that was looked at: all that `auto` compares, or the closed
    # forms beside the one that was named. Of a chain "link-1: MODEL".
    methods: Mapping[str, Mapping[str, float]] = field(repr=False)
    health: Mapping[Key, Health] = field(repr=False)  # of each dataset with two rows or more
    instead: tuple[str, ...] = ()  # how the one differed that it took the place of
    bridges: tuple[str, ...] = ()  # what each link of a chain was made from
    warnings: tuple[str, ...] = ()  # that a closed form does clearly better, or none was tried

    def __str__(self) -> str:
        names = " and ".join(space.name for space in self.record.spaces)
        state = "connected" if self.fresh else "up to date"
        if self.instead:
            state += f" anew ({'; '.join(self.instead)})"
        made_from = f", {'; '.join(self.bridges)}" if self.bridges else f" from {self._data()}"
        return f"{state}: {names} by {self.record.model}{made_from}: {self.path}"

    def _data(self) -> str:
        pairs = f"{self.record.pairs:,} {self.record.via} pairs"
        pairs += " that were found" * self.record.blind
        if any(self.record.unmatched):
            pairs += " ({:,} and {:,} rows without partner)".format(*self.record.unmatched)
        memory = [f"{space.memory or 'no'} memory of {space.name}" for space in self.record.spaces]
        pools = [pools_line(self.record)] if self.record.pools else []
        rows = [trained_line(self.record)] if self.record.trained_on else []
        return ", ".join([pairs, *memory, *pools, *rows])


def connect(
    store: Path,
    config: ConnectConfig,
    *,
    name: str,
    out: Path | None = None,
    device: str = "cpu",
    tensorboard: bool = False,
    replace: bool = False,
    opened: Opened | None = None,
) -> Connected:
    """Make the connection `name` in STORE/connections, or in the folder `out`.

    One that is up to date is left as it is, one that another process is making is waited for,
    and one that was interrupted goes on. Another one of that name is refused, unless `replace` it
    is: it is kept until the new one is finished. With `tensorboard` the curves also go to
    FOLDER/tensorboard. `opened` is told how well each dataset's embeddings tell its rows apart,
    before anything is trained.

    Raises UsageError for a dataset that is not in the store or a name that another connection has,
    StoreError for a damaged dataset, MismatchError for spaces that have nothing in common, or
    pools in which blind matching is not sure of any pairs, CmcrError for a loss that is not finite.
    """
    if not name or name.startswith(".") or Path(name).name != name:
        raise UsageError(f"{name!r} cannot name a connection", fix="use a plain file name")
    folder = out or store / "connections" / name
    with no_more_threads_than_cores():
        problem = pose(store, config, device)
        datasets = [dataset for space in problem.data.spaces for dataset in space.datasets]
        health = {one.key: found for one in datasets if (found := measure(one)) is not None}
        with process_group(torch.device(device)), alone(folder):
            if opened is not None and rank() == 0:
                opened(health)
            others = differences(folder, problem.differences)
            if not replace:
                refuse(folder, others)
            place = folder / NEW if others else folder
            record = None if others else _undamaged(folder)
            fresh = record is None
            wait_for_all()
            if record is None:
                if rank() == 0:
                    _clear(place)
                method = choose if config.method == "auto" else keep_to
                pooled = blind(problem) if config.blind else with_pools(problem)
                connection = method(pooled, place, tensorboard)
                if rank() == 0:
                    connection.save(place)
                record = connection.record
            if rank() == 0:
                (place / CHECKPOINT).unlink(missing_ok=True)
                if others:
                    take_place(folder)
            wait_for_all()
    told = warning(folder, record)
    return Connected(folder, record, fresh, read_methods(folder), health, tuple(others),
                     warnings=(told,) if told else ())  # fmt: skip


@contextmanager
def no_more_threads_than_cores() -> Iterator[None]:
    """Where OMP_NUM_THREADS says more, they only wait for each other."""
    with threads_for(cores() * WORTH_A_THREAD):
        yield


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


def _undamaged(folder: Path) -> Record | None:
    """The record of the connection in `folder`; None where it is unfinished or damaged."""
    try:
        return load_connection(folder).record
    except StoreError:
        return None


def _clear(folder: Path) -> None:
    """Take away an older connection and what a killed process left, but not the checkpoint."""
    for name in (CONFIG, MODEL, CARD, TRAINING_LOG, METHODS, CHECKPOINT):
        for unfinished in folder.glob(f".{name}.*"):  # as `cmcr.files.replacing` names them
            unfinished.unlink(missing_ok=True)
    for name in (CONFIG, TRAINING_LOG, METHODS):
        (folder / name).unlink(missing_ok=True)
