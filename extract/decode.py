"""From an item to what an encoder takes: pictures, waveforms, points and text.

Runs in worker processes. Whatever is wrong with one input is an exception for that input; the
caller records it and goes on.
"""

import io
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.items import Decoded, Item, Waveform

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLE_RATES = range(1_000, 768_001)  # Hz
LONGEST_AUDIO = 4 * 3600 * 48_000  # samples over all channels; 4 h of 48 kHz mono


def decode(modality: Modality, item: Item) -> Decoded:
    """The decoded input. Raises SourceError, OSError or the decoder's own error."""
    if modality == "text":
        return _text(item)
    if isinstance(item.content, bytes):
        return _DECODERS[modality](io.BytesIO(item.content))
    path = Path(item.uri)
    if path.stat().st_size == 0:
        raise SourceError("the file is empty")
    with path.open("rb") as file:
        return _DECODERS[modality](file)


def _text(item: Item) -> str:
    if isinstance(item.content, str):
        text = item.content
    else:
        text = Path(item.uri).read_text(encoding="utf-8")
    if not text.strip():
        raise SourceError("the text is empty")
    return text


def _image(file: BinaryIO) -> "Image":
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        image = Image.open(file)
        image.load()
    return image


def _audio(file: BinaryIO) -> Waveform:
    import soundfile

    _refuse_cut_wav(file)
    with soundfile.SoundFile(file) as sound:
        if sound.samplerate not in SAMPLE_RATES:
            raise SourceError(f"a sample rate of {sound.samplerate} Hz is not audio")
        if sound.frames * sound.channels > LONGEST_AUDIO:
            raise SourceError(f"{sound.frames / sound.samplerate / 3600:.1f} h is too long")
        samples = sound.read(dtype="float32", always_2d=True).T  # (channels, frames)
        if samples.shape[1] < sound.frames:
            raise SourceError(f"cut short: {samples.shape[1]} of {sound.frames} frames are there")
    if not samples.shape[1]:
        raise SourceError("the audio has no samples")
    if not np.isfinite(samples).all():
        raise SourceError("a sample is NaN or infinite")
    return Waveform(np.ascontiguousarray(samples), sound.samplerate)


def _refuse_cut_wav(file: BinaryIO) -> None:
    """libsndfile reads a truncated WAV to where it ends and says nothing; its header tells."""
    header = file.read(12)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if len(header) == 12 and header[:4] == b"RIFF" and header[8:] == b"WAVE":
        (promised,) = struct.unpack("<I", header[4:8])
        unknown = promised in (0, 0xFFFFFFFF)  # written by a program that could not seek back
        if not unknown and promised + 8 > size + 1:
            raise SourceError(f"cut short: the header promises {promised + 8} bytes, not {size}")


def _pointcloud(file: BinaryIO) -> np.ndarray:
    loaded = np.load(file, allow_pickle=False)
    points = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
    if points.ndim != 2 or points.shape[1] < 3 or not len(points):
        raise SourceError(f"a point cloud is an (n, 3) array, this is {points.shape}")
    xyz = points[:, :3].astype(np.float32)  # (n, 3)
    if not np.isfinite(xyz).all():
        raise SourceError("a coordinate is NaN or infinite")
    return xyz


_DECODERS: Mapping[Modality, Callable[[BinaryIO], Decoded]] = {
    "audio": _audio,
    "image": _image,
    "pointcloud": _pointcloud,
}
