"""Spans of films and of long recordings as inputs: a file is read on from one span to the next.

    with files_open():                  # what is opened within is closed at its end
        known, picture = span(item)     # of a film: what it shows at `start`
        known, sound = span(item)       # of a recording, or of a film's sound: `start` to `end`

Runs in worker processes, as `decode` does. A file is opened once a batch, at the key frame before
its first span, and decoded from there to the end of its last one; no more of it is in memory than
a picture, or the sound of one window. What is wrong with a file is one failure a batch, of the
first span that it hits.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cmcr.embeddings import Modality
from cmcr.errors import SourceError
from cmcr.extract.items import Decoded, Item, Waveform
from cmcr.extract.media.audio import FFMPEG_OPTIONS, refuse_infinite
from cmcr.extract.media.crops import RecordedError
from cmcr.extract.media.decode import opened

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from PIL.Image import Image


MICRO = 1_000_000  # FFmpeg's unit of a container's time
_NEAR = 1e-6  # seconds: times that are the same but for rounding
STILL = 1.0  # seconds for which the last picture may stay: a container's length is that of all
MISSING = 0.2  # seconds that a recording may be shorter than it says
_RUN_UP = 0.5  # seconds in which a decoder of sound comes to give what it gives from the beginning
_BLOCK = 1 << 16  # samples read at once


@dataclass(frozen=True, eq=False, slots=True)
class Recording:
    """What several spans share. Equal to itself alone, so that a batch knows it."""

    item: Item


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Item):
    """Some seconds of a film or a recording: the picture at `start`, or the sound up to `end`."""

    recording: Recording
    modality: Modality
    start: float
    end: float


def spans(item: Item, modality: Modality, times: Iterable[tuple[float, float]]) -> Iterator[Span]:
    """The spans of a file, which has `times` from its beginning on, in their order."""
    recording = Recording(item)
    for start, end in times:
        yield Span(
            id=f"{item.id}#t={told_seconds(start)}",
            uri=item.uri,
            label=item.label,
            group=item.group,
            extra={**item.extra, "start": start, "end": end},
            recording=recording,
            modality=modality,
            start=start,
            end=end,
        )


def told_seconds(seconds: float) -> str:
    """Such as `12.5`, to the millisecond."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


_files: dict[tuple[Recording, Modality], "_Film | _Sound | Exception"] = {}


@contextmanager
def files_open() -> Iterator[None]:
    """Files that `span` opens stay open within this block, one at a time."""
    try:
        yield
    finally:
        _close()


def _close() -> None:
    for file in _files.values():
        if not isinstance(file, Exception):
            file.close()
    _files.clear()


def span(item: Span) -> tuple[Item, Decoded]:
    """The item as it is written, and its picture or sound. To be called in order, in `files_open`.

    Raises SourceError, OSError or the decoder's own error for a file that cannot be read at this
    span; RecordedError where an earlier one has raised that.
    """
    key = item.recording, item.modality
    if key not in _files:
        _close()
    try:
        if key not in _files:
            _files[key] = _Film(item) if item.modality == "image" else _Sound(item)
        file = _files[key]
        if isinstance(file, Exception):
            raise RecordedError("the file cannot be read")
        with explained():
            decoded = file.cut(item.start, item.end)
    except RecordedError:
        raise
    except Exception as error:
        if isinstance(held := _files.get(key), _Film | _Sound):
            held.close()
        _files[key] = error
        raise
    known = Item(item.id, item.uri, label=item.label, group=item.group, extra=item.extra)
    return known, decoded


@contextmanager
def explained() -> Iterator[None]:
    """FFmpeg's errors without what it logged last, which may be another file's."""
    import av

    try:
        yield
    except (av.FFmpegError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"FFmpeg cannot read it: {why}") from error


def container_of(file: BinaryIO) -> "InputContainer":
    """FFmpeg is handed the bytes and never a name."""
    import av

    file.seek(0)
    return av.open(file, mode="r", options=FFMPEG_OPTIONS, metadata_errors="replace")


def origin_of(container: "InputContainer") -> float:
    """The second at which a file says that it begins."""
    return (container.start_time or 0) / MICRO


def pictures_of(container: "InputContainer") -> "VideoStream":
    """What a film shows, no cover. Raises SourceError where it shows nothing."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic:
            return stream
    raise SourceError("the film has no picture")


def sounds_of(container: "InputContainer") -> "AudioStream":
    """What is to be heard. Raises SourceError where nothing is."""
    for stream in container.streams.audio:
        if stream.codec_context is not None:
            return stream
    raise SourceError("the file has no sound")


def timed(
    container: "InputContainer", stream: "VideoStream"
) -> Iterator[tuple[float, "VideoFrame"]]:
    """The pictures with their seconds from the film's beginning; counted where they do not say."""
    origin, step = origin_of(container), 1 / float(stream.average_rate or 25)
    time = -step
    for frame in container.decode(stream):
        time = time + step if frame.time is None else frame.time - origin
        yield time, frame


