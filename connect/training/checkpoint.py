"""What training changes, and the file that it is kept in while the run lasts.

state = TrainingState(modules, config, device)
state.restore(folder / CHECKPOINT, identity)
state.save(folder / CHECKPOINT, identity)
"""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from cmcr.connect.config import ConnectConfig
from cmcr.connect.distributed import rank, wait_for_all
from cmcr.connect.training.objective import TERMS
from cmcr.connect.training.schedule import epochs_a_round
from cmcr.connect.training.validation import Validated, falls
from cmcr.errors import StoreError
from cmcr.files import replacing

CHECKPOINT = "checkpoint.pt"


class TrainingState:
    """Weights, optimizer, random generator and log; how far the epoch in hand has come."""

    def __init__(self, modules: nn.ModuleDict, config: ConnectConfig, device: str) -> None:
        self.config = config
        self.modules = modules
        self.device = device
        self.weights = [weight for weight in modules.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.weights, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.log: list[dict[str, Any]] = []
        self.best: Tensor | None = None  # what the held-out items did at best, `Validated.items`
        self.kept: dict[str, Any] | None = None  # the weights to end with, and their epoch
        self._begin_epoch()

    @property
    def epoch(self) -> int:
        """Epochs that are finished."""
        return len(self.log)

    @property
    def out_of_patience(self) -> bool:
        """Whether the epoch that is kept is too long ago to go on."""
        patience = self.config.patience * epochs_a_round(self.epochs)
        return self.kept is not None and self.epoch - self.kept["epoch"] >= patience

    @property
    def epochs(self) -> int:
        """How many there are to be."""
        assert self.config.epochs is not None
        return self.config.epochs

    @property
    def round_ends(self) -> bool:
        """Whether the epoch in hand is one to validate and to save after."""
        number = self.epoch + 1
        return number % epochs_a_round(self.epochs) == 0 or number == self.epochs

    def epoch_order(self, count: int) -> Tensor:
        """The rows in the order of this epoch, (count,); the same however often it is asked for."""
        seed = self.config.seed * 1_000_003 + self.epoch
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randperm(count, generator=generator, device=self.device)

    def count(self, terms: Tensor, step: int) -> None:
        """Add a step's `terms`, (terms,), and note the first that is not finite, on the device."""
        self.batch += 1
        self.sums += terms
        bad = ~terms.isfinite() & (self.first_bad < 0)
        self.first_bad.masked_fill_(bad, step)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Add the epoch's row to the log."""
        self.log.append(row)
        self._begin_epoch()

    def judge(self, epoch: int, validated: Validated) -> None:
        """Keep a copy of the weights, unless those of an epoch before did clearly better.

        A residual has something to lose: it keeps the weights that did best, its start if need be.
        """
        better = self.best is None or bool(validated.items.mean() > self.best.mean())
        if self.best is None or better:
            self.best = validated.items
        residual = self.config.projector == "residual"
        if better or not (residual or falls(validated.items, self.best)):
            weights = {name: value.clone() for name, value in self.modules.state_dict().items()}
            self.kept = {"epoch": epoch, "modules": weights}

    def take_kept(self) -> int:
        """Go back to the weights that were kept, where there is a validation; gives their epoch."""
        if self.kept is None:
            return self.epoch
        self.modules.load_state_dict(self.kept["modules"])
        return int(self.kept["epoch"])

    def save(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        if rank() == 0:
            state = {
                "identity": identity,
                "modules": self.modules.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "log": self.log,
                "best": self.best,
                "kept": self.kept,
                "batch": self.batch,
                "sums": self.sums,
                "first_bad": self.first_bad,
            }
            with replacing(path) as unfinished:
                torch.save(state, unfinished)

    def restore(self, path: Path, identity: str) -> None:
        """Take up the state in `path` if it is there and of `identity`; else stay at the start.

        Raises StoreError for a file that is not a checkpoint.
        """
        if path.exists():
            self._take(path, identity)
        wait_for_all()  # or the first process replaces what another still reads

    def _take(self, path: Path, identity: str) -> None:
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            if state["identity"] != identity:
                return
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.generator.set_state(state["generator"].cpu())
            self.log, self.best, self.kept = state["log"], state["best"], state["kept"]
            self.batch, self.sums = state["batch"], state["sums"]
            self.first_bad = state["first_bad"]
        except (
            RuntimeError, EOFError, UnpicklingError, KeyError, TypeError, ValueError, AttributeError
        ) as error:  # fmt: skip
            raise StoreError(
                "the checkpoint is damaged, or not one of cmcr's",
                where=path,
                fix="delete it to train from the start",
            ) from error

    def _begin_epoch(self) -> None:
        self.batch = 0
        self.sums = torch.zeros(len(TERMS), device=self.device)
        self.first_bad = torch.full((len(TERMS),), -1, dtype=torch.long, device=self.device)
