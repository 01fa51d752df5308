"""Inputs decoded and preprocessed in processes that can be killed, one input at a time each.

    decoders = Decoders(Work({"clip": encoder}, limits, roots=[]), workers=2, imports=[...])
    tensor = await decoders.prepare("clip", "image", item)     # ServiceError for no picture

A file that hangs, or ends two processes that decode it, costs its own request, and the process is
replaced at once. Texts need no decoding and wait for no picture.
"""

import asyncio
import io
import logging
import math
import queue
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from cmcr.embeddings import Modality
from cmcr.errors import CmcrError
from cmcr.extract import (
    Decoding,
    Encoder,
    Item,
    TimedOut,
    Waveform,
    Worker,
    WorkerKilled,
    find_media,
    niceness,
    start_worker,
)
from cmcr.serve.limits import Limits
from cmcr.serve.schemas import ServiceError

log = logging.getLogger(__name__)

_TO_START = 60.0  # seconds for a process to have imported what it needs
_PREVIEW_POINTS = 2_048
_WIDEST = 16  # numbers a point
Mark = Callable[[int], None]


class Work:
    """What runs in a process: a task to (what failed or was made, a tensor). Picklable."""

    def __init__(
        self, encoders: Mapping[str, Encoder], limits: Limits, roots: Sequence[Path]
    ) -> None:
        self.limits, self.roots = limits, roots
        self.niceness = niceness(encoders.values())
        self.decodings = {
            (space, modality): Decoding(encoder, modality)
            for space, encoder in encoders.items()
            for modality in encoder.modalities
        }

    def __call__(self, task: tuple[Any, ...], mark: Mark) -> tuple[Any, Tensor | None]:
        """("prepare", space, modality, item) or ("media", modality, uri)."""
        kind, *about = task
        try:
            return (None, self.prepare(*about)) if kind == "prepare" else (self.media(*about), None)
        except Exception as error:  # decoders raise what they like
            return ("failed", type(error).__name__, _first_line(error)), None

    def prepare(self, space: str, modality: Modality, item: Item) -> Tensor:
        """The input as the encoder's batches are made of."""
        decoding = self.decodings[space, modality]
        if modality == "image" and isinstance(item.content, bytes):
            _refuse_many_pixels(item.content, self.limits.pixels)
        if modality == "audio" and isinstance(item.content, bytes):
            self.refuse_long(_seconds(item.content))
        if modality == "pointcloud" and isinstance(item.content, bytes):
            self.refuse_many(_points(item.content, Path(item.uri).suffix))
        _, decoded = decoding.decode(item)
        if isinstance(decoded, Waveform):
            self.refuse_long(decoded.samples.shape[1] / decoded.sample_rate)
        elif isinstance(decoded, np.ndarray):
            self.refuse_many(len(decoded))
        return decoding.preprocess(modality, decoded)

    def refuse_long(self, seconds: float) -> None:
        """Raises for more sound than the server takes."""
        if seconds > self.limits.seconds:
            most = self.limits.seconds
            raise _TooLargeError(f"{seconds:,.0f} s of sound, {most:g} are the most")

    def refuse_many(self, points: int) -> None:
        """Raises for more points than the server takes."""
        if points > self.limits.points:
            raise _TooLargeError(f"{points:,} points, {self.limits.points:,} are the most")

    def media(self, modality: Modality, uri: str) -> tuple[str, str, bytes]:
        """("made", type, bytes) of what `uri` names: PNG, WAV, or points as JSON."""
        found = find_media(modality, [uri], self.roots)[uri]
        if isinstance(found, Exception):
            raise found
        return ("made", *_encoded(found))


class _TooLargeError(Exception):
    """Media that are whole and larger than the server takes."""


def _first_line(error: Exception) -> str:
    told = error.what if isinstance(error, CmcrError) else str(error)
    return told.strip().partition("\n")[0]


def _refuse_many_pixels(content: bytes, most: int) -> None:
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            width, height = Image.open(io.BytesIO(content)).size
        except Exception:  # what it is, is said where it is decoded
            return
    if width * height > most:
        raise _TooLargeError(f"{width} x {height} pixels, {most:,} are the most")


def _seconds(content: bytes) -> float:
    """As the header has it; 0 where libsndfile cannot tell."""
    import soundfile

    try:
        return float(soundfile.info(io.BytesIO(content)).duration)
    except Exception:  # what it is, is said where it is decoded
        return 0.0


def _points(content: bytes, suffix: str) -> int:
    """As the header of an array has it, of wider rows as many as fit; 0 where none can tell."""
    file: IO[bytes] = io.BytesIO(content)
    header: Any = np.lib.format
    try:
        if suffix == ".npz":
            archive = zipfile.ZipFile(file)
            file = archive.open(archive.namelist()[0])
        elif suffix != ".npy":
            return 0
        old = header.read_magic(file) == (1, 0)
        shape = (header.read_array_header_1_0 if old else header.read_array_header_2_0)(file)[0]
        return int(max(shape[0], math.prod(shape) // _WIDEST))
    except Exception:  # what it is, is said where it is decoded
        return 0


def _encoded(decoded: Any) -> tuple[str, bytes]:
    from PIL import Image

    file = io.BytesIO()
    if isinstance(decoded, Waveform):
        import soundfile

        soundfile.write(file, decoded.samples.T, decoded.sample_rate, "PCM_16", format="WAV")
        return "audio/wav", file.getvalue()
    if isinstance(decoded, Image.Image):
        decoded.convert("RGBA" if "A" in decoded.getbands() else "RGB").save(file, "PNG")
        return "image/png", file.getvalue()
    if isinstance(decoded, np.ndarray):
        step = -(-len(decoded) // _PREVIEW_POINTS)
        points = ",".join(
            "[" + ",".join(f"{value:.4g}" for value in point) + "]" for point in decoded[::step]
        )
        return "application/json", f"[{points}]".encode()
    return "text/plain; charset=utf-8", str(decoded).encode()


class Decoders:
    """Processes that wait for work; a thread stands before each while it has some."""

    def __init__(self, work: Work, workers: int, imports: Sequence[str]) -> None:
        self.work, self.imports = work, [__name__, *imports]
        self.idle: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        self.threads = ThreadPoolExecutor(workers, "decode")
        self.aside = ThreadPoolExecutor(1, "texts")
        for _ in range(workers):
            self.idle.put(self._started())

    async def prepare(self, space: str, modality: Modality, item: Item) -> Tensor:
        """The preprocessed input. Raises ServiceError 400 for what cannot be read."""
        loop = asyncio.get_running_loop()
        if isinstance(item.content, str):
            try:
                return await loop.run_in_executor(
                    self.aside, self.work.prepare, space, modality, item
                )
            except Exception as error:
                raise _failed(type(error).__name__, _first_line(error)) from error
        task = ("prepare", space, modality, item)
        answer, tensor = await loop.run_in_executor(self.threads, self._do, task)
        if tensor is None:
            raise _failed(*answer[1:])
        return tensor

    async def media(self, modality: Modality, uri: str) -> tuple[str, bytes]:
        """Type and bytes of an item's media. Raises ServiceError 404 where they are gone."""
        loop = asyncio.get_running_loop()
        answer, _ = await loop.run_in_executor(self.threads, self._do, ("media", modality, uri))
        if answer[0] == "failed":
            log.info("%s %s: %s %s", modality, uri, *answer[1:])
            if answer[1] == TimedOut.__name__:
                raise ServiceError(504, "the media of this item take too long", code="media_slow")
            raise ServiceError(404, "the media of this item are not there", code="media_gone")
        return answer[1], answer[2]

    def close(self) -> None:
        """End all processes."""
        self.threads.shutdown(cancel_futures=True)
        self.aside.shutdown(cancel_futures=True)
        while not self.idle.empty():
            if (process := self.idle.get()) is not None:
                process.end()

    def _started(self) -> Worker:
        process = start_worker(self.imports)
        ready = False
        try:
            process.take_up(self.work, self.work.niceness)
            if not process.socket.poll(_TO_START):
                raise CmcrError("a process that decodes inputs has not started")
            kind, answer, _ = process.receive()
            ready = kind != "error"
        finally:
            if not ready:
                process.end()
        if not ready:
            raise answer
        return process

    def _do(self, task: tuple[Any, ...]) -> tuple[Any, Tensor | None]:
        """In a thread: one task in an idle process; in a new one too where that ended.

        Somebody else may have killed the first, or what it was forked from and all with it.
        """
        for fresh in (False, True):
            try:
                return self._once(task, fresh)
            except (EOFError, OSError):
                log.warning("a process that decodes inputs has ended, and is replaced")
        return ("failed", WorkerKilled.__name__, "decoding it ended the process"), None

    def _once(self, task: tuple[Any, ...], fresh: bool) -> tuple[Any, Tensor | None]:
        process, well = self.idle.get(), False
        try:
            if fresh and process is not None:
                process.end()
                process = None
            process = process or self._started()
            process.give(task)
            if not process.socket.poll(self.work.limits.item):
                why = f"it took longer than {self.work.limits.item:g} s"
                return ("failed", TimedOut.__name__, why), None
            kind, answer, tensor = process.receive()
            well = True
        except CmcrError as error:
            log.error("%s", error)
            raise ServiceError(503, "nothing decodes inputs at the moment", code="no_worker",
                               headers={"Retry-After": "5"}) from error  # fmt: skip
        finally:
            if process is not None and not well:
                process.end()
            self.idle.put(process if well else None)
        if kind == "error":
            raise answer
        return answer, tensor


def _failed(kind: str, message: str) -> ServiceError:
    if kind == _TooLargeError.__name__:
        return ServiceError(413, message, "input", "too_large")
    return ServiceError(400, f"the input cannot be read: {message}", "input", kind)
