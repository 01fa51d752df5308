"""What `extract.py` is fed: random weights in the publishers' layouts, and files that are made up.

checkpoint = WEIGHTS["clap"](folder)
where = FILES["audio"](folder / "audio", 100)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import parity_clap
import soundfile
import torch
from PIL import Image
from safetensors.torch import save_file

from cmcr.embeddings import Modality
from cmcr.extract.encoders.models.ulip_towers import PointBERT

WORDS = ["a", "the", "photo", "of", "two", "red", "dogs", "running", "on", "wet", "grass", "rain"]


# Weights, random


def clip_weights(folder: Path) -> Path:
    """Of ViT-B-32, as open_clip publishes them."""
    import open_clip

    torch.manual_seed(0)
    state = open_clip.create_model("ViT-B-32").state_dict()
    path = folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def clap_weights(folder: Path) -> Path:
    """Of CLAP with feature fusion."""
    path = folder / "630k-fusion-best.pt"
    with parity_clap.quiet():
        parity_clap.save_random(parity_clap.publisher().model, path)
    return path


def ulip_weights(folder: Path) -> Path:
    """Of ULIP-2 with PointBERT; the towers for images and text, which are not used, are small."""
    import timm
    from open_clip.transformer import TextTransformer

    torch.manual_seed(0)
    visual: Any = timm.create_model("vit_base_patch16_224", num_classes=0, depth=1)
    towers = torch.nn.ModuleDict({"point_encoder": PointBERT(), "visual": visual})
    state = towers.state_dict() | TextTransformer(layers=1).state_dict()
    state |= {"pc_projection": torch.randn(768, 512), "image_projection": torch.randn(768, 512)}
    path = folder / "ulip.pt"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    return path


# Files, made up


def pictures(folder: Path, count: int) -> Path:
    """JPEGs of 640 × 480, some 80 kB: clouds of colour under a little noise."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC))
        noise = random.integers(-12, 13, smooth.shape)
        image = Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:06}.jpg", quality=85)
    return folder


def recordings(folder: Path, count: int) -> Path:
    """WAVs of 5 s, 44.1 kHz, mono."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        soundfile.write(folder / f"{number:06}.wav", random.normal(0, 0.1, 220_500), 44_100)
    return folder


def captions(folder: Path, count: int) -> Path:
    """Texts of 5 to 24 words, one a line."""
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(5, 25))) for _ in range(count)]
    file = folder.with_suffix(".txt")
    file.write_text("\n".join(lines))
    return file


def clouds(folder: Path, count: int) -> Path:
    """.npy files of 8,192 points."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        np.save(folder / f"{number:06}.npy", random.normal(size=(8_192, 3)).astype(np.float32))
    return folder


WEIGHTS: dict[str, Callable[[Path], Path]] = {
    "clip": clip_weights,
    "clap": clap_weights,
    "ulip": ulip_weights,
}
FILES: dict[Modality, Callable[[Path, int], Path]] = {
    "image": pictures,
    "audio": recordings,
    "text": captions,
    "pointcloud": clouds,
}
