"""How figures look, drawn without global state and the same in every run.

figure = new_figure(8, 5)
title(figure, "What is seen", "How to read it")
save(figure, path)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

DPI = 200


def line_style(model: str, models: Sequence[str], connection: str) -> dict[str, Any]:
    """How the line of one of `models` looks: chance dotted, the `connection` strongest."""
    if model == "chance":
        return {"color": FAINT, "linewidth": 1.2, "linestyle": (0, (2, 2))}
    if model == connection:
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


Later = dict[Path, Callable[[], None]]
_LATER: ContextVar[Later | None] = ContextVar("later", default=None)


@contextmanager
def saved_later() -> Iterator[Later]:
    """Pictures of this block are gathered here by their paths, and saved by calling each."""
    later: Later = {}
    before = _LATER.set(later)
    try:
        yield later
    finally:
        _LATER.reset(before)


def save(figure: "Figure", path: Path) -> None:
    """Write the PNG, whole or not at all, with nothing in it that changes from run to run.

    A label is shown as it is: what is between dollar signs is no mathematics.
    """
    if (later := _LATER.get()) is not None:
        later[path] = partial(_save, figure, path)
    else:
        _save(figure, path)


def _save(figure: "Figure", path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text("".join(map(_drawn, text.get_text())))
    with rc_context({"text.parse_math": False}), replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=DPI, metadata={"Software": None})


def _drawn(character: str) -> str:
    """A control character has no picture: fonts have one for what is not known."""
    return (
        character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
    )
