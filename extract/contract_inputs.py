"""Three tiny inputs a modality, the same wherever they are made: what `contract` tries encoders on.

write_inputs(folder, "audio")   # folder/audio/0.wav, 1.wav, 2.wav
"""

import wave
from pathlib import Path

import numpy as np

from cmcr.embeddings import Modality
from cmcr.extract.media.readers import is_textual, reader_of

TEXTS = [
    "a dog",
    "Zürich, ☃ &amp; 日本語",
    "rain on a tin roof " * 8,
]
SECONDS, RATES = (0.4, 1.3, 0.9), (8_000, 44_100, 48_000)
SIZES = ((40, 30), (64, 120), (28, 28))  # pixels
POINTS = (600, 1500, 1024)


def write_inputs(folder: Path, modality: Modality) -> Path:
    """Write three inputs of `modality`; gives the folder or file that is their source.

    Of one that a package brings they are its reader's examples, at most three.
    """
    place = folder / modality
    reader = reader_of(modality)
    if is_textual(modality):
        place = place.with_suffix(".txt")
        texts = reader.examples[:3] if reader else TEXTS
        lines = (text if isinstance(text, str) else text.decode() for text in texts)
        place.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return place
    place.mkdir()
    if reader:
        for number, content in enumerate(reader.examples[:3]):
            path = (place / str(number)).with_suffix(reader.suffixes[0])
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        return place
    write = {"audio": _write_sound, "image": _write_picture, "pointcloud": _write_cloud}[modality]
    for number in range(3):
        write(place / str(number), number)
    return place


def _write_sound(path: Path, number: int) -> None:
    """A tone in noise, 16 bits."""
    rate = RATES[number]
    moments = np.arange(round(SECONDS[number] * rate)) / rate
    noise = np.random.default_rng(number).normal(0, 0.02, len(moments))
    sound = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * moments) + noise
    with wave.open(str(path.with_suffix(".wav")), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        file.writeframes((sound.clip(-1, 1) * 32767).astype("<i2").tobytes())


def _write_picture(path: Path, number: int) -> None:
    """Coarse noise in colour; the last one is grey."""
    from PIL import Image

    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(SIZES[number])
    (picture.convert("L") if number == 2 else picture).save(path.with_suffix(".png"))


def _write_cloud(path: Path, number: int) -> None:
    """An ellipsoid of normally distributed points."""
    points = np.random.default_rng(number).normal(size=(POINTS[number], 3))
    np.save(path.with_suffix(".npy"), (points * [1, 0.2 * (number + 1), 0.4]).astype(np.float32))
