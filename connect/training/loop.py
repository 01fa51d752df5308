"""The training loop: four blocks of embeddings in, two trained projectors out.

    train(config, TrainingSet(b1, a, b2, c), projectors, modalities, folder, identity)

The host waits for the device once an epoch. After every epoch, or of more than 36 after every few
(`schedule.epochs_a_round`), the state goes to FOLDER/checkpoint.pt, and after the step in hand when
a signal stops the run, so one that is run again goes on from there and ends with the same weights,
bit for bit. FOLDER/training.jsonl has one row an epoch.
"""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmcr.connect.config import ConnectConfig
from cmcr.connect.connection.projectors import Projector
from cmcr.connect.distributed import share, total_of_gradients, world_size
from cmcr.connect.training.batches import Batches, TrainingSet
from cmcr.connect.training.checkpoint import CHECKPOINT, TrainingState
from cmcr.connect.training.log import TRAINING_LOG, Curves, write_training
from cmcr.connect.training.objective import TERMS, Views, objective, perturb
from cmcr.connect.training.validation import Validated
from cmcr.devices import freed_memory_kept, reduced, threads_for
from cmcr.embeddings import Modality
from cmcr.errors import CmcrError

# Of each projector: its bridge modality and its memory's, None without one.
Modalities = tuple[tuple[Modality, Modality | None], tuple[Modality, Modality | None]]


class NotFiniteError(CmcrError):
    """A loss that is no longer finite."""


@dataclass(frozen=True)
class Trainer:
    """What a step needs and does not change."""

    config: ConnectConfig
    projectors: tuple[Projector, Projector]
    modalities: Modalities

    def terms(self, batch: TrainingSet, generator: torch.Generator) -> dict[str, Tensor]:
        """The objective on one global batch; every process works on its share of the rows."""
        count = len(batch.bridge1)
        blocks = ((batch.bridge1, batch.pseudo1), (batch.bridge2, batch.pseudo2))
        noisy = [
            self._noisy(projector, both, modalities, generator)
            for projector, both, modalities in zip(
                self.projectors, blocks, self.modalities, strict=True
            )
        ]
        (space1, within1), (space2, _) = (
            self._project(projector, both, modalities)
            for projector, both, modalities in zip(
                self.projectors, noisy, self.modalities, strict=True
            )
        )
        # A space that stays as it is has no gap to close, and Ex-MCR closes it before the head.
        attracted = {"linear": [space1], "ex-mcr": [within1]}.get(self.config.method)
        return objective(space1, space2, self.config, attracted, count)

    def _noisy(
        self,
        projector: Projector,
        blocks: tuple[Tensor, Tensor | None],
        modalities: tuple[Modality, Modality | None],
        generator: torch.Generator,
    ) -> Views:
        """b̃ and ã, this process's rows; all draw the noise of all, so that they stay in step."""
        mine = share(len(blocks[0]))

        def noisy(block: Tensor, modality: Modality | None) -> Tensor:
            # ã has a norm below 1 and keeps it until there is noise on it.
            clean = projector.centre(block, modality) if projector.means else block
            return perturb(clean, self.config.noise_variance, generator)[mine]

        bridge, pseudo = (
            None if block is None else noisy(block, modality)
            for block, modality in zip(blocks, modalities, strict=True)
        )
        assert bridge is not None
        return bridge, pseudo

    def _project(
        self, projector: Projector, noisy: Views, modalities: tuple[Modality, Modality | None]
    ) -> tuple[Views, Views]:
        """f(b̃) and f(ã), normalised, and what went into the head."""
        bridge, pseudo = noisy
        precision = reduced(bridge.device)
        with torch.autocast(bridge.device.type, precision, enabled=precision is not None):
            if pseudo is not None and modalities[1] in projector.turned:
                pseudo = projector.turn(pseudo)
            # Both modalities in one batch: BatchNorm must not tell them apart, for at inference
            # it has one mean for both.
            rows = bridge if pseudo is None else torch.cat([bridge, pseudo])
            joint = projector.head(rows)
        joint = F.normalize(joint.float(), dim=1)  # (1 or 2 · rows, joint)
        if pseudo is None:
            return (joint, None), (bridge, None)
        return (joint[: len(bridge)], joint[len(bridge) :]), (bridge, pseudo.float())


