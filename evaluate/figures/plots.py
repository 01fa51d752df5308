"""Curves and tables as figures: training, precision, success, precision over recall, confusion.

    draw_training(read_training(connection / "training.jsonl"), folder / "training.png")
    draw_success(thresholds, rates, areas, "c-mcr", folder / "success.png")
    draw_precision_recall(curves, areas, "c-mcr", folder / "precision-recall.png")

A model's name is the key of each mapping; the connection's, `model`, is drawn strongest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmcr.evaluate.figures.style import (
    FAINT,
    INK,
    PALETTE,
    RULE,
    line_style,
    new_figure,
    plain_axes,
    save,
    title,
)
from cmcr.evaluate.ranking.metrics import RECALL_LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NOT_A_LOSS = ("epoch", "step", "lr")


@dataclass(frozen=True)
class RetrievalCurve:
    """The precision of one model at `RECALL_LEVELS`, in one direction."""

    direction: str
    model: str
    precision: np.ndarray  # (levels,)
    mean_average_precision: float


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


def draw_precision(curves: Sequence[RetrievalCurve], model: str, path: Path) -> None:
    """Precision over recall, a panel a direction; `model` is drawn strongest."""
    directions = list(dict.fromkeys(curve.direction for curve in curves))
    models = list(dict.fromkeys(curve.model for curve in curves))
    figure = new_figure(10, 4.6 + 0.25 * -(-len(models) // 2))
    title(
        figure,
        f"Precision of {model} beside the closed forms and chance",
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
                **line_style(curve.model, models, model),
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


MOST_CLASSES = 40  # of a confusion figure
_NUMBERED = 15  # up to so many classes the cells have room for a number


def draw_success(
    thresholds: np.ndarray,
    rates: Mapping[str, np.ndarray],
    areas: Mapping[str, float],
    model: str,
    path: Path,
) -> None:
    """The share of sounds that each model locates, over the cIoU that is asked for."""
    figure = new_figure(8, 5)
    title(
        figure,
        f"{model} locates {rates[model][len(thresholds) // 2]:.1%} of the sounds at a cIoU of 0.5",
        "Share of the sounds whose region reaches a cIoU with the annotation; the area is the AUC",
    )
    axes = figure.add_subplot()
    axes.axvline(0.5, color=RULE, linewidth=1.2, zorder=0)
    names = list(rates)
    for name in sorted(names, key=lambda name: -areas[name]):
        axes.plot(
            thresholds, rates[name], label=_label(name, areas), **line_style(name, names, model)
        )
    plain_axes(axes)
    axes.set(xlim=(0, 1), ylim=(0, 1.005))
    axes.set_xlabel("cIoU asked for", color=FAINT)
    axes.set_ylabel("success rate", color=FAINT)
    _legend(axes, "model and its AUC")
    save(figure, path)


def draw_precision_recall(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    areas: Mapping[str, float],
    model: str,
    path: Path,
) -> None:
    """Precision over recall of each model: `curves` are (recall, precision), ascending in recall.

    A model that is equally sure of every pair is a dot.
    """
    figure = new_figure(8, 5)
    title(
        figure,
        f"{model} tells seen sounds from silent ones with an AP of {areas[model]:.3f}",
        "Precision over recall as less confidence is asked for; a dot answers every pair alike",
    )
    axes = figure.add_subplot()
    names = list(curves)
    for name in sorted(names, key=lambda name: -areas[name]):
        recall, precision = curves[name]
        style = line_style(name, names, model)
        if len(recall) == 1:
            style |= {"marker": "o", "linestyle": ""}
        axes.plot(recall, precision, label=_label(name, areas), **style)
    plain_axes(axes)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_xlabel("recall", color=FAINT)
    axes.set_ylabel("precision", color=FAINT)
    _legend(axes, "model and its AP")
    save(figure, path)


def draw_confusion(counts: np.ndarray, classes: Sequence[str], model: str, path: Path) -> None:
    """What items of each class (row) are taken for (column), as shares of the row.

    Of more than `MOST_CLASSES` classes, those with the most mistakes are shown.
    """
    items = counts.sum(axis=1)  # (classes,)
    wrong = items - np.diag(counts)
    shown = np.arange(len(classes))
    if len(classes) > MOST_CLASSES:
        shown = np.sort(np.argsort(-wrong, kind="stable")[:MOST_CLASSES])
    shares = counts[np.ix_(shown, shown)] / np.maximum(items[shown], 1)[:, None]
    side = 3.2 + 0.2 * len(shown)
    figure = new_figure(max(side, 6.5), max(side, 6.5))
    title(
        figure,
        f"{model} names {np.trace(counts) / counts.sum():.1%} of the items rightly",
        "Each row is a class, each column what its items are taken for, in shares of the row"
        + (f": the {MOST_CLASSES} worst" if len(shown) < len(classes) else ""),
    )
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [classes[at] for at in shown]
    axes.set_xticks(range(len(shown)), names, rotation=90 if len(shown) > _NUMBERED else 45)
    axes.set_yticks(range(len(shown)), names)
    axes.tick_params(length=0, labelsize=8.5, labelcolor=INK)
    axes.set_xlabel("taken for", color=FAINT)
    axes.set_ylabel("is", color=FAINT)
    for spine in axes.spines.values():
        spine.set_color(RULE)
    if len(shown) <= _NUMBERED:
        for row, column in np.argwhere(shares >= 0.005):
            axes.text(
                column, row, f"{100 * shares[row, column]:.0f}", ha="center", va="center",
                fontsize=8.5, color="white" if shares[row, column] > 0.5 else INK,
            )  # fmt: skip
    save(figure, path)


def _label(model: str, areas: Mapping[str, float]) -> str:
    return f"{model}  {areas[model]:.3f}"


def _legend(axes: "Axes", heading: str) -> None:
    axes.legend(
        ncols=1,
        loc="center left",
        bbox_to_anchor=(1.02, 0.5),
        frameon=False,
        title=heading,
        title_fontproperties={"size": 9},
        fontsize=9.5,
        alignment="left",
    )
