"""CLAP's audio side: from a waveform to the features of HTSAT.

    record = fusion_record(waveform)                    # in a worker process: (RECORD,) int16
    features = embedding(branch, torch.stack(records))  # on the device: (batch, width)

It gives what laion_clap's hook.py and training/data.py give: librosa's mono mix and soxr_hq
resampling to 48 kHz, the int16 round trip, `repeatpad` to 10 s, and of longer clips the whole
spectrogram shrunk to 10 s beside three chunks of it from front, middle and back. It is shrunk
without antialiasing, as torchvision did until 0.17: the published embeddings are of 0.13 and 0.14
(https://github.com/pytorch/vision/issues/6209).

int16 is all that is left of the samples after the round trip, so it is what a worker sends: a
window of 10 s, already reflected at its ends, whose spectrogram the device computes. Only of a
clip longer than 10 s does a worker compute the spectrogram itself, because shrinking it takes the
whole clip, which has no fixed size.

The publisher draws the chunks at random. Here the seed is a hash of the decoded samples, so that
the same sound gives the same embedding whatever its name, its place in the source and its process.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int16
from torch import Tensor
from torch.nn import functional as F

from cmcr.errors import SourceError
from cmcr.extract.items import Waveform
from cmcr.typed import typed

SAMPLE_RATE = 48_000  # Hz
CLIP = 480_000  # samples: 10 s
N_FFT, HOP, MELS = 1024, 480, 64
LOW_HZ, HIGH_HZ = 50.0, 14_000.0
FRAMES = CLIP // HOP + 1
WINDOW = CLIP + N_FFT  # samples under FRAMES frames, the first and last reflected
FULL_SCALE = 32_767

FUSED = (4, FRAMES, MELS)  # the shrunk spectrogram and three chunks
FUSED_INT16 = 2 * 4 * FRAMES * MELS  # float32 written as pairs of int16
RECORD = max(WINDOW, FUSED_INT16) + 2  # and the flag `longer`, at an even length

FRAMES_AT_ONCE = 8_192  # of a long clip's spectrogram
WINDOWS_AT_ONCE = 16  # of a batch: the complex spectrogram is eight times the samples

PARAMETERS: Mapping[str, str | float] = {
    "version": 1,
    "sample_rate": SAMPLE_RATE,
    "resample": "soxr HQ",
    "clip": CLIP,
    "short": "repeatpad",
    "n_fft": N_FFT,
    "hop": HOP,
    "mels": MELS,
    "low_hz": LOW_HZ,
    "high_hz": HIGH_HZ,
    "chunks": "RandomState(blake2b of the samples)",
}
# And of clips longer than 10 s, with and without feature fusion.
SHRUNK: Mapping[str, str | bool] = {
    "long": "shrunk and three chunks",
    "antialias": False,
    "mel_scale": "htk",
}
CROPPED: Mapping[str, str | bool] = {"long": "crop", "mel_scale": "slaney"}


# In a worker process


@typed
def fusion_record(waveform: Waveform) -> Int16[Tensor, "record"]:
    """What a model with feature fusion takes of a clip of any length: (RECORD,).

    The last number is 1 for a clip longer than 10 s, whose four spectrograms come first (float32
    seen as int16); else a window of samples does. Raises SourceError for a clip without samples.
    """
    samples = quantised(waveform)
    record = torch.zeros(RECORD, dtype=torch.int16)
    if len(samples) // HOP + 1 > FRAMES:
        mels = fused(spectrogram(samples), generator(waveform))
        record[:FUSED_INT16] = mels.contiguous().view(torch.int16).flatten()
        record[-1] = 1
    else:
        record[:WINDOW] = window(repeated(samples))
    return record


@typed
def crop_record(waveform: Waveform) -> Int16[Tensor, "window"]:
    """What a model without feature fusion takes: 10 s of samples, of a longer clip any 10 s."""
    samples = quantised(waveform)
    if len(samples) > CLIP:
        start = generator(waveform).randint(0, len(samples) - CLIP + 1)
        samples = samples[start : start + CLIP]
    return window(repeated(samples))


def quantised(waveform: Waveform) -> np.ndarray:
    """48 kHz mono as int16: (frames,). Raises SourceError for a clip without samples."""
    scaled: np.ndarray = resampled(waveform, SAMPLE_RATE).clip(-1, 1) * np.float32(FULL_SCALE)
    return scaled.astype(np.int16)


def resampled(waveform: Waveform, rate: int) -> np.ndarray:
    """librosa's mono mix at `rate` Hz: (frames,) float32. Raises SourceError as `quantised`."""
    import soxr

    if not waveform.samples.size:
        raise SourceError("the audio has no samples")
    mono: np.ndarray = waveform.samples.mean(axis=0)
    if waveform.sample_rate != rate:
        length = int(np.ceil(len(mono) * (rate / waveform.sample_rate)))
        mono = soxr.resample(mono, waveform.sample_rate, rate, quality="HQ")[:length]
        mono = np.pad(mono, (0, length - len(mono)))
    return mono


def generator(waveform: Waveform) -> np.random.RandomState:
    """Random numbers that the samples decide; RandomState's stream is the same in every numpy."""
    digest = hashlib.blake2b(waveform.samples.tobytes(), digest_size=4).digest()
    return np.random.RandomState(int.from_bytes(digest, "little"))