class _Opened:
    """A file that is open, and what else is to be closed with it."""

    def __init__(self, item: Span) -> None:
        self.held = ExitStack()
        try:
            self.file = self.held.enter_context(opened(item.recording.item))
            with explained():
                self.begin(item.start)
        except BaseException:
            self.close()
            raise

    def begin(self, at: float) -> None:
        """Get ready to read from second `at` on."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        self.held.close()


class _Film(_Opened):
    """A film and the picture that it shows."""

    def begin(self, at: float) -> None:
        self.frames = self._from(at)
        self.shown = next(self.frames, None)
        if at > 0 and (self.shown is None or self.shown[0] > at + _NEAR):  # no index to seek by
            self.frames = self._from(0)
            self.shown = next(self.frames, None)
        self.next = next(self.frames, None)

    def _from(self, at: float) -> Iterator[tuple[float, "VideoFrame"]]:
        container = self.held.enter_context(container_of(self.file))
        stream = pictures_of(container)
        stream.codec_context.thread_count = 1  # there is a worker for every core
        self.still = max(STILL, 2 / float(stream.average_rate or 25))
        if at > 0:
            container.seek(int((origin_of(container) + at) * MICRO))
        return timed(container, stream)

    def cut(self, start: float, end: float) -> "Image":
        """What the film shows at `start`, upright."""
        from PIL import Image

        while self.next is not None and self.shown and self.next[0] <= start + _NEAR:
            self.still = max(self.still, self.next[0] - self.shown[0])
            self.shown, self.next = self.next, next(self.frames, None)
        if self.shown is None:
            raise SourceError("the film shows no picture")
        time, frame = self.shown
        if self.next is None and start > time + self.still:
            raise SourceError(f"cut short: the last picture is at second {time:.1f}")
        picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
        return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


class _Sound(_Opened):
    """A recording and what was read of it but not yet let go: (channels, samples) from `first`."""

    def begin(self, at: float) -> None:
        import soundfile

        try:
            sound = self.held.enter_context(soundfile.SoundFile(self.file))
        except soundfile.LibsndfileError:
            self._begin_film(at)
            return
        self.rate = sound.samplerate
        self.first = sound.seek(min(round(at * self.rate), sound.frames))
        self.buffer = np.empty((sound.channels, 0), np.float32)
        self.blocks = _libsndfile_blocks(sound)

    def _begin_film(self, at: float) -> None:
        for from_there in (max(0.0, at - _RUN_UP), 0.0):
            container = self.held.enter_context(container_of(self.file))
            stream = sounds_of(container)
            self.rate = stream.sample_rate
            if from_there > 0:
                container.seek(int((origin_of(container) + from_there) * MICRO))
            blocks = _ffmpeg_blocks(container, stream)
            time, self.buffer = next(blocks, (0.0, np.empty((1, 0), np.float32)))
            self.first = round(time * self.rate)
            self.blocks = (block for _, block in blocks)
            if self.first <= round(at * self.rate) and self.buffer.size:
                return  # else there is no index to seek by, or the sound begins later

    def cut(self, start: float, end: float) -> Waveform:
        """The sound from `start` to `end`, as it lies there; silence before it begins."""
        first, last = round(start * self.rate), round(end * self.rate)
        if first > self.first:
            self._let_go(first - self.first)
        parts, length = [self.buffer], self.buffer.shape[1]
        while self.first + length < last and (block := next(self.blocks, None)) is not None:
            refuse_infinite(block)
            if self.first + length + block.shape[1] > first:
                parts.append(block)
                length += block.shape[1]
            else:  # all of it lies before
                self.first += block.shape[1]
        self.buffer = np.concatenate(parts, axis=1)
        if first > self.first:
            self._let_go(first - self.first)
        samples = self.buffer[:, : max(0, last - self.first)]
        there = self.first + samples.shape[1]
        if there < last - MISSING * self.rate:
            raise SourceError(f"cut short: the sound ends at second {there / self.rate:.1f}")
        if there <= first:
            raise SourceError(f"nothing is to be heard after second {there / self.rate:.1f}")
        silence = min(self.first, last) - first
        if silence > 0:
            samples = np.pad(samples, ((0, 0), (silence, 0)))
        return Waveform(np.ascontiguousarray(samples), self.rate)

    def _let_go(self, samples: int) -> None:
        gone = min(samples, self.buffer.shape[1])
        self.buffer = self.buffer[:, gone:]
        self.first += gone


def _libsndfile_blocks(sound: Any) -> Iterator[np.ndarray]:
    import soundfile

    try:
        while len(block := sound.read(_BLOCK, dtype="float32", always_2d=True)):
            yield block.T
    except soundfile.LibsndfileError as error:
        raise SourceError(f"damaged: {error.error_string}") from error


def _ffmpeg_blocks(
    container: "InputContainer", stream: "AudioStream"
) -> Iterator[tuple[float, np.ndarray]]:
    """What `stream` decodes to, (channels, samples) float32, with its seconds from the beginning.

    Only those of the first block count.
    """
    import av

    to_float = av.AudioResampler(format="fltp")  # the rate and the channels stay
    origin = origin_of(container)
    for frame in container.decode(stream):
        time = 0.0 if frame.time is None else frame.time - origin
        for same in to_float.resample(frame):
            yield time, same.to_ndarray()
