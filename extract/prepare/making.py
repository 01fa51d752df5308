"""Pictures and sounds out of videos, with FFmpeg as PyAV brings it; clouds out of their lists.

    path = provide(Frame(Path("clip.mp4")), Path("data/ave/prepared"), "RUhOCu3LNXM")

A file is there whole or not at all, and is not made again where it is there. Whatever is wrong
with the medium is a Bad with the reason; what is wrong with the disk is an error.
"""

import io
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cmcr.errors import CmcrError, SourceError
from cmcr.extract.items import Waveform
from cmcr.extract.media.audio import FFMPEG_OPTIONS, read_audio
from cmcr.extract.prepare.folder import SOUNDS
from cmcr.extract.prepare.published import CLIP_SECONDS, Frame, Medium, Sound
from cmcr.files import replacing

if TYPE_CHECKING:
    from av.container import InputContainer

_SLACK = 1.0  # seconds by which a file that holds a clip alone may be longer than the clip
_QUALITY = 95  # of JPEG
_MICRO = 1_000_000  # FFmpeg's unit of a container's time


@dataclass(frozen=True, slots=True)
class Bad:
    """A medium from which nothing could be made."""

    file: str
    why: str


def provide(medium: Medium, made: Path, id: str) -> Path | Bad:
    """Where the medium lies: in the publisher's own file, or in one that is made below `made`.

    Raises OSError where it cannot be written.
    """
    if isinstance(medium, Path):
        return _named(medium)
    name = id.replace("/", "-")
    if isinstance(medium, Frame):
        return _made(made / "frames" / f"{name}.jpg", medium.video, lambda: _jpeg(medium))
    if isinstance(medium, Sound):
        target = made / "audio" / f"{name}.flac"
        if not target.exists() and _is_clip(medium):
            return _named(medium.file)
        return _made(target, medium.file, lambda: _flac(medium))
    return _made(made / "clouds" / f"{name}.npy", id, lambda: _npy(medium.points))


def _named(path: Path) -> Path | Bad:
    """A file whose name a manifest can hold."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return Bad(os.fsencode(path).decode("utf-8", "backslashreplace"), "its name is not UTF-8")
    return path


def _made(target: Path, source: object, make: Callable[[], bytes]) -> Path | Bad:
    if target.exists():
        return target
    try:
        content = make()
    except Exception as error:
        what = error.what if isinstance(error, CmcrError) else getattr(error, "strerror", None)
        what = what or f"{type(error).__name__}: {error}"
        return Bad(str(source), what.splitlines()[0])
    with replacing(target) as unfinished:
        unfinished.write_bytes(content)
    return target


def _npy(points: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, points.astype(np.float32))
    return file.getvalue()


def _jpeg(frame: Frame) -> bytes:
    """The first picture at or after the middle, as `ffmpeg -ss MIDDLE -frames:v 1` takes it."""
    with _opened(frame.video) as container:
        if not container.streams.video:
            raise SourceError("the file holds no video")
        stream = container.streams.video[0]
        seconds = _seconds(container)
        start = _start(seconds, frame.start)
        length = seconds if start is None else min(CLIP_SECONDS, seconds - start)
        middle = _origin(container) + (start or 0.0) + length / 2
        container.seek(math.floor(middle * _MICRO))
        picture = None
        for picture in container.decode(stream):
            if picture.time is not None and picture.time >= middle:
                break
        if picture is None:
            raise SourceError(f"the video has no picture at its middle, second {middle:.1f}")
        file = io.BytesIO()
        shades = picture.to_ndarray(format="rgb24")  # (height, width, 3)
        Image.fromarray(shades).save(file, "JPEG", quality=_QUALITY, subsampling=0)
        return file.getvalue()


def _flac(sound: Sound) -> bytes:
    """The sound as it is, in 16 bits."""
    import soundfile

    with _opened(sound.file) as container:
        start = _start(_seconds(container), sound.start)
    if start is None:
        with sound.file.open("rb") as opened:
            wave = read_audio(opened)
    else:
        wave = _cut(sound.file, start)
    file = io.BytesIO()
    soundfile.write(file, wave.samples.T, wave.sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def _cut(path: Path, start: float) -> Waveform:
    """CLIP_SECONDS from `start` on."""
    import av

    with _opened(path) as container:
        if not container.streams.audio:
            raise SourceError("the file holds no audio")
        stream = container.streams.audio[0]
        rate = stream.sample_rate
        first = round((_origin(container) + start) * rate)
        end = first + round(CLIP_SECONDS * rate)
        container.seek(math.floor((_origin(container) + start) * _MICRO))
        to_float = av.AudioResampler(format="fltp")  # the rate and the channels stay
        blocks: list[np.ndarray] = []  # each (channels, frames)
        for frame in container.decode(stream):
            at = round((frame.time or 0.0) * rate)
            if at >= end:
                break
            for same in to_float.resample(frame):
                blocks.append(same.to_ndarray()[:, max(0, first - at) : end - at])
    samples = np.concatenate(
        [block for block in blocks if block.size] or [np.empty((1, 0))], axis=1
    )
    if not samples.size:
        raise SourceError(f"the audio ends before second {start:g}, where the clip begins")
    return Waveform(samples.astype(np.float32), rate)


def _is_clip(sound: Sound) -> bool:
    """Whether the file is a recording that needs no cutting: it can be read where it lies."""
    if sound.file.suffix.lower() not in SOUNDS:
        return False
    if sound.start is None:
        return True
    try:
        with _opened(sound.file) as container:
            return _start(_seconds(container), sound.start) is None
    except Exception:
        return False  # whoever makes it says why it cannot


def _start(seconds: float, start: float | None) -> float | None:
    """Where in the file a clip begins that begins at `start` of the whole video.

    None where the file is the clip alone: it is no longer than a clip is, or ends before `start`.
    """
    if start is None or seconds <= CLIP_SECONDS + _SLACK or seconds <= start:
        return None
    return start


@contextmanager
def _opened(path: Path) -> Iterator["InputContainer"]:
    """FFmpeg is handed the bytes and never a name."""
    import av

    with (
        path.open("rb") as file,
        av.open(file, mode="r", options=FFMPEG_OPTIONS, metadata_errors="replace") as container,
    ):
        yield container


def _origin(container: "InputContainer") -> float:
    return (container.start_time or 0) / _MICRO


def _seconds(container: "InputContainer") -> float:
    """How long the file says that it is."""
    if container.duration:
        return float(container.duration) / _MICRO
    streams: list[Any] = [*container.streams.video, *container.streams.audio]
    for stream in streams:
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
    raise SourceError("the file does not say how long it is")
