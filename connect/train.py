"""C-MCR's training loop: four blocks of embeddings in, two projectors out.

    train(config, TrainingData(b1, a, b2, c), folder, identity)

Everything lies on one device; the host waits for it once an epoch. After every epoch the state
goes to FOLDER/checkpoint.pt, so a run that is killed goes on from there and ends with the same
weights, bit for bit, as one that was not. FOLDER/training.jsonl has one row an epoch.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cmcr.connect.config import ConnectConfig
from cmcr.connect.losses import TERMS, objective, perturb
from cmcr.connect.projectors import make_projectors
from cmcr.errors import CmcrError, StoreError
from cmcr.files import replacing, write_text
from cmcr.progress import progress

CHECKPOINT = "checkpoint.pt"
LOG = "training.jsonl"


@dataclass(frozen=True)
class TrainingData:
    """Row i of each block is bridge item i; all on one device, in any float precision."""

    bridge1: Tensor  # (n, D1)
    pseudo1: Tensor | None  # ã, (n, D1)
    bridge2: Tensor  # (n, D2)
    pseudo2: Tensor | None  # c̃, (n, D2)


def train(
    config: ConnectConfig, data: TrainingData, folder: Path, identity: str
) -> tuple[nn.Module, nn.Module]:
    """Train f1 and f2, taking up a checkpoint of the same `identity` if `folder` has one.

    The loss is the sum of the terms that `losses.objective` names, minimised by AdamW. Raises
    CmcrError when it is no longer finite, StoreError for a damaged checkpoint.
    """
    device = data.bridge1.device
    count = len(data.bridge1)
    batches = math.ceil(count / config.batch_size)
    steps = config.epochs * batches

    dims = (data.bridge1.shape[1], data.bridge2.shape[1])
    f1, f2 = make_projectors(config.projector, dims, config.joint_dim, config.seed)
    state = TrainingState(nn.ModuleList([f1, f2]).to(device), config)
    state.restore(folder / CHECKPOINT, identity)
    state.write_log(folder / LOG)
    with progress("train", total=config.epochs, unit="epochs") as advance:
        advance(len(state.log))
        for epoch in range(len(state.log), config.epochs):
            order = torch.randperm(count, generator=state.generator, device=device)  # (n,)
            sums = torch.zeros(len(TERMS), device=device)
            # Equal batches: none is left over that is too small for BatchNorm or for InfoNCE.
            for batch, rows in enumerate(order.tensor_split(batches)):
                rate = learning_rate(config, epoch * batches + batch, steps)
                sums += state.step(data, rows, rate)
            means = (sums / batches).tolist()
            if not all(map(math.isfinite, means)):
                raise CmcrError(
                    f"the loss is no longer finite in epoch {epoch + 1}",
                    where=folder,
                    cure="lower learning_rate or raise the temperatures",
                )
            row = {"epoch": epoch + 1, "step": (epoch + 1) * batches, "lr": rate}
            state.log.append(row | dict(zip(TERMS, means, strict=True)))
            state.write_log(folder / LOG)
            state.save(folder / CHECKPOINT, identity)
            advance(1)
    return f1.eval(), f2.eval()


def learning_rate(config: ConnectConfig, step: int, steps: int) -> float:
    """Cosine decay from `config.learning_rate` at step 0 to zero at step `steps`."""
    return config.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2


class TrainingState:
    """What a step changes: weights, optimizer, random generator and log."""

    def __init__(self, projectors: nn.ModuleList, config: ConnectConfig) -> None:
        self.config = config
        self.projectors = projectors.train()
        self.optimizer = torch.optim.AdamW(
            projectors.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        device = next(projectors.parameters()).device
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.log: list[dict[str, Any]] = []

    def step(self, data: TrainingData, rows: Tensor, rate: float) -> Tensor:
        """One optimizer step on the items `rows`; gives the terms, in the order of TERMS."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        f1, f2 = self.projectors
        terms = objective(
            self._project(f1, data.bridge1, data.pseudo1, rows),
            self._project(f2, data.bridge2, data.pseudo2, rows),
            self.config,
        )
        self.optimizer.zero_grad()
        torch.autograd.backward(terms["loss"])
        self.optimizer.step()
        return torch.stack([terms[name].detach() for name in TERMS])

    def _project(
        self, head: nn.Module, bridge: Tensor, pseudo: Tensor | None, rows: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """f(b̃) and f(ã), normalised, each (batch, joint)."""
        noisy = [
            perturb(block[rows], self.config.noise_variance, self.generator)
            for block in (bridge, pseudo)
            if block is not None
        ]
        # Both modalities in one batch: BatchNorm must not tell them apart, for at inference
        # it has one mean for both.
        joint = F.normalize(head(torch.cat(noisy)), dim=1)  # (1 or 2 · batch, joint)
        if pseudo is None:
            return joint, None
        return joint[: len(rows)], joint[len(rows) :]

    def write_log(self, path: Path) -> None:
        """Write the log as JSON lines, whole or not at all."""
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.log))

    def save(self, path: Path, identity: str) -> None:
        """Write the state, whole or not at all."""
        state = {
            "identity": identity,
            "projectors": self.projectors.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "log": self.log,
        }
        with replacing(path) as unfinished:
            torch.save(state, unfinished)

    def restore(self, path: Path, identity: str) -> None:
        """Take up the state in `path` if it is there and of `identity`; else stay at the start.

        Raises StoreError for a file that is not a checkpoint.
        """
        if not path.exists():
            return
        device = next(self.projectors.parameters()).device
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            raise StoreError(
                "the checkpoint is damaged", where=path, cure="delete it to train from the start"
            ) from error
        if state["identity"] != identity:
            return
        self.projectors.load_state_dict(state["projectors"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.log = state["log"]
