"""Pictures of a connection, drawn without global state and the same in every run.

    draw_training(read_training(connection / "training.jsonl"), folder / "training.png")
    draw_precision(curves, folder / "precision.png")

evaluate/joint_space.py draws the embeddings themselves.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cmcr.errors import StoreError
from cmcr.evaluate.metrics import RECALL_LEVELS
from cmcr.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, RULE = "#222222", "#767676", "#e3e3e3"
# Paul Tol's muted scheme, told apart with every common colour blindness, and three of his others.
PALETTE = (
    "#332288", "#cc6677", "#117733", "#88ccee", "#ddaa33", "#882255",
    "#44aa99", "#aa4499", "#999933", "#ee7733", "#0077bb", "#555555",
)  # fmt: skip

_NOT_A_LOSS = ("epoch", "step", "lr")


@dataclass(frozen=True)
class Curve:
    """The precision of one model at `RECALL_LEVELS`, in one direction."""

    direction: str
    model: str
    precision: np.ndarray  # (levels,)
    mean_average_precision: float


def read_training(path: Path) -> list[dict[str, float]]:
    """The rows of a training.jsonl. Raises StoreError for a line that is not a JSON object."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [dict(json.loads(line)) for line in lines if line.strip()]
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(
            "the training curves cannot be read",
            where=path,
            cure="train the connection again, or delete the file to evaluate without its picture",
        ) from error


def draw_training(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """The loss, each of its terms and the learning rate over the epochs, one panel each."""
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in rows]
    terms = [name for name in rows[0] if name not in _NOT_A_LOSS]
    names = [*terms, *(["lr"] if "lr" in rows[0] else [])]
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = new_figure(10, 0.9 + 2.5 * down)
    first, last = rows[0]["loss"], rows[-1]["loss"]
    title(
        figure,
        f"Training: the loss went from {first:.3g} to {last:.3g} in {len(rows)} epochs",
        "Mean of each epoch; the number is the last one",
    )
    for place, name in enumerate(names):
        axes = figure.add_subplot(down, across, place + 1)
        values = [row[name] for row in rows]
        colour = FAINT if name == "lr" else PALETTE[place % len(PALETTE)]
        axes.plot(epochs, values, color=colour, linewidth=1.8, solid_capstyle="round")
        axes.plot(epochs[-1:], values[-1:], "o", color=colour, markersize=4.5, clip_on=False)
        label = "learning rate" if name == "lr" else name.replace("_", " ")
        plain_axes(axes)
        axes.set_title(label, loc="left", fontsize=11, color=INK, fontweight="bold")
        if name != "lr":
            axes.set_title(f"{values[-1]:.3g}", loc="right", fontsize=11, color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
        if min(values) >= 0:
            axes.set_ylim(0, max(values) * 1.06 or 1)
        if place + across >= len(names):
            axes.set_xlabel("epoch", color=FAINT)
    save(figure, path)


def draw_precision(curves: Sequence[Curve], path: Path) -> None:
    """Precision over recall, a panel a direction; the last model of each is drawn strongest."""
    directions = list(dict.fromkeys(curve.direction for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    figure = new_figure(10, 4.6 + 0.25 * -(-len(models) // 2))
    title(
        figure,
        f"Precision of {models[-1]} beside the closed forms and chance",
        "Mean over the queries at each share of the matches found; the area is the mAP",
    )
    for place, direction in enumerate(directions):
        axes = figure.add_subplot(1, len(directions), place + 1)
        drawn = [curve for curve in curves if curve.direction == direction]
        for curve in sorted(drawn, key=lambda curve: -curve.mean_average_precision):
            axes.plot(
                RECALL_LEVELS,
                curve.precision,
                label=f"{curve.model}  {curve.mean_average_precision:.3f}",
                **line_style(curve.model, models),
            )
        plain_axes(axes)
        axes.set(xlim=(0, 1), ylim=(0, 1.005))
        axes.set_title(direction, loc="left", fontsize=11, color=INK, fontweight="bold")
        axes.set_xlabel("recall", color=FAINT)
        if place == 0:
            axes.set_ylabel("precision", color=FAINT)
        axes.legend(
            ncols=2,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.17),
            frameon=False,
            title="model and its mAP",
            title_fontproperties={"size": 9},
            fontsize=9.5,
        )
    save(figure, path)


def line_style(model: str, models: Sequence[str]) -> dict[str, Any]:
    """How the line of a model looks: chance dotted, the last of `models` strongest."""
    if model == "chance":
        return {"color": FAINT, "linewidth": 1.2, "linestyle": (0, (2, 2))}
    if model == models[-1]:
        return {"color": PALETTE[1], "linewidth": 2.8, "zorder": 3}
    others = [PALETTE[at] for at in (0, 3, 2, 4, 6, 7)]
    return {"color": others[models.index(model) % len(others)], "linewidth": 1.4}


def new_figure(width: float, height: float) -> "Figure":
    """An empty white figure of so many inches, with a canvas of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    below_title = (0, 0, 1, 1 - 0.62 / height)
    figure.set_layout_engine(
        "constrained", rect=below_title, w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.06
    )
    FigureCanvasAgg(figure)
    return figure


def title(figure: "Figure", what: str, how: str) -> None:
    """What is seen, and below it how to read it."""
    inch = 1 / figure.get_figheight()
    figure.text(
        0.014, 1 - 0.14 * inch, what, va="top", fontsize=14, color=INK, fontweight="bold"
    )  # fmt: skip
    figure.text(0.014, 1 - 0.42 * inch, how, va="top", fontsize=10, color=FAINT)


def plain_axes(axes: "Axes") -> None:
    """Only horizontal rules and the numbers beside them."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelsize=9.5, labelcolor=FAINT)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)


def save(figure: "Figure", path: Path) -> None:
    """Write the PNG, whole or not at all, with nothing in it that changes from run to run."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=200, metadata={"Software": None})
