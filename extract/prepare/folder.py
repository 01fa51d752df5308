"""The files below one or more folders, found by name wherever a publisher or a download put them.

folder = Folder([Path("VGGSound"), Path("metadata")], skip=Path("data/vggss"))
folder.one("vggss.json")                 # the first file of that name
folder.all("captions_*.json")            # every one, in the order of their paths
folder.stems(VIDEOS)["glLQrEijrKg_000300"]
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from cmcr.errors import SourceError, UsageError
from cmcr.extract.media.readers import SUFFIXES

VIDEOS = frozenset([".mp4", ".webm", ".mkv", ".avi", ".mov", ".flv", ".m4v", ".3gp"])
PICTURES = SUFFIXES["image"]
SOUNDS = SUFFIXES["audio"] - VIDEOS
CLOUDS = SUFFIXES["pointcloud"] - {".txt"}


class Folder:
    """An index of all files below `roots`, without those below `skip` and hidden ones.

    Raises UsageError for a root that is no folder.
    """

    def __init__(self, roots: Sequence[Path], skip: Path) -> None:
        for root in roots:
            if not root.is_dir():
                raise UsageError("there is no such folder", where=root, fix="name another --from")
        self.roots = tuple(roots)
        self._files = [path for root in roots for path in _walk(root.absolute(), skip.absolute())]
        self.stems = cache(self._stems)

    def __str__(self) -> str:
        return ", ".join(map(str, self.roots))

    def all(self, *patterns: str) -> list[Path]:
        """The files whose path below a root, or the end of it, matches one of `patterns`."""
        found = []
        for path in self._files:
            if any(fnmatchcase("/" + path, "*/" + pattern) for pattern in patterns):
                found.append(Path(path))
        return found

    def some(self, *patterns: str) -> list[Path]:
        """As `all`. Raises SourceError where there is none."""
        if found := self.all(*patterns):
            return found
        raise SourceError(
            f"there is no {' and no '.join(patterns)}",
            where=self,
            fix="give the folder that has it too: --from can be repeated; "
            "`cmcr prepare --list` says where it is got",
        )

    def one(self, *patterns: str) -> Path:
        """The first of `some`."""
        return self.some(*patterns)[0]

    def _stems(self, suffixes: Collection[str]) -> Mapping[str, Path]:
        """The first file of each name without suffix.

        A file in a folder that is named like a video, `ID.mp4/...`, answers to that name too.
        """
        found: dict[str, Path] = {}
        inside: dict[str, Path] = {}
        for name in self._files:
            stem, suffix = os.path.splitext(os.path.basename(name))
            if suffix.lower() in suffixes:
                path = Path(name)
                found.setdefault(stem, path)
                if path.parent.suffix.lower() in VIDEOS:
                    inside.setdefault(path.parent.stem, path)
        return {**inside, **found}


def _walk(root: Path, skip: Path) -> Iterator[str]:
    """All files, in the order of their paths; links to folders are followed once."""
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(
            name for name in folders if name[0] != "." and Path(folder, name) != skip
        )
        yield from (os.path.join(folder, name) for name in sorted(files) if name[0] != ".")
