"""The sources of a recipe, looked at: opened and counted, or what is missing and where it is got.

shelf = Shelf()
found = shelf.find(dataset, store)     # a Source, a Lack, or None where only the work will tell
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cmcr.cli.check.outlook import Dataset, Lack
from cmcr.cli.recipes.pipelines import SourceSection
from cmcr.errors import CmcrError

if TYPE_CHECKING:
    from cmcr.extract import Published, Source

_TRIED = 8  # media of a source that are looked for


class Shelf:
    """Sources by place: one that two encoders embed is opened once."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str | None, ...], Source | Lack] = {}

    def find(self, dataset: Dataset, store: Path) -> "Source | Lack | None":
        """The dataset's source; None for what only a detector, or looking at films, counts."""
        from cmcr.extract import open_regions, open_spans

        wanted = dataset.source
        if wanted.spans:
            if (path := _file(wanted.where)) is not None and not path.exists():
                return not_there(path, wanted.modality)
            if wanted.frames == "scene":
                return None
            return _tried(
                lambda: open_spans(
                    wanted.modality,
                    wanted.where,
                    wanted.pattern,
                    folder=dataset.key.folder(store),
                    **wanted.spans,
                ),
                wanted,
            )
        place = (wanted.modality, wanted.where, wanted.pattern, wanted.up)
        if place not in self._opened:
            self._opened[place] = _opened(wanted)
        source = self._opened[place]
        if isinstance(source, Lack) or not wanted.regions:
            return source
        if wanted.regions.startswith("torchvision"):
            weights = Path(wanted.regions.partition(":")[2]).expanduser()
            if weights.name and not weights.is_file():
                return Lack("the detector's weights are not there", str(weights.absolute()),
                            "give regions: torchvision:CHECKPOINT a file")  # fmt: skip
            return None
        return _tried(
            lambda: open_regions(
                source, wanted.regions or "", dataset.key.folder(store), device="cpu"
            ),
            wanted,
        )


def _opened(wanted: SourceSection) -> "Source | Lack":
    from cmcr.extract import open_source

    path = _file(wanted.where)
    if path is not None and not path.exists():
        return not_there(path, wanted.modality)
    source = _tried(
        lambda: open_source(wanted.modality, wanted.where, wanted.pattern, wanted.up), wanted
    )
    return source if isinstance(source, Lack) else _media(source, wanted) or source


def _tried(open: Callable[[], "Source"], wanted: SourceSection) -> "Source | Lack":
    try:
        return open()
    except CmcrError as error:
        return Lack(error.what, error.where or wanted.where, error.fix or "mend it")


def _file(where: str) -> Path | None:
    """The file or folder that `where` names; None for what ships."""
    if where.startswith("builtin:"):
        return None
    if where.startswith("prompts:"):
        where = where.removeprefix("prompts:").partition(":")[0]
        return Path(where).expanduser() if Path(where).suffix else None
    return Path(where).expanduser()


def _media(source: "Source", wanted: SourceSection) -> Lack | None:
    """A lack where none of the first media that a list names is there."""
    from cmcr.extract import Item

    named = [
        Path(item.uri)
        for item in islice(source.items(), _TRIED)
        if type(item) is Item and item.content is None and "://" not in item.uri
    ]
    if not named or any(path.exists() for path in named):
        return None
    return Lack(
        f"none of the first {len(named)} files that {wanted.where} names is there",
        str(named[0]),
        "bring back the disk or folder that they lie on, or make the list again",
    )


def not_there(path: Path, modality: str) -> Lack:
    """What to do about a source or a file of annotations that is not there."""
    if (one := published_in(path)) is not None:
        return Lack(
            f"the data set {one.name} is not prepared, or not whole",
            str(path.parent.absolute()),
            f"`cmcr prepare {one.name} --from FOLDER`; where it is got: {one.where}",
        )
    return Lack(
        f"there is no such folder or file of {modality}",
        str(path.absolute()),
        "put it there, or name another place in the recipe",
    )


def published_in(path: Path) -> "Published | None":
    """The data set that `cmcr prepare` writes `path` for."""
    from cmcr.extract import published_sets

    for one in published_sets():
        if path.parent.absolute() == one.out.absolute() and (
            path.stem in one.tables
            or (one.classes and path.name == "classes.txt")
            or path.name in {Path(pattern).parts[0] for pattern in one.annotations}
        ):
            return one
    return None
