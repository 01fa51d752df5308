"""Regions of pictures as inputs: a picture is decoded once and cut many times.

    known, cut = crop(item)     # the item with its box as columns, the region as a picture

Runs in worker processes, as `decode` does. A picture that cannot be read is one failure, of its
region 0, however many regions of it were asked for.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from cmcr.errors import SourceError
from cmcr.extract.items import Item
from cmcr.extract.media.decode import decode
from cmcr.extract.media.images import refuse_line

if TYPE_CHECKING:
    from PIL.Image import Image


Box = tuple[float, float, float, float]  # x0, y0, x1, y1
PLACES = ("x0", "y0", "x1", "y1")
COLUMNS = ("image", *PLACES)  # of a region's row

# A box with a coordinate of so much is in pixels. In fractions, detectors leave the picture by a
# rounding error or by some percent; in pixels, what ends before 2 is a corner of not even two.
PIXELS = 2.0


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """What several crops share. Equal to itself alone, so that a cache knows it."""

    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop(Item):
    """Region `number` of `picture`: `box` in fractions of its width and height, or in pixels (see
    `PIXELS`).
    """

    picture: Picture
    number: int
    box: Box


class RecordedError(SourceError):
    """The picture cannot be read, which is on record with its region 0."""


def crops(picture: Item, boxes: Iterable[tuple[Box, tuple[str, ...] | None]]) -> Iterator[Crop]:
    """A crop for each of `boxes`, with the label beside it, or the picture's where that is None."""
    shared = Picture(picture)
    for number, (box, label) in enumerate(boxes):
        yield Crop(
            id=f"{picture.id}#{number}",
            uri=picture.uri,
            label=picture.label if label is None else label,
            group=picture.group,
            extra={**picture.extra, "image": picture.id},
            picture=shared,
            number=number,
            box=box,
        )


def crop(item: Crop) -> tuple[Item, "Image"]:
    """The item as it is written, its box clipped to the picture and in fractions; and the region.

    Raises SourceError for a box without area in the picture, with a NaN, or so long that it is a
    line; for region 0 also whatever made the picture unreadable, for the others RecordedError.
    """
    picture = _read(item.picture)
    if isinstance(picture, Exception):
        raise picture if item.number == 0 else RecordedError("the picture cannot be read")
    width, height = picture.size
    x0, y0, x1, y1 = places = _fractions(item.box, width, height)
    left, top = min(round(x0 * width), width - 1), min(round(y0 * height), height - 1)
    right, bottom = max(round(x1 * width), left + 1), max(round(y1 * height), top + 1)
    refuse_line(right - left, bottom - top)
    extra = {**item.extra, **dict(zip(PLACES, places, strict=True))}
    known = Item(item.id, item.uri, label=item.label, group=item.group, extra=extra)
    return known, picture.crop((left, top, right, bottom))


def _fractions(box: Box, width: int, height: int) -> Box:
    shown = ", ".join(f"{place:g}" for place in box)
    if not all(map(math.isfinite, box)):
        raise SourceError(f"a coordinate of the region is no number: {shown}")
    x0, y0, x1, y1 = box
    if max(box) >= PIXELS:
        if x1 - x0 < 1 or y1 - y0 < 1:
            raise SourceError(f"the region is not one pixel wide and high: {shown}")
        x0, y0, x1, y1 = x0 / width, y0 / height, x1 / width, y1 / height
    x0, y0, x1, y1 = (min(max(place, 0.0), 1.0) for place in (x0, y0, x1, y1))
    if x0 >= x1 or y0 >= y1:
        raise SourceError(f"the region has no area in the picture: {shown}")
    return x0, y0, x1, y1


@lru_cache(maxsize=1)
def _read(picture: Picture) -> "Image | Exception":
    """The picture, or why there is none. The crops of a picture follow one another in a batch."""
    try:
        image = decode("image", picture.item)
    except Exception as error:  # decoders raise what they like
        return error
    return image  # type: ignore[return-value]
