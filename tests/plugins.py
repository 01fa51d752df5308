"""Encoders as a package of somebody else's brings them: of pictures and sounds, and of places.

install(tmp_path, monkeypatch)      # `cmcr` then finds `senses` and `globe`
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cmcr.extract import EncoderSpec, Reader

PLACES = ("52.52,13.40", "48.85,2.35", "40.71,-74.01")


class Plain:
    """What the encoders here have in common: the vector is the input, made as long as 1."""

    name = "plain"
    modalities: frozenset[str] = frozenset()
    dim = 8
    device = torch.device("cpu")

    def fingerprint(self) -> Mapping[str, Any]:
        return {"encoder": self.name, "checkpoint_sha256": "0" * 64, "preprocessing": "plain"}

    def encode(self, modality: str, batch: Tensor) -> Tensor:
        return torch.nn.functional.normalize(batch, dim=-1)


class Senses(Plain):
    """Sees the mean colour, hears how much there is of each of eight bands."""

    name, modalities = "senses", frozenset(["audio", "image"])

    def preprocess(self, modality: str, item: Any) -> Tensor:
        if modality == "image":
            mean = np.asarray(item.convert("RGB"), np.float32).mean(axis=(0, 1)) / 255
            return torch.from_numpy(np.resize(mean - 0.3, 8).astype(np.float32))
        power = np.abs(np.fft.rfft(item.samples.mean(axis=0)))
        bands = np.array([band.mean() for band in np.array_split(power, 8)], np.float32)
        return torch.from_numpy(bands)


class Globe(Plain):
    """Where on the globe a line `lat,lon` is, or a .grid file of three numbers."""

    name, modalities, dim = "globe", frozenset(["gps", "grid"]), 3

    def preprocess(self, modality: str, item: Any) -> Tensor:
        if modality == "grid":
            return torch.from_numpy(item)
        lat, lon = (np.radians(float(part)) for part in item.split(","))
        point = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
        return torch.tensor(point, dtype=torch.float32)


def read_grid(file: Any, suffix: str) -> np.ndarray:
    values: np.ndarray = np.array(file.read().split(), np.float32)
    return values


def load_senses(**given: Any) -> Senses:
    return Senses()


def load_globe(**given: Any) -> Globe:
    return Globe()


SENSES = EncoderSpec(load_senses, ("audio", "image"), 8, "none", lambda: True)
GLOBE = EncoderSpec(
    load_globe,
    ("gps", "grid"),
    3,
    "none",
    lambda: True,
    readers={
        "gps": Reader(examples=PLACES),
        "grid": Reader((".grid",), read_grid, (b"1 2 3", b"3 1 0", b"0 1 0")),
    },
)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the entry points of a package in `folder`, which is looked at from now on."""
    about = folder / "plugins-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugins\nVersion: 1.0\n")
    entries = "senses = plugins:SENSES\nglobe = plugins:GLOBE\n"
    (about / "entry_points.txt").write_text(f"[cmcr.encoders]\n{entries}")
    monkeypatch.syspath_prepend(folder)
