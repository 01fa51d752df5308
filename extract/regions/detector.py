"""Regions that a detector proposes: torchvision's Faster R-CNN over all pictures of a source.

    file = propose(pictures, folder, *faster_rcnn(Path("fasterrcnn.pth"), "cuda"))

The detector runs once, before the regions are embedded, and its boxes become a file of regions in
the dataset's folder, named by what decides them, the sizes and times of change of the pictures'
files among it (`sources/derived.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cmcr.embeddings.schema import identity
from cmcr.errors import EncoderError
from cmcr.extract.encoders.hub import explained, load_state_dict_file
from cmcr.extract.items import Item
from cmcr.extract.media.crops import PLACES, Box
from cmcr.extract.media.decode import decode
from cmcr.extract.sources.derived import derive, digest_media
from cmcr.extract.sources.source import Source
from cmcr.files import sha256_file

SCORE = 0.05  # of a box at least: torchvision's own default
MOST = 50  # boxes of a picture, the best ones
RUN = 256  # pictures that are a unit of work
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

Detector = Callable[[np.ndarray], list[list[float]]]  # (height, width, 3) uint8 to (n, 4) pixels


def propose(
    pictures: Source, folder: Path, decisive: Mapping[str, Any], load: Callable[[], Detector]
) -> Path:
    """The file of boxes (JSONL, fractions) for `pictures` in `folder`, made where it is not there.

    `decisive` is what decides the boxes, `load` loads the detector. A picture that cannot be
    read, or in which nothing is found, gets one box, the whole.
    """
    name = identity({"pictures": digest_media(pictures), **decisive})[:16]

    def begin() -> Callable[[Item], Iterator[dict[str, Any]]]:
        detector = load()
        return lambda item: (
            {"image": item.id, **dict(zip(PLACES, box, strict=True))}
            for box in _found(item, detector)
        )

    boxes = folder / f"regions-{name}.jsonl"
    return derive(boxes, pictures, begin, run=RUN, told="detect", unit="pictures")


def _found(item: Item, detector: Detector) -> list[list[float]]:
    try:
        picture = decode("image", item).convert("RGB")  # type: ignore[union-attr]
    except Exception:  # recorded when the region is embedded
        return [list(WHOLE)]
    scale = picture.size * 2
    found = detector(np.array(picture))
    return [
        [min(max(at / side, 0.0), 1.0) for at, side in zip(box, scale, strict=True)]
        for box in found
    ] or [list(WHOLE)]


def faster_rcnn(weights: Path | None, device: str) -> tuple[dict[str, Any], Callable[[], Detector]]:
    """What `propose` takes for Faster R-CNN (ResNet-50 FPN v2, arXiv 2111.11429, COCO's classes).

    Boxes of every class with a score of `SCORE` or more, at most `MOST`. `weights` is a state
    dict, None the one that torchvision itself would keep. Raises EncoderError when it is not
    there; so does loading it when it is not of this model.
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights as Published

    url = Published.COCO_V1.url
    file = weights or Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if not file.is_file():
        raise EncoderError(
            "the weights of the detector are not on this machine",
            where=file,
            fix=f"fetch {url} and put it there, or name it: --regions torchvision:CHECKPOINT",
        )
    decisive = {
        "detector": "torchvision/fasterrcnn_resnet50_fpn_v2",
        "checkpoint_sha256": sha256_file(file),
        "score": SCORE,
        "most": MOST,
    }
    return decisive, lambda: _load_faster_rcnn(file, url, device)


def _load_faster_rcnn(file: Path, url: str, device: str) -> Detector:
    from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2

    try:
        state = load_state_dict_file(file)
        model = fasterrcnn_resnet50_fpn_v2(
            weights=None,
            weights_backbone=None,
            box_score_thresh=SCORE,
            box_detections_per_img=MOST,
        )
        with explained(file):
            model.load_state_dict(state)
    except EncoderError as error:
        fix = f"give --regions torchvision:CHECKPOINT what is published as {url}"
        raise EncoderError(error.what, where=error.where, fix=fix) from error
    model.eval().to(device)

    @torch.inference_mode()
    def detect(pixels: np.ndarray) -> list[list[float]]:
        image = torch.from_numpy(pixels).to(device).permute(2, 0, 1) / 255  # (3, height, width)
        boxes: list[list[float]] = model([image])[0]["boxes"].tolist()
        return boxes

    return detect