def repeated(samples: np.ndarray) -> np.ndarray:
    """A clip of at most 10 s repeated whole, then zeros; a longer one as it is."""
    if len(samples) >= CLIP:
        return samples
    whole = np.tile(samples, CLIP // len(samples))
    return np.pad(whole, (0, CLIP - len(whole)))


@typed
def window(samples: np.ndarray) -> Int16[Tensor, "window"]:
    """The samples under the first FRAMES frames: (WINDOW,) int16, reflected at the ends."""
    return torch.from_numpy(np.pad(samples, N_FFT // 2, mode="reflect")[:WINDOW])


@typed
def spectrogram(samples: np.ndarray) -> Float[Tensor, "frames mels"]:
    """The log-mel spectrogram of a whole clip: (len(samples) // HOP + 1, MELS)."""
    reflected = torch.from_numpy(np.pad(samples, N_FFT // 2, mode="reflect"))
    frames = len(samples) // HOP + 1
    parts = []
    for first in range(0, frames, FRAMES_AT_ONCE):
        last = min(first + FRAMES_AT_ONCE, frames) - 1
        part = reflected[first * HOP : last * HOP + N_FFT]
        parts.append(log_mel(part[None], htk_bank())[0])  # (last - first + 1, MELS)
    return torch.cat(parts)


@typed
def fused(
    mel: Float[Tensor, "frames mels"], random: np.random.RandomState
) -> Float[Tensor, "4 clip_frames mels"]:
    """The whole of `mel` (frames, MELS) shrunk, and three chunks of it: FUSED.

    The random numbers are drawn as laion_clap's get_audio_features draws them.
    """
    shrunk = F.interpolate(
        mel[None, None], size=(FRAMES, MELS), mode="bilinear", align_corners=False, antialias=False
    )[0, 0]  # (FRAMES, MELS)
    thirds = np.array_split(np.arange(len(mel) - FRAMES + 1), 3)
    starts = [random.choice(third) if len(third) else 0 for third in thirds]
    return torch.stack([shrunk, *(mel[start : start + FRAMES] for start in starts)])


# On the device


@typed
def unpack(
    records: Int16[Tensor, "batch record"],
) -> tuple[
    Int16[Tensor, "short window"], Float[Tensor, "long 4 frames mels"], Bool[Tensor, "batch"]
]:
    """Records (batch, RECORD) to windows (short, WINDOW) and spectrograms (long, *FUSED).

    The third result is true for the clips longer than 10 s.
    """
    longer = records[:, -1] != 0
    windows = records[~longer, :WINDOW]
    mels = records[longer, :FUSED_INT16].contiguous().view(torch.float32).view(-1, *FUSED)
    return windows, mels, longer


@typed
def log_mel(
    windows: Int16[Tensor, "batch samples"], bank: Float[Tensor, "bins mels"]
) -> Float[Tensor, "batch frames mels"]:
    """Log-mel spectrograms in dB (power 1 is 0 dB, the floor -100) of samples, without padding."""
    hann = torch.hann_window(N_FFT, device=windows.device)
    parts = []
    for some in torch.split(windows, WINDOWS_AT_ONCE):
        spectrum = torch.stft(
            some.float() / FULL_SCALE, N_FFT, HOP, window=hann, center=False, return_complex=True
        )  # (some, bins, frames)
        power = spectrum.real.square() + spectrum.imag.square()
        parts.append(power.mT @ bank)  # (some, frames, mels)
    return 10 * torch.cat(parts).clamp(min=1e-10).log10()


@cache
def htk_bank() -> Tensor:
    """torchaudio's mel filters, which models with feature fusion use: (N_FFT // 2 + 1, MELS)."""
    from torchaudio.functional import melscale_fbanks

    bank: Tensor = melscale_fbanks(N_FFT // 2 + 1, LOW_HZ, HIGH_HZ, MELS, SAMPLE_RATE)
    return bank


@typed
def embedding(branch: Any, records: Int16[Tensor, "batch record"]) -> Float[Tensor, "batch width"]:
    """Stacked records through HTSAT: (batch, 768), of HTSAT-base (batch, 1024).

    HTSAT's embedding is the mean of its last tokens; its classifier and its attention maps, which
    laion_clap computes as well, are left out. Spectrograms and patches are made in float32:
    decibels do not fit half a float, and under autocast laion_clap's fusion ends in an error.
    """
    with torch.autocast(records.device.type, enabled=False):
        tokens = patches(branch, records)  # (batch, 4096, width)
    for layer in branch.layers:
        for block in layer.blocks:
            tokens, _ = block(tokens)
        if layer.downsample is not None:
            tokens = layer.downsample(tokens)  # (batch, tokens / 4, 2 width)
    pooled: Tensor = branch.norm(tokens).mean(dim=1)
    return pooled


@typed
def patches(
    branch: Any, records: Int16[Tensor, "batch record"]
) -> Float[Tensor, "batch tokens width"]:
    """Records to (batch, 4096, width). A clip longer than 10 s is fused, whatever is beside it."""
    if not branch.enable_fusion:
        mel = log_mel(records, branch.logmel_extractor.melW)  # (batch, FRAMES, MELS)
        return _patches(branch, mel[:, None])
    windows, mels, longer = unpack(records)
    tokens = torch.empty(
        len(records), branch.patch_embed.num_patches, branch.embed_dim, device=records.device
    )
    if len(windows):
        mel = log_mel(windows, htk_bank().to(records.device))  # (short, FRAMES, MELS)
        tokens[~longer] = _patches(branch, mel[:, None])
    if len(mels):
        tokens[longer] = _patches(branch, mels, fuse=torch.arange(len(mels)))
    return tokens


def _patches(branch: Any, mels: Tensor, fuse: Sequence[int] | Tensor = ()) -> Tensor:
    """Spectrograms (batch, channels, FRAMES, MELS) to (batch, 4096, width)."""
    normal = branch.bn0(mels.transpose(1, 3)).transpose(1, 3)
    images = branch.reshape_wav2img(normal)  # (batch, channels, 256, 256)
    tokens: Tensor = branch.patch_embed(images, longer_idx=fuse)
    return tokens
