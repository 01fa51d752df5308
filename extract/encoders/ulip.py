"""ulip: ULIP-2's PointBERT with its image and text towers, 512-d.

    cmcr extract --encoder ulip --source pointcloud=FOLDER
    cmcr extract --encoder ulip --source pointcloud=FOLDER --up z --checkpoint FILE.pt
    cmcr extract --encoder ulip:points=10000,centre=box --source pointcloud=FOLDER     # as C-MCR

`points` is how many points at most are kept of a cloud (8192), `centre` what is moved to the
origin: the centroid (`mean`) or the middle of the bounding `box`. Clouds come with y up, as in
ULIP's data. Compare with the publisher's code: benchmarks/parity_ulip.py.

https://arxiv.org/abs/2305.08275, https://github.com/salesforce/ULIP. C-MCR used the file that was
then called pointbert_ULIP-2.pt; its owners moved their models to the hub in 2025, under new names.
FILE is, by its name, the one of this architecture: 8k xyz points, SLIP's ViT-B.

Read in the publishers' code:
- Points (ULIP, data/dataset_3d.py): farthest-point sampling where there are more than `points`,
  from a random point, here the first; then the centroid is subtracted and the largest norm
  divided by. Fewer points are used as they are. C-MCR (trunks.py there) gives the tower Objaverse's
  10,000 points as they lie in its files: the middle of their bounding box at the origin, none
  sampled.
- Images: ULIP only has a random crop, for training. What SLIP, whose tower it is, does at
  evaluation (main.py): shorter side to 224, bilinear, centre crop 224, ImageNet's mean and std.
- Text (ULIP, utils/tokenizer.py): CLIP's byte pairs, 77 tokens. The original cuts a longer text's
  end token off, after which it embeds the start token instead, the same for all such texts.
  Here, as in CLIP, the end token takes the last place.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from cmcr.embeddings.schema import Modality
from cmcr.errors import EncoderError, SourceError, UsageError
from cmcr.extract.encoders.hub import find_weights, load_state_dict_file, weights_cached
from cmcr.extract.encoders.models.ulip_towers import CONTEXT, DIM, GROUP_SIZE, GROUPS, build_towers
from cmcr.extract.encoders.registry import EncoderSpec
from cmcr.extract.items import Decoded
from cmcr.files import sha256_file
from cmcr.typed import typed

REPO = "datasets/SFXX/ulip"
FILE = "ULIP-2/pretrained_models/ULIP-2-PointBERT-8k-xyz-pc-slip_vit_b-objaverse-pretrained.pt"
MODALITIES: tuple[Modality, ...] = ("pointcloud", "image", "text")
CENTRES = ("mean", "box")
END = 49_407  # the end token, the highest there is
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIBRARIES = ("numpy", "open_clip_torch", "pillow", "scipy", "timm", "torch", "torchvision")


@dataclass(frozen=True)
class Preprocess:
    """`UlipEncoder.preprocess`, and the options of a variant."""

    points: int = 8192
    centre: str = "mean"

    def __call__(self, modality: Modality, item: Decoded) -> Tensor:
        """A cloud to (points, 3), an image to (3, 224, 224), a text to (78,) tokens.

        A smaller cloud is padded with rows of NaN. Text has a token more than the tower takes, so
        that one sees which were cut. Raises SourceError for a cloud that cannot be embedded.
        """
        _refuse(modality)
        if modality == "pointcloud":
            return torch.from_numpy(prepare_points(np.asarray(item), self.points, self.centre))
        if modality == "image":
            image: Tensor = _image_transform()(item.convert("RGB"))  # type: ignore[union-attr]
            return image
        tokens: Tensor = _tokenizer()(item, context_length=CONTEXT + 1)[0]
        return tokens


def _refuse(modality: Modality) -> None:
    if modality not in MODALITIES:
        raise UsageError(
            f"ulip does not embed {modality}", fix=f"it embeds {', '.join(MODALITIES)}"
        )


@cache
def _image_transform() -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(224),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


@cache
def _tokenizer() -> Any:
    from open_clip import SimpleTokenizer

    return SimpleTokenizer()


def prepare_points(
    cloud: Float[np.ndarray, "n columns"], count: int, centre: str
) -> Float32[np.ndarray, "{count} 3"]:
    """At most `count` points of a cloud, in the unit sphere around `centre`: their `mean`, or the
    middle of their bounding `box`.

    What lies beyond the first three columns is not looked at, and missing rows are NaN.

    Raises SourceError for what is not a cloud, is not finite, or has too few points.
    """
    if cloud.ndim != 2 or cloud.shape[1] < 3:
        raise SourceError(f"a point cloud is an (n, 3) array, this is {cloud.shape}")
    points = np.ascontiguousarray(cloud[:, :3], dtype=np.float32)  # (n, 3)
    if not np.isfinite(points).all():
        raise SourceError("a coordinate is NaN or infinite")
    if len(points) > count:
        points = points[farthest_indices(points, count)]  # (count, 3)
    if len(np.unique(points[:, 0])) < GROUP_SIZE:
        distinct = len(np.unique(points, axis=0))
        if distinct < GROUP_SIZE:
            raise SourceError(f"the cloud has {distinct} distinct points, fewer than {GROUP_SIZE}")
    middle = (
        (points.min(0).astype(np.float64) + points.max(0)) / 2
        if centre == "box"
        else points.mean(0, dtype=np.float64)
    )  # (3,)
    centred = points - middle  # (n, 3)
    scale = np.sqrt(np.square(centred).sum(1).max())
    prepared = np.full((count, 3), np.nan, np.float32)
    prepared[: len(points)] = centred / scale
    return prepared


def farthest_indices(
    points: Float32[np.ndarray, "n 3"], count: int
) -> Int64[np.ndarray, "{count}"]:
    """Indices of `count` points: the first, then each time the one farthest from all so far.

    The result is that of `pointbert.farthest_points`. For one large cloud this is faster: only
    what is nearer to the newest point than that one was to the others can change.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(points)
    chosen = np.zeros(count, np.int64)
    nearest = np.full(len(points), np.inf, np.float32)  # squared distance to those chosen
    latest, around = 0, np.arange(len(points))
    for step in range(1, count):
        offset = points[around] - points[latest]  # (near, 3)
        offset *= offset
        distance = offset[:, 0] + offset[:, 1] + offset[:, 2]
        nearest[around] = np.minimum(nearest[around], distance)
        chosen[step:] = latest = int(nearest.argmax())
        if nearest[latest] == 0:  # no other place is left
            break
        around = tree.query_ball_point(points[latest], 1.00001 * np.sqrt(nearest[latest]))
    return chosen


