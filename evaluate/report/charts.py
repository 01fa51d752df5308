"""Charts as SVG that takes its colours from the page, so that it follows light and dark.

    loss_charts(read_training(log))                   # a chart a term
    joint_space_charts((speech, photos))              # before and after, as in joint_space.py

Each is small enough for a phone, where they stand below one another.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from cmcr.evaluate.figures.joint_space import Cloud, darker, label_classes, maps, sample, scatter
from cmcr.evaluate.figures.style import FAINT, INK, PALETTE, RULE, plain_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAPER = "#ffffff"
_NOT_DRAWN = ("epoch", "step")
_SIZE = (3.5, 2.3)  # inches; 72 units of the SVG each
_SQUARE = (4.6, 4.6)


@dataclass(frozen=True)
class Chart:
    """An SVG element, and what stands above it."""

    title: str
    svg: Markup


def loss_charts(rows: Sequence[Mapping[str, float]]) -> list[Chart]:
    """The loss, each of its terms that is used, the validation and the learning rate."""
    from matplotlib.ticker import MaxNLocator

    charts = []
    names = [name for name in rows[0] if name not in _NOT_DRAWN] if rows else []
    names = [name for name in names if any(row.get(name) for row in rows)]
    names.sort(key=lambda name: name == "lr")  # last
    for place, name in enumerate(names):
        drawn = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
        epochs, values = zip(*drawn, strict=True)
        figure, axes = _new(_SIZE)
        colour = PALETTE[place % len(PALETTE)]
        axes.plot(epochs, values, color=colour, linewidth=1.8, solid_capstyle="round")
        axes.plot(epochs[-1:], values[-1:], "o", color=colour, markersize=4.5, clip_on=False)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.set_xlabel("epoch", color=FAINT)
        if min(values) >= 0:
            axes.set_ylim(0, max(values) * 1.06 or 1)
        title = "learning rate" if name == "lr" else name.replace("_", " ")
        alt = (
            f"{title}: {values[0]:.3g} in epoch {epochs[0]:g}, {values[-1]:.3g} in epoch "
            f"{epochs[-1]:g}, least {min(values):.3g}, most {max(values):.3g}"
        )
        charts.append(Chart(f"{title}: {values[-1]:.3g}", _svg(figure, alt)))
    return charts


def joint_space_charts(clouds: tuple[Cloud, Cloud]) -> list[Chart]:
    """Two modalities in two dimensions, before and after they were connected."""
    clouds, classes = sample(clouds)
    charts = []
    for panel in maps(clouds):
        figure, axes = _new(_SQUARE)
        scatter(axes, panel, classes)
        label_classes(axes, panel, classes)
        axes.set_axis_off()
        shown = " and ".join(f"{len(cloud.after)} {cloud.modality}" for cloud in panel.clouds)
        alt = f"Map of {shown} items {panel.heading} connecting, {panel.explanation}" + (
            f"; classes {', '.join(classes)}" if classes else ""
        )
        charts.append(
            Chart(f"{panel.heading.capitalize()}, {panel.explanation}", _svg(figure, alt))
        )
    return charts


def line_chart(
    x: np.ndarray, y: np.ndarray, names: tuple[str, str], title: str, style: Mapping[str, Any]
) -> Chart:
    """`y` over `x`, both in 0..1, `names` at the axes."""
    figure, axes = _new((_SIZE[0] * 1.2, _SIZE[1] * 1.3))
    axes.plot(x, y, color=PALETTE[1], linewidth=2.2, **style)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_xlabel(names[0], color=FAINT)
    axes.set_ylabel(names[1], color=FAINT)
    at = np.linspace(0, len(x) - 1, min(len(x), 5)).astype(int)
    alt = ", ".join(f"{names[1]} {y[i]:.2f} at {names[0]} {x[i]:.2f}" for i in at)
    return Chart(title, _svg(figure, f"{title}: {alt}"))


def bar_chart(values: Mapping[str, float], strong: str, title: str) -> Chart:
    """A bar for each of `values`, by name; the one named `strong` stands out."""
    figure, axes = _new((_SIZE[0], 0.5 + 0.3 * len(values)))
    names = list(values)
    colours = [PALETTE[1] if name == strong else RULE for name in names]
    bars = axes.barh(range(len(names)), list(values.values()), color=colours, height=0.7)
    axes.bar_label(bars, [f" {value:.3f}" for value in values.values()], color=INK, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlim(0, (max(values.values()) * 1.25) or 1)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    alt = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
    return Chart(title, _svg(figure, f"{title}: {alt}"))


def _new(size: tuple[float, float]) -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    plain_axes(axes)
    return figure, axes


def _svg(figure: "Figure", alt: str) -> Markup:
    """The figure as an element of the page: colours by name, text as text, ids of its own."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called "$5"
    file = io.StringIO()
    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "cmcr"}):
        figure.savefig(file, format="svg", transparent=True, metadata=none)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="0 0 (\S+) ', svg)
    svg = re.sub(r"<svg[^>]*?(viewBox=\"[^\"]*\")[^>]*>", r"<svg \1 @>", svg, count=1)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    own = f"c{sha256((alt + svg).encode()).hexdigest()[:10]}"
    used = set(re.findall(r"""href="#([^"]+)"|url\(#([^)]+)\)""", svg))
    kept = {name for names in used for name in names if name}
    svg = re.sub(
        r' id="([^"]+)"', lambda found: f' id="{own}-{found[1]}"' if found[1] in kept else "", svg
    )
    svg = re.sub(r'(?:xlink:)?href="#', f'href="#{own}-', svg).replace("url(#", f"url(#{own}-")
    svg = re.sub(r"'?DejaVu Sans[^;\"]*", "system-ui, sans-serif", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    width = float(size[1]) if size else 0
    label = f'role="img" aria-label="{escape(alt)}" style="max-width:{1.6 * width:.0f}px"'
    return Markup(svg.replace("@", label, 1))


def _hex(colour: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


_COLOURS = {
    **{colour: f"--c{at}" for at, colour in enumerate(PALETTE)},
    **{_hex(darker(colour)): f"--d{at}" for at, colour in enumerate(PALETTE)},
    INK: "--ink",
    FAINT: "--faint",
    RULE: "--rule",
    "#d0d0d0": "--rule",
    PAPER: "--paper",
}
