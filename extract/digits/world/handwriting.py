"""Real handwriting: scikit-learn's `load_digits`, 1,797 pictures of 8x8 pixels.

    >>> len(pictures("train")), len(pictures("test"))
    (1397, 400)

The collection is the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and
C. Kaynak, UCI, 1998, CC BY 4.0) and comes with scikit-learn. Its order goes through the writers,
so the split is by position, the last 400 for testing: writers are (nearly) never in both.
"""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["train", "test"]

TRAIN = 1397


@dataclass(frozen=True, slots=True)
class Picture:
    """One handwritten digit, light on dark: `pixels` is (8, 8) uint8, `index` its place."""

    index: int
    pixels: np.ndarray
    digit: int

    def png(self) -> bytes:
        """The picture as a grey PNG file, stored: its bytes hang on no version of zlib."""
        file = io.BytesIO()
        Image.fromarray(self.pixels).save(file, format="PNG", compress_level=0)
        return file.getvalue()


def pictures(split: Split) -> list[Picture]:
    """One part of the collection, in its own order."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), from 0..16
    chosen = range(TRAIN) if split == "train" else range(TRAIN, len(pixels))
    return [Picture(index, pixels[index], int(digits.target[index])) for index in chosen]
