"""Which files a modality is read from, and how one becomes what an encoder takes.

    files_of("image").suffixes          # cmcr's own: audio, image, pointcloud, text
    reader_of("molecule")               # what a package brings: EncoderSpec(..., readers={...})

A package brings a modality of its own with its encoder, by the same entry point. Two packages that
bring one modality must read it alike, for a store does not say who read its media.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, BinaryIO, NamedTuple

from cmcr.embeddings import Modality, check_modality
from cmcr.errors import UsageError, near

GROUP = "cmcr.encoders"  # of entry points


@dataclass(frozen=True)
class Reader:
    """How a file of a modality becomes an input: `read` is given the open file and its suffix.

    Without `read` the inputs are texts: the lines of a .txt, or the column `text` of a list.
    `examples` are three contents of a file, or three texts, to try encoders on. Picklable.
    """

    suffixes: tuple[str, ...] = (".txt",)
    read: Callable[[BinaryIO, str], Any] | None = None
    examples: tuple[str | bytes, ...] = ()


class Files(NamedTuple):
    """Files of a kind, by their suffixes."""

    name: str
    suffixes: frozenset[str]


SUFFIXES: Mapping[Modality, frozenset[str]] = {
    "audio": frozenset([
        ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf",
        ".m4a", ".aac", ".mp4", ".wma", ".webm", ".mka", ".amr", ".ac3",
    ]),
    "image": frozenset([
        ".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif",
        ".heic", ".heif",  # not read: but failures are seen, and gaps are not
    ]),
    "pointcloud": frozenset([
        ".npy", ".npz", ".ply", ".off", ".obj", ".stl", ".glb", ".xyz", ".txt",
    ]),
    "text": frozenset([".txt"]),
}  # fmt: skip
FILMS = Files("film", frozenset([
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".flv",
    ".wmv", ".3gp",
]))  # fmt: skip
RECORDINGS = Files("audio or film", SUFFIXES["audio"] | FILMS.suffixes)


def reader_of(modality: Modality) -> Reader | None:
    """What reads a modality that a package brings; None for cmcr's own.

    Raises UsageError for one that nothing reads, or that two packages read in two ways.
    """
    if modality in SUFFIXES:
        return None
    found = brought()
    if modality not in found:
        films = "pictures of films are --source image=FOLDER --frames 1, their sound --source "
        raise UsageError(
            f"nothing says how {modality} is read",
            where=f"modality={check_modality(modality)}",
            fix=f"{films}audio=FOLDER --window 10"
            if modality == "video"
            else f"{near(modality, [*SUFFIXES, *found])}; a package can bring it with its encoder, "
            "and `cmcr import` takes embeddings of any modality",
        )
    return found[modality]


def files_of(modality: Modality) -> Files:
    """The files of a modality. Raises as `reader_of`."""
    reader = reader_of(modality)
    return Files(modality, frozenset(reader.suffixes) if reader else SUFFIXES[modality])


def is_textual(modality: Modality) -> bool:
    """Whether the inputs of a modality are texts. Raises as `reader_of`."""
    reader = reader_of(modality)
    return modality == "text" if reader is None else reader.read is None


def brought() -> Mapping[Modality, Reader]:
    """What reads the modalities that installed packages bring."""
    found: dict[Modality, tuple[str, Reader]] = {}
    for entry in sorted(entry_points(group=GROUP)):
        if entry.value.startswith("cmcr."):
            continue
        try:
            readers = getattr(entry.load(), "readers", {})
        except (ImportError, AttributeError):  # `encoder_spec` says so when it is asked for
            continue
        for modality, reader in readers.items():
            first, other = found.setdefault(modality, (entry.name, reader))
            if other != reader:
                raise UsageError(
                    f"{first} and {entry.name} read {modality} in two ways",
                    where=entry.value,
                    fix="uninstall one of the two, or let both name the same Reader",
                )
    return {modality: reader for modality, (_, reader) in found.items()}
