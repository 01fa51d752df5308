"""A map of two modalities before and after they were connected, in two dimensions.

    draw_joint_space((speech, handwriting), folder / "joint-space.png")   # two `Cloud`s

Colour is the class, the marker is the modality. The map shows what a search sees, the cosines
between the modalities: cosines within one are so much higher that a map of the bare vectors is
two sets of islands, however well one finds the other. Where the two spaces have different dims
there are no such cosines before, and each space has a map of its own.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from cmcr.connect import JointSpace
from cmcr.evaluate.figures.style import FAINT, INK, PALETTE, new_figure, save, title
from cmcr.evaluate.inputs.items import Items
from cmcr.evaluate.ranking.matches import first_labels
from cmcr.typed import typed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


LEAST_POINTS = 8

_MOST_POINTS = 400
_MARKERS = {"audio": "o", "image": "s", "pointcloud": "^", "text": "D"}
_OTHER = "P"  # of any other modality
_NEAR = 0.12  # of the map's extent: modalities of a class that are closer share one name
_SLICES = 8
_AXES = 32
_SEED = 0


@dataclass(frozen=True)
class Cloud:
    """Items of one dataset: the class of each, its embedding, and its place in the joint space."""

    space: str
    modality: str
    classes: Sequence[str | None]
    before: np.ndarray  # (items, dim)
    after: np.ndarray  # (items, joint)


def cloud_of(model: JointSpace, items: Items) -> Cloud:
    """Items as they were extracted, and as `model` projects them."""
    after = items.projected(model).numpy()  # (items, joint)
    return Cloud(items.key.space, items.key.modality, first_labels(items.table).to_pylist(),
                 items.embeddings(), after)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One map: the clouds in it, and where their items lie."""

    heading: str
    explanation: str
    clouds: tuple[Cloud, ...]
    points: Sequence[np.ndarray]  # a (items, 2) for each cloud


def draw_joint_space(clouds: tuple[Cloud, Cloud], path: Path) -> None:
    """Draw at most 400 items of each modality, of the twelve classes that they share most of.

    Without a shared class colour is the modality. Needs `LEAST_POINTS` items of each.
    """
    clouds, classes = sample(clouds)
    panels = maps(clouds)
    figure = new_figure(10 if len(panels) == 2 else 13, 6.2 if len(panels) == 2 else 5.6)
    one, other = clouds
    title(
        figure,
        f"{one.modality.capitalize()} and {other.modality}, before and after they were connected",
        f"Near is what finds each other, by t-SNE of {len(one.after)} + {len(other.after)} items"
        + (f" of {len(classes)} classes: colour is the class, the marker the modality"
           if classes else ": colour and marker are the modality"),
    )  # fmt: skip
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        scatter(axes, panel, classes)
        label_classes(axes, panel, classes)
        axes.set_title(panel.heading, loc="left", fontsize=11, color=INK, fontweight="bold")
        axes.set_xlabel(panel.explanation, loc="left", fontsize=9.5, color=FAINT)
    _legend(figure, clouds, coloured=not classes)
    save(figure, path)


def sample(clouds: tuple[Cloud, Cloud]) -> tuple[tuple[Cloud, Cloud], list[str]]:
    """The items that are drawn, and the classes that colours stand for."""
    classes = _shared_classes(clouds)
    return (_sample(clouds[0], classes), _sample(clouds[1], classes)), classes


def maps(clouds: tuple[Cloud, Cloud]) -> list[Panel]:
    """The map, or the two, before the clouds were connected, and the one after."""
    return [*_before(clouds), _after(clouds)]


