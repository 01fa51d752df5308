"""Pictures: what Pillow opens, as 8-bit, with what would break or mislead an encoder refused.

    picture = read_image(file)

Not turned by the EXIF orientation: neither open_clip's loader nor the published CLIP evaluations
do so, and a picture must get the embedding that they give it. Of an animation the first frame.
"""

import warnings
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cmcr.errors import SourceError

if TYPE_CHECKING:
    from PIL.Image import Image


# Pillow opens more, and hands some of it (EPS) to other programs.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_STRETCHED = 200  # longer by shorter side; resizing the shorter to 224 gives 10 million pixels
_HEIF_BRANDS = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"])


def read_image(file: BinaryIO) -> "Image":
    """The picture in `file`, loaded, in a mode that `.convert("RGB")` takes without loss.

    16-bit grey is scaled to 8 bit, as Pillow itself does with 16-bit colour. Pixels are decoded
    only after the header's size was found bearable (89 million pixels, Pillow's own bound).

    Raises UnidentifiedImageError, DecompressionBombWarning, DecompressionBombError, OSError
    (cut short), SourceError or another error of Pillow's for what cannot be used.
    """
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise UnidentifiedImageError(_what_it_is(file)) from None
        refuse_line(*image.size)
        image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bit(image)
    # Encoders convert a palette to RGB without its transparency, about which Pillow would warn.
    if image.mode == "P":
        image.info.pop("transparency", None)
    return image


def refuse_line(width: int, height: int) -> None:
    """Raises SourceError for sides that differ too much, in pixels."""
    shorter, longer = sorted([width, height])
    if longer > MOST_STRETCHED * shorter:
        raise SourceError(f"{width} x {height} pixels are a line, not a picture")


def _what_it_is(file: BinaryIO) -> str:
    file.seek(0)
    head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "HEIC pictures are not read: save it as JPEG or PNG"
    return f"this cannot be read as a picture ({', '.join(FORMATS)}); it starts {head!r}"


def _eight_bit(image: "Image") -> "Image":
    """Grey of 16 bits scaled to 8: Pillow's own conversion clips it to white."""
    from PIL import Image

    values = np.asarray(image)  # (height, width)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise SourceError(
            f"pixels of mode {image.mode} have no agreed black and white: save it with 8 bits"
        )
    return Image.fromarray((values >> 8).astype(np.uint8))
