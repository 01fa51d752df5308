"""What a training run was like, epoch by epoch: in its file, in the terminal, for TensorBoard.

write_training(folder / TRAINING_LOG, rows)      # read_training(path) gives them back
with Curves(folder, epochs=36, log=[], tensorboard=True) as curves:
    curves.show({"epoch": 1, "loss": 3.2, "validation_mrr": 0.4})
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cmcr.connect.distributed import rank
from cmcr.errors import StoreError, UsageError
from cmcr.files import write_text
from cmcr.progress import progress

TRAINING_LOG = "training.jsonl"
EVENTS = "tensorboard"
SHADES = "▁▂▃▄▅▆▇█"


def write_training(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a row a line, whole or not at all; of several processes the first does it."""
    if rank() == 0:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_training(path: Path) -> list[dict[str, float]]:
    """The rows of a training.jsonl. Raises StoreError for a line that is not a JSON object."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            "the training curves cannot be read",
            where=path,
            fix="train the connection again, or delete the file to evaluate without its picture",
        ) from error


class Curves:
    """Shows a row of the log at the end of each epoch."""

    def __init__(
        self, folder: Path, epochs: int, log: list[dict[str, Any]], tensorboard: bool
    ) -> None:
        """`log` has the epochs before. Raises UsageError when TensorBoard is not installed."""
        self.epochs = epochs
        self.log = list(log)
        self.stack = ExitStack()
        self.events = _events(folder / EVENTS) if tensorboard and rank() == 0 else None

    def __enter__(self) -> "Curves":
        self.advance = self.stack.enter_context(progress("train", self.epochs, "epochs"))
        self.advance(len(self.log))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()
        if self.events is not None:
            self.events.close()

    def show(self, row: dict[str, Any]) -> None:
        """Add the row of one more epoch."""
        self.log.append(row)
        note = f"loss {row['loss']:.3f} {sparkline([one['loss'] for one in self.log])}"
        validated = [one["validation_mrr"] for one in self.log if "validation_mrr" in one]
        if validated:
            note += f"  validation {validated[-1]:.3f} {sparkline(validated)}"
        self.advance(1, note)
        if self.events is not None:
            for name in row.keys() - {"epoch", "step"}:
                self.events.add_scalar(name, row[name], row["step"])
            self.events.flush()


def sparkline(values: list[float], width: int = 8) -> str:
    """The last `width` values as bars, the least of them lowest."""
    shown = values[-width:]
    low, span = min(shown), (max(shown) - min(shown)) or 1.0
    return "".join(SHADES[round((value - low) / span * (len(SHADES) - 1))] for value in shown)


def _events(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError(
            "TensorBoard is not installed", fix="pip install tensorboard, or leave --tensorboard"
        ) from None
    return SummaryWriter(str(folder))
