"""Handwriting in three dimensions: a digit cut out of a board, turned, and 256 points of it.

    >>> shapes("test")[0].points.shape
    (256, 3)

The ink of an 8x8 picture is enlarged smoothly and cut where it is darker than a fixed share of
its darkest place; the cut is a fifth as thick as the picture is wide. The axes are x to the
right, y up, z towards the one who looks. A shape is turned by up to 60 degrees about the vertical
axis, tilted by up to 20 and rolled by up to 15: never so far that it is seen from behind, where a
digit is its own mirror image, nor upside down, where a 6 is a 9.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from cmcr.extract.digits.world import handwriting
from cmcr.extract.digits.world.handwriting import Split

POINTS = 256

ENLARGED = 32  # cells a side
CUT = 0.4  # of the darkest place
THICKNESS = 0.2  # of the width
TURN = np.radians([60, 20, 15])  # at most: about the vertical, the horizontal, the line of sight
SEED = 20230525


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of picture `index` of the handwriting: `points` is (256, 3) float32."""

    index: int
    points: np.ndarray
    digit: int

    def npy(self) -> bytes:
        """The points as an .npy file."""
        file = io.BytesIO()
        np.save(file, self.points)
        return file.getvalue()


@cache
def shapes(split: Split) -> tuple[Shape, ...]:
    """A shape of each picture of one split, the same every time."""
    found = []
    for picture in handwriting.pictures(split):
        rng = np.random.default_rng([SEED, picture.index])
        points = turned(extruded(picture.pixels, rng), rng)
        found.append(Shape(picture.index, points, picture.digit))
    return tuple(found)


def extruded(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Points drawn evenly from the solid over `ink` (8, 8): (256, 3) within a cube of side 2."""
    fine = np.asarray(
        Image.fromarray(ink.astype(np.float32)).resize(
            (ENLARGED, ENLARGED), Image.Resampling.BICUBIC
        )
    )  # (32, 32)
    row, column = np.nonzero(fine > CUT * fine.max())
    chosen = rng.integers(len(row), size=POINTS)
    place = rng.random((POINTS, 3))  # within the cell, and between back and front
    x = (column[chosen] + place[:, 0]) * (2 / ENLARGED) - 1
    y = 1 - (row[chosen] + place[:, 1]) * (2 / ENLARGED)
    z = (2 * place[:, 2] - 1) * THICKNESS
    points: np.ndarray = np.stack([x, y, z], axis=1).astype(np.float32)  # (POINTS, 3)
    return points


def turned(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`points` (n, 3) turned at random within `TURN`."""
    yaw, pitch, roll = rng.uniform(-TURN, TURN)
    vertical = _rotation(yaw, 2, 0)
    horizontal = _rotation(pitch, 1, 2)
    sight = _rotation(roll, 0, 1)
    result: np.ndarray = (points @ (sight @ horizontal @ vertical).T).astype(np.float32)
    return result


def _rotation(angle: float, first: int, second: int) -> np.ndarray:
    """(3, 3): a turn by `angle` radians that takes axis `first` towards axis `second`."""
    matrix = np.eye(3)
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix
