"""Pictures of films and windows of sound as a source: a span is an item, the files another source.

    open_spans("image", "films/", frames=2.0, folder=...)        # what they show every 2 s
    open_spans("image", "films/", frames="scene", folder=...)    # each time it is something else
    open_spans("audio", "talks/", window=10, hop=5)              # of recordings, and films' sound

A place is a folder, a list of paths, or one file. How many spans a file has follows from the
length that its headers tell; for scenes all films are decoded once, and the times are kept in a
file. A file whose length cannot be told is one item, which fails.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from cmcr.embeddings import Modality
from cmcr.embeddings.schema import identity
from cmcr.embeddings.search.where import SPAN
from cmcr.errors import CmcrError, UsageError
from cmcr.extract.items import Item, Refused, local_path
from cmcr.extract.media.readers import FILMS, RECORDINGS
from cmcr.extract.media.video import spans
from cmcr.extract.sources.derived import derive, digest_media
from cmcr.extract.sources.open import open_source
from cmcr.extract.sources.source import Source
from cmcr.extract.spans.measure import SCENE, THUMBNAIL, find_scenes, seconds_of
from cmcr.files import sha256_file

Frames: TypeAlias = float | Literal["scene"]
Span = tuple[float, float]  # start and end, in seconds

LONGEST = 600.0  # seconds of a window
_TAIL = 0.1  # seconds that are not worth a window of their own


def open_spans(
    modality: Modality,
    where: str,
    pattern: str | None = None,
    *,
    frames: Frames | None = None,
    window: float | None = None,
    hop: float | None = None,
    folder: Path,
) -> Source:
    """The spans of what lies at `where`: pictures by `frames`, or windows of sound.

    `frames` are seconds from a picture to the next, or "scene". A window of `window` seconds
    begins every `hop` seconds, by default where the one before ends. Scenes are kept in `folder`.
    Raises UsageError for lengths that make no sense or a modality that has no such spans, and
    what `open_source` raises.
    """
    if frames is not None and (window or hop):
        raise UsageError(
            "--frames makes pictures, --window and --hop make sounds", fix="give one of them"
        )
    if frames is not None:
        _check_frames(modality, frames)
        films = open_source("image", where, pattern, files=FILMS)
        if frames == "scene":
            return _scenes(films, folder)
        return _spans(films, {"frames": {"every": float(frames)}}, partial(_every, frames))
    if window is None:
        raise UsageError("--hop goes with --window", fix="--window 10 --hop 5")
    hop = window if hop is None else hop
    _check_windows(modality, window, hop)
    recordings = open_source("audio", where, pattern, files=RECORDINGS)
    description = {"windows": {"window": float(window), "hop": float(hop)}}
    return _spans(recordings, description, partial(_windows, window, hop))


def _check_frames(modality: Modality, frames: Frames) -> None:
    if modality != "image":
        raise UsageError(
            f"--frames makes pictures of films, not {modality}",
            where=f"--source {modality}=...",
            fix="--source image=FOLDER with an encoder of pictures; the sound of films is "
            "--source audio=FOLDER --window 10",
        )
    if frames != "scene" and not (math.isfinite(frames) and frames >= 0.001):
        raise UsageError(
            f"{frames:g} s are no time from one picture to the next",
            where=f"--frames {frames:g}",
            fix="--frames 2 for a picture every two seconds, or --frames scene",
        )


def _check_windows(modality: Modality, window: float, hop: float) -> None:
    if modality != "audio":
        raise UsageError(
            f"--window makes pieces of sound, not {modality}",
            where=f"--source {modality}=...",
            fix="--source audio=FOLDER; pictures of films are --source image=FOLDER --frames 2",
        )
    if not (0.01 <= window <= LONGEST and 0.01 <= hop <= window):
        raise UsageError(
            f"windows of {window:g} s, one every {hop:g} s, leave something out or hold nothing",
            where=f"--window {window:g} --hop {hop:g}",
            fix=f"a window of 0.01 to {LONGEST:g} s, and a --hop of at most that, "
            "such as --window 10 --hop 5",
        )


def _every(step: float, seconds: float) -> Iterator[Span]:
    """The moments 0, step, 2 step … before the end; each span ends where the next one begins."""
    count = max(1, math.ceil(round(seconds / step, 6)))
    for number in range(count):
        yield _rounded(number * step, min((number + 1) * step, max(seconds, number * step)))


def _windows(window: float, hop: float, seconds: float) -> Iterator[Span]:
    """Windows from 0, hop, 2 hop … on, until one reaches the end; the last one may be shorter."""
    count = 1 + max(0, math.ceil(round((seconds - window - _TAIL) / hop, 6)))
    for number in range(count):
        yield _rounded(number * hop, min(number * hop + window, seconds))


def _rounded(start: float, end: float) -> Span:
    return round(start, 6), round(end, 6)


def _spans(
    files: Source, description: Mapping[str, Any], cut: Callable[[float], Iterator[Span]]
) -> Source:
    """Spans of `files` that follow from how long each is."""

    def items() -> Iterator[Item]:
        for file in files.items():
            found = _seconds(file, files.modality)
            if isinstance(found, Refused):
                yield found
            else:
                yield from spans(file, files.modality, cut(found))

    return _source(files, description, items)


def _source(
    files: Source, description: Mapping[str, Any], items: Callable[[], Iterator[Item]]
) -> Source:
    return replace(
        files,
        name=f"{files.name}-{next(iter(description))}",
        description={**files.description, **description},
        items=items,
        total=sum(1 for _ in items()),
        columns=tuple(dict.fromkeys([*files.columns, *SPAN])),
        numbers=tuple(dict.fromkeys([*files.numbers, *SPAN])),
        ids=None,
    )


def _seconds(file: Item, modality: Modality) -> float | Refused:
    """How long a file is, or the item that says why nobody knows."""
    if isinstance(file, Refused):
        return file
    try:
        status = local_path(file.uri).stat()
        found = _measured(file.uri, status.st_size, status.st_mtime_ns, modality)
    except (OSError, ValueError) as error:
        found = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    if isinstance(found, float):
        return found
    extra = dict(file.extra)
    return Refused(file.id, file.uri, label=file.label, group=file.group, extra=extra, why=found)


@lru_cache(1 << 16)
def _measured(uri: str, size: int, mtime_ns: int, modality: Modality) -> float | str:
    """Seconds, or why nobody knows; a file of the same size and time is not read again."""
    try:
        seconds = seconds_of(Item(uri, uri), modality)
    except CmcrError as error:
        return error.what
    except Exception as error:  # decoders raise what they like
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return seconds if seconds > 0 else "it is 0 seconds long"


def _scenes(films: Source, folder: Path) -> Source:
    """The scenes of `films`, found once: a line of the file has a film's times and its length."""
    decisive = {"films": digest_media(films), "scene": SCENE, "thumbnail": THUMBNAIL}
    file = folder / f"scenes-{identity(decisive)[:16]}.jsonl"
    derive(file, films, lambda: _found, run=1, told="find scenes of", unit="films")
    description = {"frames": {"scene": SCENE, "thumbnail": THUMBNAIL, "sha256": sha256_file(file)}}

    def items() -> Iterator[Item]:
        with file.open(encoding="utf-8") as lines:
            for film, line in zip(films.items(), lines, strict=True):
                found = json.loads(line)
                if "why" in found:
                    yield Refused(film.id, film.uri, label=film.label, group=film.group,
                                  extra=film.extra, why=found["why"])  # fmt: skip
                else:
                    yield from spans(film, "image", _until_next(found["scenes"], found["seconds"]))

    return _source(films, description, items)


def _found(film: Item) -> Iterator[Mapping[str, Any]]:
    seconds = _seconds(film, "image")
    if isinstance(seconds, Refused):
        yield {"film": film.id, "why": seconds.why}
        return
    try:
        yield {"film": film.id, "seconds": seconds, "scenes": find_scenes(film)}
    except Exception as error:  # decoders raise what they like
        what = error.what if isinstance(error, CmcrError) else f"{type(error).__name__}: {error}"
        yield {"film": film.id, "why": what.partition("\n")[0]}


def _until_next(starts: Sequence[float], seconds: float) -> Iterator[Span]:
    ends = [*starts[1:], max(seconds, *starts)]
    yield from (_rounded(*times) for times in zip(starts, ends, strict=True))
