"""The ulip encoder beside the publisher's own code, at its full size, on seeded random weights.

    git clone https://github.com/salesforce/ULIP && git -C ULIP checkout 2fed30f
    python benchmarks/parity_ulip.py ULIP --clouds FOLDER [--images FOLDER] [--checkpoint FILE.pt]

Prints, for each kind of input, the smallest cosine and the largest absolute difference between
the two unit embeddings of one input, and beside them the largest cosine between two different
inputs, without which the first says little. FOLDER of clouds holds (n, 3) .npy files of at most
8192 points, for with more the publisher starts sampling at a random one. With --checkpoint the
weights are those of FILE; without, random ones go through a file in the publisher's layout.

The publisher's code runs as it is, but for the point at which the sampling of groups starts: it
draws one, here it is the first. Packages that the model does not use are left out. The commit is
the last before June 2024, when the sampling became that of pointnet2_ops, which passes over what
is near the origin: the published weights, and C-MCR's, were trained with what was there before.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cmcr.extract.encoders.ulip import UlipEncoder, open_encoder
from cmcr.extract.items import Item
from cmcr.extract.media.decode import decode

UNUSED = ("h5py", "knn_cuda", "open3d", "pointnet2_ops", "termcolor", "torch._six")
TEXTS = (
    "an airplane",
    "a point cloud model of a toilet.",
    "There's the BIG  door, in the scene &amp; it's café-coloured!",
    "a car",
)


def main() -> None:
    """Read the flags, run both, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("repository", type=Path, help="the publisher's, checked out")
    parser.add_argument("--clouds", type=Path, required=True, help="folder of .npy files")
    parser.add_argument("--images", type=Path, help="folder of .jpg files")
    parser.add_argument("--checkpoint", type=Path, help="published weights")
    flags = parser.parse_args()
    clouds, checkpoint = sorted(flags.clouds.resolve().glob("*.npy")), flags.checkpoint
    images = sorted(flags.images.resolve().glob("**/*.jpg")) if flags.images else []

    publisher = Publisher(flags.repository.resolve())
    with tempfile.TemporaryDirectory() as folder:
        if checkpoint is None:
            checkpoint = Path(folder, "random.pt")
            publisher.randomise(checkpoint)
        else:
            publisher.load(checkpoint.resolve())
        ours = open_encoder(variant=None, checkpoint=checkpoint, device="cpu")
        print(f"{'':12}{'n':>4}{'min cosine':>14}{'max |diff|':>12}{'others, max cosine':>20}")
        compare("pointcloud", *embed(ours, "pointcloud", clouds), publisher.points(clouds))
        compare("text", *embed(ours, "text", TEXTS), publisher.text(TEXTS))
        if images:
            inputs, vectors = embed(ours, "image", images)
            compare("image", inputs, vectors, publisher.model.encode_image(inputs))


def embed(encoder: UlipEncoder, modality: Any, items: Any) -> tuple[Tensor, Tensor]:
    """What the encoder makes of `items`: its inputs, stacked, and their unit embeddings."""
    decoded = [
        decode(modality, Item(str(i), uri=str(item), content=item if modality == "text" else None))
        for i, item in enumerate(items)
    ]
    inputs = torch.stack([encoder.preprocess(modality, item) for item in decoded])
    return inputs, encoder.encode(modality, inputs)


def compare(name: str, inputs: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Print one row."""
    ours, theirs = (normalize(vectors.double(), dim=-1) for vectors in (ours, theirs))  # (n, 512)
    cosines = ours @ theirs.T  # (n, n)
    difference = (ours - theirs).abs().max()
    others = cosines[~torch.eye(len(cosines), dtype=torch.bool)]
    largest = others.max() if len(others) else torch.nan
    print(
        f"{name:12}{len(inputs):>4}{cosines.diag().min():>14.9f}{difference:>12.2e}{largest:>20.4f}"
    )


class Publisher:
    """ULIP_PointBERT of salesforce/ULIP, and the preprocessing around it."""

    def __init__(self, repository: Path) -> None:
        attributes = ModuleType("easydict")
        vars(attributes).update(EasyDict=EasyDict)
        sys.modules |= {"easydict": attributes} | {name: MagicMock() for name in UNUSED}
        sys.path.insert(0, str(repository))
        os.chdir(repository)  # it opens its configuration by a relative path

        from data.dataset_3d import pc_normalize  # type: ignore[import-not-found]
        from models.ULIP_models import ULIP_PointBERT  # type: ignore[import-not-found]
        from utils.tokenizer import SimpleTokenizer  # type: ignore[import-not-found]

        self.normalise: Callable[[np.ndarray], np.ndarray] = pc_normalize
        self.tokenise = SimpleTokenizer()
        torch.manual_seed(0)
        torch.set_grad_enabled(False)
        self.model = ULIP_PointBERT(argparse.Namespace(evaluate_3d=True)).eval()

    def randomise(self, checkpoint: Path) -> None:
        """Move every weight and statistic a little, and save them in the publisher's layout."""
        generator = torch.Generator().manual_seed(0)
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator)
                tensor += 0.1 * (noise.abs() if name.endswith("running_var") else noise * 0.5)
        state = {f"module.{name}": tensor for name, tensor in self.model.state_dict().items()}
        settings = argparse.Namespace(model="ULIP_PointBERT", npoints=8192, betas=(0.9, 0.98))
        torch.save({"epoch": 1, "state_dict": state, "args": settings}, checkpoint)

    def load(self, checkpoint: Path) -> None:
        """Take the weights of a published file."""
        with torch.serialization.safe_globals([argparse.Namespace]):
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        self.model.load_state_dict({k.removeprefix("module."): v for k, v in state.items()})

    def points(self, files: list[Path]) -> Tensor:
        """Embeddings of .npy files, one by one."""
        clouds = [self.normalise(np.load(file)[:, :3].astype(np.float32)) for file in files]
        with patch("torch.randint", lambda low, high, size, **how: torch.zeros(size, **how)):
            return torch.cat([self.model.encode_pc(torch.from_numpy(c)[None]) for c in clouds])

    def text(self, texts: tuple[str, ...]) -> Tensor:
        """Embeddings of texts."""
        embeddings: Tensor = self.model.encode_text(self.tokenise(list(texts)))
        return embeddings


class EasyDict(dict):
    """A dict whose values are attributes too, those of the dicts in it as well."""

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__()
        for name, value in dict(*values, **more).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, EasyDict(value) if type(value) is dict else value)

    def __getattr__(self, name: str) -> Any:
        return self[name]


if __name__ == "__main__":
    main()