class UlipEncoder:
    """ULIP on `device`."""

    name = "ulip"
    modalities: frozenset[Modality] = frozenset(MODALITIES)
    dim = DIM

    def __init__(
        self, towers: nn.ModuleDict, checkpoint_sha256: str, preprocess: Preprocess, device: str
    ) -> None:
        self.preprocess = preprocess
        self.checkpoint_sha256 = checkpoint_sha256
        self.device = torch.device(device)
        self.towers = towers.to(self.device)

    def fingerprint(self) -> Mapping[str, Any]:
        """Checkpoint, preprocessing with its parameters, and library versions."""
        return {
            "encoder": self.name + _spelled(self.preprocess),
            "checkpoint_sha256": self.checkpoint_sha256,
            "preprocessing": {
                "version": 2,
                "pointcloud": {
                    **asdict(self.preprocess),
                    "sampling": "farthest points from the first",
                    "groups": [GROUPS, GROUP_SIZE],
                },
                "image": {"resize": 224, "crop": 224, "mean": list(MEAN), "std": list(STD)},
                "text": {"context": CONTEXT, "truncation": "end token kept"},
            },
            "libraries": {name: version(name) for name in LIBRARIES},
        }

    @torch.inference_mode()
    @typed
    def encode(self, modality: Modality, batch: Tensor) -> Float[Tensor, "batch dim"]:
        """A stack of preprocessed inputs to unit float32 vectors (B, 512)."""
        _refuse(modality)
        if modality == "text":
            batch = cut(batch)
        embeddings: Tensor = self.towers[modality](batch.to(self.device))  # (B, 512)
        return F.normalize(embeddings.float(), dim=-1)

    def count_truncated(self, batch: Tensor) -> int:
        """How many of the preprocessed texts are longer than the tower takes."""
        return int((batch[:, CONTEXT] != 0).sum())


def cut(tokens: Tensor) -> Tensor:
    """Tokens (B, 78) to (B, 77), the end token in the last place of texts that are cut."""
    ends = tokens[:, CONTEXT] != 0  # (B,)
    tokens = tokens[:, :CONTEXT].clone()
    tokens[ends, -1] = END
    return tokens


def parse_variant(variant: str | None) -> Preprocess:
    """The options in `points=N,centre=WHERE`, each of which may be left out. Raises UsageError."""
    options = dict(part.partition("=")[::2] for part in variant.split(",")) if variant else {}
    if "up" in options:
        raise UsageError(
            f"ulip has no variant {variant!r}: which axis is up is the source's to say",
            fix="--up z with --source, or `up: z` at the source in a recipe",
        )
    points, centre = options.pop("points", "8192"), options.pop("centre", "mean")
    known = not options and centre in CENTRES
    if not known or not points.isdecimal() or int(points) < GROUP_SIZE:
        raise UsageError(
            f"ulip has no variant {variant!r}",
            fix=f"ulip:points=N,centre=WHERE with N ≥ {GROUP_SIZE} and WHERE "
            f"{' or '.join(CENTRES)}; without, points=8192,centre=mean",
        )
    return Preprocess(int(points), centre)


def _spelled(options: Preprocess) -> str:
    default = asdict(Preprocess())
    other = [f"{n}={value}" for n, value in asdict(options).items() if value != default[n]]
    return f":{','.join(other)}" if other else ""


def open_encoder(*, variant: str | None, checkpoint: Path | None, device: str) -> UlipEncoder:
    """ULIP-2 with the weights in `checkpoint`, or with those published.

    Raises UsageError for a variant that there is not, EncoderError for weights that cannot be
    found or loaded.
    """
    options = parse_variant(variant)
    file = checkpoint or find_weights(REPO, FILE)
    state = load_state_dict_file(file)
    try:
        towers = build_towers(state)
    except EncoderError as error:
        raise EncoderError(
            error.what,
            where=file,
            fix=f"give {FILE.rpartition('/')[2]} of https://huggingface.co/{REPO} to --checkpoint",
        ) from error
    return UlipEncoder(towers, sha256_file(file), options, device)


ULIP = EncoderSpec(
    load=open_encoder,
    modalities=MODALITIES,
    dim=DIM,
    licence="BSD-3-Clause (code; none stated for the weights)",
    weights_present=lambda: weights_cached(REPO, FILE),
    tokenizer="CLIP's, comes with open_clip",
)
