"""How long films and recordings are, and where the scenes of a film begin.

    seconds_of(item, "audio")     # by the headers
    find_scenes(item)             # [0.0, 12.4, ...], the whole film decoded

Runs in the main process, before anything is embedded.
"""

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.items import Item
from cmcr.extract.media.audio import refuse_cut
from cmcr.extract.media.decode import opened
from cmcr.extract.media.video import (
    MICRO,
    MISSING,
    STILL,
    container_of,
    explained,
    origin_of,
    pictures_of,
    sounds_of,
    timed,
)

if TYPE_CHECKING:
    from av.container import InputContainer

SCENE = 0.1  # of the way from black to white: the mean difference of two pictures of two scenes
THUMBNAIL = 32  # pixels a side of the pictures that are compared

_CLOCK = re.compile(r"([0-9]+):([0-9]{2}):([0-9]{2}(?:\.[0-9]+)?)")


def _length(container: "InputContainer", stream: Any) -> float:
    """Seconds of a stream by its own word, its tag's, or its packets'.

    A container's length is that of the longest of its streams, so it is the length of an only one.
    """
    origin = origin_of(container)
    late = float((stream.start_time or 0) * (stream.time_base or 0)) - origin
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base) + late
    whole = container.duration / MICRO if container.duration else None
    if whole is not None and len(container.streams) == 1:
        return whole
    if whole is not None and late < MISSING and (told := _tagged(stream.metadata)):
        return min(told - origin, whole)
    own = longest = None
    for packet in container.demux():
        if packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
            longest = end if longest is None else max(end, longest)
            if packet.stream is stream:
                own = end if own is None else max(end, own)
    if whole is not None and (longest is None or longest < whole - STILL):
        return whole  # the file is cut short, which its spans tell
    if own is None:
        raise SourceError("nothing says how long it is")
    return own


def _tagged(metadata: Mapping[str, str]) -> float | None:
    """Seconds by the tag that a Matroska file may have for each stream, as `00:01:04.128000000`."""
    for name, value in metadata.items():
        if name.partition("-")[0] == "DURATION" and (told := _CLOCK.fullmatch(value)):
            hours, minutes, seconds = map(float, told.groups())
            return hours * 3600 + minutes * 60 + seconds
    return None


def seconds_of(item: Item, modality: Modality) -> float:
    """How long a film's picture (`image`) or a file's sound (`audio`) is, from its headers.

    Raises SourceError for a file that is damaged, or has no picture or no sound; OSError for one
    that cannot be read.
    """
    with opened(item) as file:
        if modality == "audio":
            refuse_cut(file)
            if (length := _libsndfile_seconds(file)) is not None:
                return length
        with explained(), container_of(file) as container:
            find = pictures_of if modality == "image" else sounds_of
            return _length(container, find(container))


def _libsndfile_seconds(file: BinaryIO) -> float | None:
    import soundfile

    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(file) as sound:
        return float(sound.frames / sound.samplerate)
    return None


def find_scenes(item: Item) -> list[float]:
    """When a film shows something else, in seconds: its first picture, and each that differs.

    By more than `SCENE` from the last one found, in the mean over thumbnails of `THUMBNAIL` pixels
    a side, in red, green and blue. The whole film is decoded. Raises as `span` does, and
    SourceError for a film of which no picture can be decoded.
    """
    found: list[float] = []
    last: np.ndarray | None = None
    with opened(item) as file, explained(), container_of(file) as container:
        stream = pictures_of(container)
        stream.thread_type = "AUTO"
        for time, frame in timed(container, stream):
            small = frame.reformat(THUMBNAIL, THUMBNAIL, "rgb24", interpolation="AREA")
            pixels = small.to_ndarray().astype(np.float32) / 255  # (32, 32, 3)
            if last is None or np.abs(pixels - last).mean() > SCENE:
                found.append(round(max(time, 0.0), 6))
                last = pixels
    if not found:
        raise SourceError("the film shows no picture")
    return found
