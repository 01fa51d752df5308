"""Recordings: libsndfile first, FFmpeg for what it does not know (m4a, aac, wma, webm, ...).

    sound = read_audio(file)    # Waveform: (channels, frames) float32, and the sample rate

Neither resamples nor mixes: that is the encoder's preprocessing. A recording that is cut short is
refused where the file itself says so.
"""

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from cmcr.errors import SourceError
from cmcr.extract.items import Waveform

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from soundfile import SoundFile


SAMPLE_RATES = range(1_000, 768_001)  # Hz
LONGEST = 3600 * 2 * 48_000  # samples over all channels: 1 h of 48 kHz stereo, 1.4 GB as float32
SHORTEST = 0.001  # seconds: below it, a resampler may be left with no sample at all
_BLOCK = 1 << 20  # frames

# Of what FFmpeg demuxes, recordings and films. Playlists (HLS, DASH, concat) are left out: they
# make it open whatever file or address they name.
FFMPEG_OPTIONS = {
    "format_whitelist": "aac,ac3,aiff,amr,ape,asf,au,avi,caf,dts,eac3,flac,flv,matroska,webm,mov,"
    "mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,ogg,tta,wav,w64,wv",
    "protocol_whitelist": "none",
}
_CUT_TOLERANCE = 0.2  # seconds by which a container's duration may exceed its audio


def read_audio(file: BinaryIO) -> Waveform:
    """The recording in `file`, as it lies there.

    Raises SourceError for one that cannot be read, is cut short, is shorter than a millisecond or
    longer than 1 h of 48 kHz stereo, has an absurd sample rate, or a sample that is not finite.
    """
    import soundfile

    refuse_cut(file)
    try:
        opened = soundfile.SoundFile(file)
    except soundfile.LibsndfileError as error:
        file.seek(0)
        sound = _ffmpeg(file, error.error_string.rstrip("."))
    else:
        with opened:
            sound = _libsndfile(opened)
    _, frames = sound.samples.shape
    if not frames:
        raise SourceError("the audio has no samples")
    if frames < SHORTEST * sound.sample_rate:
        raise SourceError(
            f"{frames} samples at {sound.sample_rate} Hz are less than a millisecond: nothing is "
            "to be heard"
        )
    return sound


def refuse_cut(file: BinaryIO) -> None:
    """Raise SourceError for a recording that is shorter than its headers promise.

    Decoders read it to where it ends and say nothing.
    """
    header = file.read(12)
    size = file.seek(0, os.SEEK_END)
    kind = header[:4] + header[8:]
    if kind in (b"RIFFWAVE", b"FORMAIFF", b"FORMAIFC"):
        (promised,) = struct.unpack("<I" if kind[:4] == b"RIFF" else ">I", header[4:8])
        unknown = promised in (0, 0xFFFFFFFF)  # written by a program that could not seek back
        if not unknown and promised + 8 > size + 1:
            raise SourceError(f"cut short: the header promises {promised + 8} bytes, not {size}")
    elif header[:4] == b"OggS":
        file.seek(max(0, size - 0x10000))  # no Ogg page is longer
        page = file.read()
        page = page[page.rfind(b"OggS") :]
        segments = page[26] if len(page) > 26 else 0
        if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
            raise SourceError("cut short: the last Ogg page is not whole")
    file.seek(0)


def _libsndfile(sound: "SoundFile") -> Waveform:
    from soundfile import LibsndfileError

    _refuse_absurd(sound.samplerate, sound.frames * sound.channels)
    samples = np.empty((sound.channels, sound.frames), np.float32)  # (channels, frames)
    filled = 0
    try:
        for block in sound.blocks(_BLOCK, dtype="float32", always_2d=True):
            samples[:, filled : filled + len(block)] = block.T
            filled += len(block)
            refuse_infinite(block)
    except LibsndfileError as error:
        raise SourceError(f"damaged after {filled} frames: {error.error_string}") from error
    if filled < sound.frames:
        raise SourceError(f"cut short: {filled} of {sound.frames} frames are there")
    return Waveform(samples, sound.samplerate)


def _ffmpeg(file: BinaryIO, libsndfile_says: str) -> Waveform:
    import av

    try:
        with av.open(
            file, mode="r", options=FFMPEG_OPTIONS, metadata_errors="replace"
        ) as container:
            if not container.streams.audio:
                raise SourceError("the file holds no audio")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise SourceError("FFmpeg has no decoder for the audio in the file")
            _refuse_absurd(stream.sample_rate, 0)
            blocks: list[np.ndarray] = []
            length = 0
            for block in _blocks(container, stream):
                length += block.shape[1]
                _refuse_absurd(stream.sample_rate, length * len(block))
                refuse_infinite(block)
                blocks.append(block)
            promised = _promised_seconds(container, stream)
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SourceError(
            f"neither libsndfile ({libsndfile_says}) nor FFmpeg ({why}) can read it"
        ) from error
    samples = np.concatenate(blocks, axis=1) if blocks else np.empty((1, 0), np.float32)
    if length < (promised - _CUT_TOLERANCE) * stream.sample_rate:
        raise SourceError(
            f"cut short: {length / stream.sample_rate:.1f} of {promised:.1f} s are there"
        )
    return Waveform(samples, stream.sample_rate)


def _blocks(container: "InputContainer", stream: "AudioStream") -> Iterator[np.ndarray]:
    """What `stream` decodes to, as (channels, frames) float32."""
    import av

    to_float = av.AudioResampler(format="fltp")  # the rate and the channels stay
    for frame in container.decode(stream):
        for same in to_float.resample(frame):
            yield same.to_ndarray()
    for same in to_float.resample(None):
        yield same.to_ndarray()


def _promised_seconds(container: "InputContainer", stream: "AudioStream") -> float:
    """How long the container says the audio is; 0 where it does not know."""
    if not {"mov", "matroska", "asf"} & set(container.format.name.split(",")):
        return 0.0  # FFmpeg's estimate, not the file's own word
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return container.duration / 1_000_000
    return 0.0


def _refuse_absurd(sample_rate: int, samples: int) -> None:
    if sample_rate not in SAMPLE_RATES:
        raise SourceError(f"a sample rate of {sample_rate} Hz is not audio")
    if samples > LONGEST:
        raise SourceError(
            "too long to hold in memory: more than 1 h of 48 kHz stereo; cut it into pieces"
        )


def refuse_infinite(block: np.ndarray) -> None:
    """Raise SourceError for a sample that is no number."""
    if not np.isfinite(block).all():
        raise SourceError("a sample is NaN or infinite")