@typed
def embed_2d(vectors: Float[np.ndarray, "items dim"]) -> Float[np.ndarray, "items 2"]:
    """t-SNE (van der Maaten, Hinton 2008) from a PCA start, with a fixed seed.

    On one thread, so that sums have one order and the map is the same in every run. Vectors that
    are all the same, of a connection that collapsed, are one point.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if np.allclose(vectors, vectors[0]):
        return np.zeros((len(vectors), 2), np.float32)
    tsne = TSNE(
        perplexity=min(30.0, (len(vectors) - 1) / 3),
        init="pca",
        learning_rate="auto",
        random_state=_SEED,
    )
    with threadpool_limits(1):
        points: np.ndarray = tsne.fit_transform(vectors.astype(np.float32))  # (items, 2)
    return points


@typed
def map_together(
    one: Float[np.ndarray, "items dim"], other: Float[np.ndarray, "others dim"]
) -> tuple[Float[np.ndarray, "items 2"], Float[np.ndarray, "others 2"]]:
    """A common map of two sets of unit vectors by the cosines between them, and by those alone.

    The cosines C, centred, are U S Vᵀ. The rows of U √S and V √S have C as their inner products:
    where an item of one set scores high with one of the other, they point the same way.
    """
    left, right = (x.astype(np.float32) - x.mean(axis=0, dtype=np.float32) for x in (one, other))
    u, s, vt = np.linalg.svd(left @ right.T, full_matrices=False)
    scale = np.sqrt(s[:_AXES])  # (axes,)
    sides = (u[:, :_AXES] * scale, vt[:_AXES].T * scale)  # (items, axes), (others, axes)
    units = [side / (np.linalg.norm(side, axis=1, keepdims=True) + 1e-12) for side in sides]
    points = embed_2d(np.concatenate(units))  # (items + others, 2)
    return points[: len(one)], points[len(one) :]


def _before(clouds: tuple[Cloud, Cloud]) -> list[Panel]:
    one, other = clouds
    if one.before.shape[1] == other.before.shape[1]:
        explanation = f"by the cosines of {_name(one)} and {_name(other)} as extracted"
        return [Panel("before", explanation, clouds, map_together(one.before, other.before))]
    return [
        Panel(
            f"before: {cloud.modality}",
            f"{_name(cloud)} alone, as extracted: {cloud.before.shape[1]} dims",
            (cloud,),
            [embed_2d(cloud.before)],
        )
        for cloud in clouds
    ]


def _after(clouds: tuple[Cloud, Cloud]) -> Panel:
    points = map_together(clouds[0].after, clouds[1].after)
    return Panel("after", "by their cosines in the joint space", clouds, points)


def _name(cloud: Cloud) -> str:
    return f"{cloud.space} {cloud.modality}"


def _shared_classes(clouds: tuple[Cloud, Cloud]) -> list[str]:
    one, other = (Counter(name for name in cloud.classes if name) for cloud in clouds)
    both = sorted(one.keys() & other.keys(), key=lambda name: -min(one[name], other[name]))
    return sorted(both[: len(PALETTE)])


def _sample(cloud: Cloud, classes: Sequence[str]) -> Cloud:
    wanted = set(classes)
    rows = np.array([at for at, name in enumerate(cloud.classes) if not wanted or name in wanted])
    if len(rows) > _MOST_POINTS:
        rows = np.sort(np.random.default_rng(_SEED).choice(rows, _MOST_POINTS, replace=False))
    return Cloud(
        cloud.space,
        cloud.modality,
        [cloud.classes[row] for row in rows],
        cloud.before[rows],
        cloud.after[rows],
    )


def _colour(cloud: Cloud, name: str | None, classes: Sequence[str]) -> str:
    if classes and name is not None:
        return PALETTE[classes.index(name)]
    return PALETTE[[*_MARKERS, cloud.modality].index(cloud.modality)]


def scatter(axes: "Axes", panel: Panel, classes: Sequence[str]) -> None:
    """Draw the clouds a slice of each at a time, so that neither covers the other."""
    for start in range(_SLICES):
        for cloud, points in zip(panel.clouds, panel.points, strict=True):
            axes.scatter(
                points[start::_SLICES, 0],
                points[start::_SLICES, 1],
                c=[_colour(cloud, name, classes) for name in cloud.classes[start::_SLICES]],
                marker=_MARKERS.get(cloud.modality, _OTHER),
                s=24,
                alpha=0.85,
                edgecolors="white",
                linewidths=0.5,
            )
    axes.set(xticks=[], yticks=[])
    axes.margins(0.09)
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_color("#d0d0d0")


def label_classes(axes: "Axes", panel: Panel, classes: Sequence[str]) -> None:
    """Name each class above its items: once where its modalities lie together, else at each."""
    from matplotlib.patheffects import withStroke

    extent = np.ptp(np.concatenate(panel.points), axis=0).max()
    for at, name in enumerate(classes):
        groups = [
            points[[other == name for other in cloud.classes]]
            for cloud, points in zip(panel.clouds, panel.points, strict=True)
            if name in cloud.classes
        ]
        centres = [np.median(group, axis=0) for group in groups]
        if np.ptp(centres, axis=0).max() < _NEAR * extent:
            groups = [np.concatenate(groups)]
        for group in groups:
            axes.annotate(
                name,
                (np.median(group[:, 0]), np.quantile(group[:, 1], 0.9)),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=11,
                fontweight="bold",
                color=darker(PALETTE[at]),
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )


def darker(colour: str) -> tuple[float, float, float]:
    """The colour `#rrggbb` for a class's name, which is thinner than its marks."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return 0.7 * red, 0.7 * green, 0.7 * blue


def _legend(figure: "Figure", clouds: tuple[Cloud, Cloud], *, coloured: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], linestyle="", marker=_MARKERS.get(cloud.modality, _OTHER), markersize=7,
            label=_name(cloud),
            color=_colour(cloud, None, []) if coloured else FAINT,
        )
        for cloud in clouds
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=10)
