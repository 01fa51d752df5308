"""Boxes on a grid of 224 × 224 cells, and how well one covers where a sound is heard.

    consensus_iou(regions, heard, consensus=1)     # (regions,) cIoU of each region, filled

Boxes are (boxes, 4) rows of x0, y0, x1, y1 in fractions of the picture's width and height. A cell
belongs to a box from ⌊224·x0⌋ up to and without ⌊224·x1⌋, as in the evaluation code of LVS and of
SLAVC, so numbers compare with theirs.
"""

import numpy as np
from jaxtyping import Float, Int

from cmcr.typed import typed

GRID = 224
CENTRE = np.array([[-1.0, -1.0, 1.0, 1.0]]) * np.sqrt(1 / 8) + 0.5  # half of the picture's area


@typed
def truth_map(boxes: Float[np.ndarray, "boxes 4"], consensus: int) -> Float[np.ndarray, "224 224"]:
    """Where a sound is heard, by row and column: min(boxes over the cell / `consensus`, 1).

    `consensus` is how many annotators must agree for a full 1: 2 for Flickr-SoundNet (Senocak et
    al., CVPR 2018), 1 for VGG-SS (Chen et al., CVPR 2021), where it makes the union of the boxes.
    """
    over = np.zeros((GRID, GRID))
    for x0, y0, x1, y1 in _cells(boxes):
        over[y0:y1, x0:x1] += 1
    return np.minimum(over / consensus, 1)


@typed
def consensus_iou(
    regions: Float[np.ndarray, "regions 4"], heard: Float[np.ndarray, "boxes 4"], consensus: int
) -> Float[np.ndarray, " regions"]:
    """cIoU = Σ p·g / (Σ g + Σ p·[g = 0]) of each region p, filled, with the truth map g.

    Consensus intersection over union, Senocak et al., CVPR 2018. It is 0 where neither covers a
    cell.
    """
    truth = truth_map(heard, consensus)
    covered = _sums(truth, regions)  # (regions,)
    beside = _sums(truth == 0, regions)  # (regions,)
    union = truth.sum() + beside
    return np.divide(covered, union, out=np.zeros(len(regions)), where=union > 0)


def _cells(boxes: np.ndarray) -> Int[np.ndarray, "boxes 4"]:
    cells: np.ndarray = np.floor(np.clip(boxes, 0, 1) * GRID).astype(int)
    return cells


def _sums(values: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The sum of `values` in each box, (boxes,), by the integral image."""
    integral = np.pad(values.cumsum(axis=0, dtype=float).cumsum(axis=1), ((1, 0), (1, 0)))
    x0, y0, x1, y1 = _cells(boxes).T  # (boxes,) each
    x1, y1 = np.maximum(x0, x1), np.maximum(y0, y1)
    sums: np.ndarray = (
        integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
    )  # (boxes,)
    return sums
