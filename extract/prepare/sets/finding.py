"""A clip's picture and sound by the names that publishers and downloads give their files."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from cmcr.extract.prepare.folder import PICTURES, SOUNDS, VIDEOS, Folder
from cmcr.extract.prepare.published import Frame, Sound


def picture(
    folder: Folder, names: Iterable[str], start: float | None = None
) -> Path | Frame | None:
    """The picture of one of `names`, else the middle frame of the video, or of its clip."""
    names = tuple(names)
    if path := _first(folder.stems(PICTURES), names):
        return path
    video = _first(folder.stems(VIDEOS), names)
    return Frame(video, start) if video else None


def sound(folder: Folder, names: Iterable[str], start: float | None = None) -> Sound | None:
    """The recording of one of `names`, else the sound of the video; of its clip from `start` on."""
    names = tuple(names)
    path = _first(folder.stems(SOUNDS), names) or _first(folder.stems(VIDEOS), names)
    return Sound(path, start) if path else None


def youtube_names(video: str, start: float) -> tuple[str, ...]:
    """What files of a clip are called: VGGSound's own `ID_000030`, then as download tools do."""
    first = int(start)
    last = first + 10
    return (
        f"{video}_{first:06d}",
        f"{video}_{first}",
        f"{video}_{first}_{last}",
        f"{video}_{first * 1000}_{last * 1000}",
        video,
        f"Y{video}",
    )


def _first(stems: Mapping[str, Path], names: Iterable[str]) -> Path | None:
    return next((stems[name] for name in names if name in stems), None)