def train(
    config: ConnectConfig,
    data: TrainingSet,
    projectors: tuple[Projector, Projector],
    modalities: Modalities,
    folder: Path,
    identity: str,
    *,
    device: str = "cpu",
    validate: Callable[[], Validated] | None = None,
    tensorboard: bool = False,
    until: int | None = None,
) -> int:
    """Train `projectors` in place; a checkpoint of the same `identity` in `folder` is taken up.

    The config says batch size and epochs (`schedule.scheduled`); `until` stops after so many of
    them. Gives the epoch whose weights were kept.

    The loss is the sum of the terms that `objective` names, minimised by AdamW. With
    `validate` the weights of the last epoch are kept that does not do clearly worse than the best,
    of a residual those of the best, the start counting as epoch 0; `config.patience` validations
    after the one that is kept end the run. Raises NotFiniteError when the loss is no longer finite,
    StoreError for a damaged checkpoint, KeyboardInterrupt after a signal.
    """
    modules = nn.ModuleDict(
        {"Head_A": projectors[0].head, "Head_B": projectors[1].head, "turn_A": projectors[0].turn}
    ).to(device)
    state = TrainingState(modules, config, device)
    state.restore(folder / CHECKPOINT, identity)
    if validate is not None and state.kept is None:
        modules.eval()
        state.judge(0, validate())
    write_training(folder / TRAINING_LOG, state.log)
    trainer = Trainer(config, projectors, modalities)
    batches = Batches(data, device)
    assert config.batch_size is not None
    count = math.ceil(len(batches) / config.batch_size)
    last = state.epochs if until is None else until
    rows = math.ceil(len(batches) / count)
    with (
        threads_for(rows**2 * max(data.bridge1.shape[1], data.bridge2.shape[1])),
        freed_memory_kept(),
        Curves(folder, last, state.log, tensorboard) as curves,
        _signals() as stopped,
    ):
        while len(state.log) < last and not state.out_of_patience:
            modules.train()
            for number, batch in batches.epoch(state.epoch_order(len(batches)), count, state.batch):
                take_step(state, trainer, batch, state.epoch * count + number, count)
                if stopped.is_set():
                    state.save(folder / CHECKPOINT, identity)
                    raise KeyboardInterrupt
            means = (state.sums / count).tolist()
            _refuse_what_is_not_finite(state, means, folder)
            row = {
                "epoch": state.epoch + 1,
                "step": (state.epoch + 1) * count,
                "lr": learning_rate(config, (state.epoch + 1) * count - 1, count),
            } | dict(zip(TERMS, means, strict=True))
            ends = state.round_ends
            if validate is not None and ends:
                modules.eval()
                validated = validate()
                row |= {f"validation_{name}": score for name, score in validated.scores.items()}
                state.judge(state.epoch + 1, validated)
            state.finish_epoch(row)
            write_training(folder / TRAINING_LOG, state.log)
            if ends:
                state.save(folder / CHECKPOINT, identity)
            curves.show(row)
    kept = state.take_kept()
    modules.eval()
    return kept


def learning_rate(config: ConnectConfig, step: int, count: int) -> float:
    """Cosine decay from `config.learning_rate` to zero after the last epoch.

    Before it the rate rises from zero, step by step, where the config asks for a warm-up.
    """
    assert config.epochs is not None
    steps = config.epochs * count
    rising = round(config.warm_up * steps)
    if step < rising:
        return config.learning_rate * (step + 1) / rising
    return config.learning_rate * (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def take_step(
    state: TrainingState, trainer: Trainer, batch: TrainingSet, step: int, count: int
) -> None:
    """One optimizer step on a global batch: number `step` of a run of `count` batches an epoch."""
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(trainer.config, step, count)
    terms = trainer.terms(batch, state.generator)
    state.optimizer.zero_grad()
    torch.autograd.backward(terms["loss"])
    total_of_gradients(state.weights)
    state.optimizer.step()
    state.count(torch.stack([terms[name].detach() for name in TERMS]), step)


def _refuse_what_is_not_finite(state: TrainingState, means: list[float], folder: Path) -> None:
    if all(map(math.isfinite, means)):
        return
    first = dict(zip(TERMS, state.first_bad.tolist(), strict=True))
    step = min(step for step in first.values() if step >= 0)
    names = [name for name, bad in first.items() if bad == step and name != "loss"]
    kept = f"the weights after epoch {state.epoch} are in {CHECKPOINT}" if state.epoch else ""
    raise NotFiniteError(
        f"the loss is no longer finite in epoch {state.epoch + 1}: "
        f"{' and '.join(names) or 'loss'} at step {step + 1}",
        where=folder,
        fix="lower learning_rate or raise the temperatures" + (f"; {kept}" if kept else ""),
    )


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """An event that SIGINT and SIGTERM set, so that the step in hand can end.

    Several processes that train together would stop at different steps: they are left to their
    launcher and go on from the last epoch.
    """
    stopped = threading.Event()
    if world_size() > 1 or threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
