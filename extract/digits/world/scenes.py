"""Scenes: two to four handwritten digits on a canvas, and spoken digits that ask where they are.

    >>> scene = scenes()[0]
    >>> scene.pixels.shape, len(scene.shown), len(scene.distractors), len(scene.asked)
    ((96, 128), 3, 6, 4)

Held-out handwriting and held-out voices only. No digit is twice in a scene and no two overlap, so
a spoken digit has one right answer or none. Each scene is asked about two digits that it shows and
two that it does not.

The proposals are the boxes of the digits and distractor windows of random place, width and height.
A distractor covers at most half of any digit's box: one that held a whole digit would look to
digits-clip, which cuts a picture to its ink, just like the box itself.
"""

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from cmcr.extract.digits.world import handwriting, speech

SCENES = 200
WIDTH, HEIGHT = 128, 96
SIDES = (24, 40)  # of a digit's square, in pixels
GAP = 3  # pixels between two digits at least, and around the ink in a digit's box
DISTRACTORS = 6
WINDOWS = (14, 56)  # sides of a distractor window
COVERED = 0.5
ASKED = 2  # digits shown, and as many not shown
SEED = 20240611

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as fractions of width and height
_Pixels = tuple[int, int, int, int]  # the same in pixels


@dataclass(frozen=True, slots=True)
class Question:
    """A clip of a digit, and where it is in the scene; None where it is not."""

    clip: speech.Clip
    box: Box | None


@dataclass(frozen=True, slots=True)
class Scene:
    """`pixels` is (96, 128) uint8, light on dark; `shown` are digits with their boxes."""

    id: str
    pixels: np.ndarray
    shown: tuple[tuple[int, Box], ...]
    distractors: tuple[Box, ...]
    asked: tuple[Question, ...]

    def png(self) -> bytes:
        """The scene as a grey PNG file, stored: its bytes hang on no version of zlib."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, format="PNG", compress_level=0)
        return file.getvalue()


@cache
def scenes() -> tuple[Scene, ...]:
    """All scenes, the same every time."""
    pictures: list[list[handwriting.Picture]] = [[] for _ in range(10)]
    for picture in handwriting.pictures("test"):
        pictures[picture.digit].append(picture)
    clips: list[list[speech.Clip]] = [[] for _ in range(10)]
    for clip in speech.clips("test"):
        clips[clip.digit].append(clip)
    return tuple(_scene(number, pictures, clips) for number in range(SCENES))


def _scene(
    number: int, pictures: list[list[handwriting.Picture]], clips: list[list[speech.Clip]]
) -> Scene:
    rng = np.random.default_rng([SEED, number])
    digits = rng.permutation(10).tolist()
    count = int(rng.integers(2, 5))
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    boxes: list[_Pixels] = []
    for digit in digits[:count]:
        boxes.append(_draw(canvas, boxes, pictures[digit], rng))
    shown = {digit: _fractions(box) for digit, box in zip(digits, boxes, strict=False)}
    asked = [*digits[:ASKED], *digits[-ASKED:]]
    return Scene(
        id=f"scene-{number:03d}",
        pixels=canvas,
        shown=tuple(shown.items()),
        distractors=tuple(_fractions(_window(boxes, rng)) for _ in range(DISTRACTORS)),
        asked=tuple(
            Question(clips[digit][rng.integers(len(clips[digit]))], shown.get(digit))
            for digit in asked
        ),
    )


def _draw(
    canvas: np.ndarray,
    boxes: list[_Pixels],
    pictures: list[handwriting.Picture],
    rng: np.random.Generator,
) -> _Pixels:
    """Put one of `pictures` where nothing is yet; its box is the ink and a margin."""
    picture = pictures[rng.integers(len(pictures))]
    while True:
        side = int(rng.integers(SIDES[0], SIDES[1] + 1))
        drawn = np.asarray(
            Image.fromarray(picture.pixels).resize((side, side), Image.Resampling.BICUBIC)
        )  # (side, side)
        rows, columns = (np.flatnonzero((drawn > 0).any(axis)) for axis in (1, 0))
        ink = drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        height, width = ink.shape
        left = int(rng.integers(GAP, WIDTH - GAP - width + 1))
        top = int(rng.integers(GAP, HEIGHT - GAP - height + 1))
        box = (left - GAP, top - GAP, left + width + GAP, top + height + GAP)
        if not any(_overlap(box, other) for other in boxes):
            canvas[top : top + height, left : left + width] = ink
            return box


def _window(boxes: list[_Pixels], rng: np.random.Generator) -> _Pixels:
    while True:
        width, height = rng.integers(WINDOWS[0], WINDOWS[1] + 1, size=2).tolist()
        left = int(rng.integers(0, WIDTH - width + 1))
        top = int(rng.integers(0, HEIGHT - height + 1))
        window = (left, top, left + width, top + height)
        if all(_overlap(window, box) <= COVERED * _overlap(box, box) for box in boxes):
            return window


def _overlap(one: _Pixels, other: _Pixels) -> int:
    """The area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def _fractions(box: _Pixels) -> Box:
    left, top, right, bottom = box
    return left / WIDTH, top / HEIGHT, right / WIDTH, bottom / HEIGHT
