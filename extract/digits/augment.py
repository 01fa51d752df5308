"""Random changes that leave a digit what it is: used in pretraining only.

    ink      moved, turned, scaled, sheared, bent
    sounds   played faster or slower, moved, with noise, coloured
    mels     bands and moments masked (SpecAugment, arXiv 1904.08779)
    captions other case and end, some words lost, some beside the point gained

Every row of a batch is changed in its own way; torch's seed and `rng` decide how.
"""

import random
import string

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cmcr.extract.digits.preprocess import SAMPLE_RATE
from cmcr.extract.digits.world.phrases import NUMERALS, WORDS
from cmcr.typed import typed

# Everyday words, among them those that sound or look like digits.
FILLERS = (
    *("about", "again", "anyone", "artificial", "before", "bone", "canine", "clearly", "done"),
    *("even", "eleven", "everyone", "former", "freight", "gone", "heavens", "height", "hello"),
    *("none", "often", "only", "phone", "please", "somebody", "someone", "stone", "straight"),
    *("tenfold", "threw", "through", "tone", "twofold", "weight", "word"),
)


def between(low: float, high: float, *shape: int) -> Tensor:
    """Uniform random numbers."""
    return torch.empty(shape).uniform_(low, high)


@typed
def ink(pixels: Float[Tensor, "batch 1 8 8"]) -> Float[Tensor, "batch 1 8 8"]:
    """Affine and elastic changes."""
    count = len(pixels)
    angle, shear = between(-0.18, 0.18, count), between(-0.15, 0.15, count)
    width, height = between(0.9, 1.15, count), between(0.9, 1.15, count)
    shift = between(-0.15, 0.15, count, 2)
    turn = torch.stack(
        [
            torch.stack([angle.cos() * width, shear - angle.sin(), shift[:, 0]], 1),
            torch.stack([angle.sin(), angle.cos() * height, shift[:, 1]], 1),
        ],
        dim=1,
    )  # (B, 2, 3)
    grid = F.affine_grid(turn, list(pixels.shape), align_corners=False)  # (B, 8, 8, 2)
    bend = F.interpolate(torch.randn(count, 2, 3, 3) * 0.05, size=8, mode="bicubic")
    return F.grid_sample(pixels, grid + bend.permute(0, 2, 3, 1), align_corners=False)


@typed
def sounds(windows: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
    """Speed (and pitch with it) by up to 20 %, shift by up to 0.1 s, noise at 8 to 45 dB below."""
    count, length = windows.shape
    speed, shift = between(0.82, 1.22, count, 1), between(-0.1, 0.1, count, 1) * SAMPLE_RATE
    middle = (length - 1) / 2
    place = (torch.arange(length) - middle) * speed + middle + shift  # (B, samples)
    inside = (place >= 0) & (place < length - 1)
    before = place.clamp(0, length - 2).long()
    mix = place - before
    moved = torch.lerp(windows.gather(1, before), windows.gather(1, before + 1), mix) * inside
    rms = moved.square().mean(1, keepdim=True).sqrt()
    return moved + torch.randn_like(moved) * rms * 10 ** (-between(8, 45, count, 1) / 20)


@typed
def mels(loudness: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch mels frames"]:
    """A tilt of the spectrum, and one masked stretch of up to 8 bands and one of 12 frames."""
    count, bands, frames = loudness.shape
    tilt = torch.linspace(-1, 1, bands) * between(-0.5, 0.5, count, 1)  # (B, mels)
    band = stretch(count, bands, 8)[:, :, None]  # (B, mels, 1)
    frame = stretch(count, frames, 12)[:, None, :]  # (B, 1, frames)
    return (loudness + tilt[:, :, None]).masked_fill(band | frame, 0.0)


def stretch(count: int, length: int, longest: int) -> Tensor:
    """(count, length) masks, each True on one random stretch."""
    start = between(0, length - longest, count, 1)
    place = torch.arange(length)
    return (place >= start) & (place < start + between(0, longest, count, 1))


def caption(text: str, rng: random.Random) -> str:
    """`text` as another person might put it; what names the digit stays."""
    words = []
    for word in text.split():
        names_digit = word.strip(string.punctuation) in (*WORDS, *NUMERALS)
        if names_digit or rng.random() > 0.15:
            words.append(word)
        if rng.random() < 0.25:
            words.append(rng.choice(FILLERS) if rng.random() < 0.5 else letters(rng))
    changed = " ".join(words) + rng.choice(("", "", "", ".", "!", "?"))
    return rng.choice((changed, changed, changed.capitalize(), changed.upper()))


def letters(rng: random.Random) -> str:
    """A word without a meaning."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))
