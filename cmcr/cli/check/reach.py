"""What of a recipe can be connected and evaluated with the datasets that there are or will be.

    reach = within_reach(ground, datasets, opened)

A connection needs every dataset that it is trained on or remembers, a table its two datasets, its
connection, its annotations, and rows in the split that it selects.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cmcr.cli.check.outlook import Dataset, Lack, Skipped
from cmcr.cli.check.sources import not_there, published_in
from cmcr.cli.recipes.ground import Ground, connections
from cmcr.cli.recipes.pipelines import (
    ConnectSection,
    EvaluateSection,
    Measured,
    SourceSection,
    parse_place,
)
from cmcr.embeddings import Key
from cmcr.errors import CmcrError

if TYPE_CHECKING:
    from cmcr.extract import Item, Source

_SHOWN = 6  # values of a column


class Reach(NamedTuple):
    """What can be done, what cannot, and what is missing beside datasets."""

    connect: list[ConnectSection]
    evaluate: EvaluateSection
    skipped: list[Skipped]
    lacks: list[Lack]


def within_reach(
    ground: Ground, datasets: Sequence[Dataset], opened: Mapping[SourceSection, "Source"]
) -> Reach:
    """What of the recipe of `ground` can be done once `datasets` without a lack are made."""
    assert ground.recipe is not None
    lost = {one.key for one in datasets if one.lacks and not one.finished}
    there = _there(ground.store) - lost | {one.key for one in datasets if not one.lacks}
    skipped = [Skipped("extract", str(one.key), one.lacks[0].what) for one in datasets if one.lacks]
    named = {one.key for one in datasets}
    connect = []
    for section in ground.recipe.connect:
        if missing := list(_needs(section, there, named)):
            skipped.append(Skipped("connect", section.name, f"no {'; no '.join(missing)}"))
        else:
            connect.append(section)
    made = {section.name for section in connect} | set(connections(ground.store))
    tables = _Tables(there, made, ground.recipe.connect[0].name, datasets, opened)
    able: dict[str, list[Measured]] = {}
    for task in EvaluateSection.model_fields:
        able[task] = []
        for section in getattr(ground.recipe.evaluate, task):
            if why := "; ".join(tables.lacking(section)):
                name = " in ".join(_named(section))
                skipped.append(Skipped(f"evaluate {task.replace('_', '-')}", name, why))
            else:
                able[task].append(section)
    evaluate = ground.recipe.evaluate.model_copy(update=able)
    return Reach(connect, evaluate, skipped, list(dict.fromkeys(tables.lacks)))


def _there(store: Path) -> set[Key]:
    """The finished datasets of the store."""
    from cmcr.embeddings import list_datasets
    from cmcr.embeddings.schema import MANIFEST

    return {key for key in list_datasets(store) if (key.folder(store) / MANIFEST).exists()}


def _needs(section: ConnectSection, there: set[Key], named: set[Key]) -> Iterator[str]:
    """The datasets that a connection is to be made from and that will not be there."""
    config = section.config
    spaces = set(section.spaces)
    for entry in (*config.get("train", ()), *config.get("memory", ()), *config.get("pool", ())):
        meant = {
            key for key in there | named if key.space in spaces and entry in (key.dataset, str(key))
        }
        yield from sorted(map(str, meant - there)) if meant else [entry]


def _named(section: Measured) -> Iterator[str]:
    """The datasets of a table, with the rows that it selects."""
    for place, filters in zip(section.places, section.filters, strict=True):
        yield place + (f" ({' '.join(filters)})" if filters else "")


class _Tables:
    """What tables lack; what that is beside datasets and connections is gathered in `lacks`."""

    def __init__(
        self,
        there: set[Key],
        made: set[str],
        usual: str,
        datasets: Sequence[Dataset],
        opened: Mapping[SourceSection, "Source"],
    ) -> None:
        self.there, self.made, self.usual = there, made, usual
        self.sources = {one.key: opened[one.source] for one in datasets if one.source in opened}
        self.lacks: list[Lack] = []
        self._read: dict[tuple[Path, ...], list[Lack]] = {}

    def lacking(self, section: Measured) -> list[str]:
        """What the table of `section` lacks."""
        names = []
        sides = ("query", section.searched)
        for side, place, filters in zip(sides, section.places, section.filters, strict=True):
            space, modality, dataset = parse_place(place)
            key = Key(space, modality, dataset) if dataset else None
            if key is not None and key not in self.there:
                names.append(f"no {key}")
            elif key is not None:
                names += self._told(self._split(side, filters, key))
        connection = section.connection or self.usual
        if connection not in self.made:
            names.append(f"no connection {connection}")
        return list(dict.fromkeys([*names, *self._told(self._truth(section))]))

    def _told(self, lacks: Sequence[Lack]) -> list[str]:
        self.lacks += lacks
        return [lack.what for lack in lacks]

    def _truth(self, section: Measured) -> list[Lack]:
        paths = tuple(getattr(section, "truth", ()))
        if paths not in self._read:
            self._read[paths] = list(_annotations(paths))
        return self._read[paths]

    def _split(self, side: str, filters: Sequence[str], key: Key) -> list[Lack]:
        """A lack where the rows that the table selects are none of the source's."""
        from cmcr.evaluate import parse_where, values_of

        source = self.sources.get(key)
        if source is None or not filters:
            return []
        where = parse_where(filters)
        seen: dict[str, Counter[str]] = {column: Counter() for column in where}
        kept = 0
        for item in source.items():
            fits = True
            for column, wanted in where.items():
                values = values_of(_cell(item, column))
                seen[column].update(values)
                fits = fits and not values.isdisjoint(wanted)
            kept += fits
        if kept:
            return []
        has = "; ".join(
            f"{column}: {', '.join(value for value, _ in values.most_common(_SHOWN)) or 'nothing'}"
            for column, values in seen.items()
        )
        asked = ", ".join(f"{column}={','.join(values)}" for column, values in where.items())
        place = str(source.description.get("where"))
        one = published_in(Path(place))
        fix = f"select another in {side}_where of the recipe"
        if one is not None:
            fix = f"`cmcr prepare {one.name} --split all --from FOLDER`, or {fix}"
        return [Lack(f"no row of {key} with {asked}; it has {has}", place, fix)]


def _annotations(paths: Sequence[Path]) -> Iterator[Lack]:
    from cmcr.evaluate import read_truth

    for path in paths:
        if not path.exists():
            yield not_there(path, "annotations")
            continue
        try:
            read_truth([path])
        except CmcrError as error:
            yield Lack(error.what, error.where or str(path), error.fix or "bring the file again")


def _cell(item: "Item", column: str) -> object:
    """What the row of the item will have in the column."""
    if column == "text":
        return item.content if isinstance(item.content, str) else None
    if column in ("id", "uri", "label", "group"):
        return getattr(item, column)
    return item.extra.get(column)
