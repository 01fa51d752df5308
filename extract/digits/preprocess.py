"""From a picture, a waveform, a point cloud or a text to the tensor that a digits tower takes.

    image   (1, 8, 8) ink in [0, 1]        the ink is cut out, made light on dark, fitted into 8x8
    audio   (40, 101) log-mel, normalised  the sound between the silences, one second of it
    points  (256, 3), centred, in the unit sphere
    text    (64,) bytes or (24,) hashed words, 0 where there is nothing

Every function here is deterministic and picklable. `PARAMETERS` is what decides the numbers: it
goes into the encoder's fingerprint, so a change of behaviour must change it.
"""

import re
import zlib
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from cmcr.errors import SourceError
from cmcr.extract.digits.world.shapes import POINTS
from cmcr.extract.items import Waveform
from cmcr.typed import typed

SIZE = 8
SAMPLE_RATE, WINDOW = 8000, 8000
N_FFT, HOP, MELS, LOW_HZ = 256, 80, 40, 60.0
SILENCE_DB = 35.0

BYTES, WORDS, BUCKETS = 64, 24, 2048

PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "ink": {"version": 1, "size": SIZE},
    "sound": {
        "version": 1,
        "sample_rate": SAMPLE_RATE,
        "window": WINDOW,
        "n_fft": N_FFT,
        "hop": HOP,
        "mels": MELS,
        "low_hz": LOW_HZ,
        "silence_db": SILENCE_DB,
    },
    "points": {"version": 1, "points": POINTS},
    "text_bytes": {"version": 1, "length": BYTES},
    "text_words": {"version": 1, "length": WORDS, "buckets": BUCKETS},
}


@typed
def ink(image: Image.Image) -> Float[Tensor, "1 8 8"]:
    """How much ink lies in each of 8x8 cells, the strongest cell being 1.

    Takes a picture of any size and mode with one digit in it, light on dark as in scikit-learn's
    `load_digits` or dark on light: the median of the outermost pixels is taken for the paper. The
    picture is cut to its ink, and fitted into the middle of the cells with its proportions kept.
    """
    grey = image.convert("L")
    pixels = np.asarray(grey, dtype=np.float32) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    strength = np.abs(pixels - np.median(border))
    cells = torch.zeros(1, SIZE, SIZE)
    if not strength.any():
        return cells

    rows, columns = (np.flatnonzero((strength > strength.max() / 10).any(axis)) for axis in (1, 0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    cut = Image.fromarray(strength[top:bottom, left:right])
    scale = SIZE / max(cut.size)
    width, height = (max(1, round(side * scale)) for side in cut.size)
    fitted = np.array(cut.resize((width, height), Image.Resampling.BOX))
    x, y = (SIZE - width) // 2, (SIZE - height) // 2
    cells[0, y : y + height, x : x + width] = torch.from_numpy(fitted / fitted.max())
    return cells


@typed
def spoken(waveform: Waveform) -> Float[Tensor, "frames"]:
    """The sound between the silences as 8 kHz mono with a peak of 1, of any length.

    Raises SourceError for a recording without a sample, with a NaN or an infinity, or silent.
    """
    import soxr

    samples = waveform.samples
    if samples.size == 0 or waveform.sample_rate <= 0:
        raise SourceError("the recording is empty", fix="leave it out, or record it again")
    if not np.isfinite(samples).all():
        raise SourceError(
            "the recording holds NaN or infinite samples", fix="leave it out, or decode it again"
        )
    mono = soxr.resample(samples.mean(0), waveform.sample_rate, SAMPLE_RATE, quality="HQ")
    mono = np.pad(mono, (0, -len(mono) % HOP))
    power = (mono.reshape(-1, HOP) ** 2).mean(1)
    if not power.any():
        raise SourceError("the recording is silent", fix="leave it out, or record it again")
    loud = np.flatnonzero(power > power.max() * 10 ** (-SILENCE_DB / 10))
    sound = mono[loud[0] * HOP : (loud[-1] + 1) * HOP]
    return torch.from_numpy((sound / np.abs(sound).max()).astype(np.float32))


@typed
def centred(sound: Float[Tensor, "frames"]) -> Float[Tensor, "window"]:
    """`sound` in the middle of one second: zeros on both sides, or its own middle."""
    spare = WINDOW - len(sound)
    return torch.nn.functional.pad(sound, (spare // 2, spare - spare // 2))


@typed
def log_mel(window: Float[Tensor, "*batch samples"]) -> Float[Tensor, "*batch mels frames"]:
    """Log-mel spectrogram of 8 kHz sound, each with mean 0 and variance 1."""
    spectrum = torch.stft(
        window,
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT),
        pad_mode="constant",
        return_complex=True,
    )  # (*batch, N_FFT/2 + 1, frames)
    mel = mel_filters() @ spectrum.abs().square()  # (*batch, MELS, frames)
    loudness = (mel + 1e-4).log()
    std, mean = torch.std_mean(loudness, dim=(-2, -1), keepdim=True)
    return (loudness - mean) / (std + 1e-5)


@cache
def mel_filters() -> Tensor:
    """Triangular filters, equally spaced on the HTK mel scale: (MELS, N_FFT/2 + 1)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    bottom = 2595 * np.log10(1 + LOW_HZ / 700)
    edges = 700 * (10 ** (np.linspace(bottom, top, MELS + 2) / 2595) - 1)
    hertz = np.linspace(0, SAMPLE_RATE / 2, N_FFT // 2 + 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    return torch.from_numpy(np.minimum(rising, falling).clip(0).astype(np.float32))


@typed
def sound(waveform: Waveform) -> Float[Tensor, "mels frames"]:
    """What the audio tower takes: the log-mel spectrogram of one second around the sound."""
    return log_mel(centred(spoken(waveform)))


@typed
def points(cloud: Float[np.ndarray, "n 3"]) -> Float[Tensor, "points 3"]:
    """256 of the points, chosen by a fixed draw or repeated, centred and in the unit sphere."""
    if len(cloud) > POINTS:
        cloud = cloud[np.random.default_rng(0).permutation(len(cloud))[:POINTS]]
    centred = cloud - cloud.mean(0)
    sphere = centred / max(np.linalg.norm(centred, axis=1).max(), np.finfo(np.float32).tiny)
    return torch.from_numpy(np.resize(sphere, (POINTS, 3)).astype(np.float32))


@typed
def text_bytes(text: str) -> Int[Tensor, "length"]:
    """The first 64 UTF-8 bytes, each plus one, so that 0 is left for padding."""
    codes = [byte + 1 for byte in text.encode()[:BYTES]]
    return torch.tensor(codes + [0] * (BYTES - len(codes)))


@typed
def text_words(text: str) -> Int[Tensor, "length"]:
    """The first 24 words and single digits, lower case, each hashed into one of 2,047 buckets."""
    words = re.findall(r"\d|[^\W\d]+", text.lower())[:WORDS]
    codes = [1 + zlib.crc32(word.encode()) % (BUCKETS - 1) for word in words]
    return torch.tensor(codes + [0] * (WORDS - len(codes)))
