"""Where a command works: the recipe that counts, the store, and the connection in it.

    ground = ground_to_connect(recipes(pipeline, no_pipeline), pipeline, given, store)
    say(ground.line("connect", "digits"))  # connect   recipe digits, store S, connection digits

A recipe counts where `--pipeline` names it, or where nothing that is named goes past it: flags that
name sources, spaces, datasets or a store which it does not have borrow nothing from it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmcr.cli.recipes.pipelines import (
    ConnectSection,
    Pipeline,
    Pipelines,
    load_pipelines,
    parse_place,
)
from cmcr.errors import UsageError, near

if TYPE_CHECKING:
    from cmcr.embeddings import Key


STORE = Path("store")  # where neither a flag nor a recipe names one


class Ground(NamedTuple):
    """The recipe that counts, if one does, and the store."""

    name: str | None
    recipe: Pipeline | None
    store: Path

    def line(self, command: str, *connections: str) -> str:
        """The first line of a command: what it works with."""
        recipe = f"recipe {self.name}" if self.recipe else "no recipe"
        made = f", connection {', '.join(connections)}" if connections else ""
        return f"{command:<9} {recipe}, store {self.store}{made}"


def recipes(pipeline: str | None, no_pipeline: bool) -> Pipelines | None:
    """The recipes there are; None where none is to count. Raises UsageError for both flags."""
    if pipeline is not None and no_pipeline:
        raise UsageError("--pipeline names a recipe, --no-pipeline wants none", fix="give one")
    return None if no_pipeline else load_pipelines()


def ground_to_extract(
    pipelines: Pipelines | None,
    pipeline: str | None,
    encoder: str,
    sources: Sequence[str],
    store: Path | None,
) -> Ground:
    """Where `encoder` embeds `sources`, or those of the first recipe that has the encoder."""
    for name, recipe in _asked(pipelines, pipeline):
        if pipeline is not None or (not sources and encoder in recipe.encoders):
            return Ground(name, recipe, store or recipe.store)
    return Ground(None, None, store or STORE)


def ground_to_connect(
    pipelines: Pipelines | None, pipeline: str | None, given: dict[str, Any], store: Path | None
) -> tuple[Ground, ConnectSection | None]:
    """Where `cmcr connect` works, and the section of the recipe that the flags in `given` beat."""
    if pipelines and pipeline is None and "spaces" not in given:
        pipelines.named()  # raises where the one that is meant cannot be used
    for name, recipe in _asked(pipelines, pipeline):
        section = recipe.connection(via=given.get("via"), spaces=given.get("spaces"))
        if pipeline is not None or (
            section is not None
            and all(set(given.get(field) or ()) <= _named(section, field) for field in _DATASETS)
            and (_own(recipe, store) or _has(store, section.config | given))
        ):
            return Ground(name, recipe, store or recipe.store), section
    return Ground(None, None, store or STORE), None


_DATASETS = ("train", "memory", "pool")


def _named(section: ConnectSection, field: str) -> set[str]:
    """The datasets of `field` in the section: an entry in full goes by its dataset too."""
    entries = section.config.get(field, ())
    return {*entries, *(entry.rpartition(":")[2] for entry in entries)}


def _has(store: Path | None, fields: Mapping[str, Any]) -> bool:
    """Whether `store` has the spaces that are to be connected, with all datasets that are named."""
    from cmcr.embeddings import list_datasets

    spaces = fields["spaces"]
    keys = [key for key in list_datasets(store or STORE) if key.space in spaces]
    bridges = {
        (key.space, key.dataset) for key in keys if fields.get("via") in (None, key.modality)
    }
    return (
        {key.space for key in keys} == set(spaces)
        and all(
            sum((space, dataset) in bridges for space in spaces) > 1
            for dataset in fields.get("train") or ()
        )
        and {*map(str, keys), *(key.dataset for key in keys)}
        >= {*(fields.get("memory") or ()), *(fields.get("pool") or ())}
    )


def ground_to_measure(
    pipelines: Pipelines | None,
    pipeline: str | None,
    store: Path | None,
    connection: str | None,
    places: Collection[str | None],
    task: str = "retrieval",
) -> Ground:
    """Where a connection is evaluated or projected with.

    `places` are what the flags name as SPACE/MODALITY[:DATASET]; `task` is a list of the recipe's
    `evaluate` section.
    """
    spaces = {parse_place(place)[0] for place in places if place}
    named = pipeline is not None
    if pipelines and not (named or store or connection or spaces):
        pipelines.named()
    fitting = [
        Ground(name, recipe, store or recipe.store)
        for name, recipe in _asked(pipelines, pipeline)
        if named
        or (
            spaces <= recipe.spaces
            and (_own(recipe, store) or _measurable(recipe, store, connection, task))
        )
    ]
    for ground in fitting:
        if named or connection is None or _knows(ground, connection):
            return ground
    outside = Ground(None, None, store or STORE)
    misspelt = store is None and connection is not None and not _is_made(STORE, connection)
    return fitting[0] if fitting and misspelt else outside


def _measurable(recipe: Pipeline, store: Path | None, connection: str | None, task: str) -> bool:
    """Whether a store that is not the recipe's has something that the recipe measures."""
    from cmcr.embeddings import list_datasets

    there = set(map(str, list_datasets(store or STORE)))
    for section in getattr(recipe.evaluate, task):
        name = connection or section.connection or recipe.connect[0].name
        if set(section.places) <= there and _is_made(store or STORE, name):
            return True
    return False


def _knows(ground: Ground, connection: str) -> bool:
    assert ground.recipe is not None
    return connection in [section.name for section in ground.recipe.connect] or _is_made(
        ground.store, connection
    )


def _asked(pipelines: Pipelines | None, pipeline: str | None) -> Iterator[tuple[str, Pipeline]]:
    if pipelines is None:
        return
    if pipeline is None:
        yield from pipelines.candidates()
    else:
        yield pipeline, pipelines.named(pipeline)


def _own(recipe: Pipeline, store: Path | None) -> bool:
    return store is None or store.resolve() == recipe.store.resolve()


def connections(store: Path) -> list[str]:
    """The finished connections of `store`, by name."""
    return sorted(path.parent.name for path in store.glob("connections/*/config.json"))


def _is_made(store: Path, connection: str) -> bool:
    """Whether the store has `connection`, or it is a folder."""
    return any((place / "config.json").exists() for place in _folders(store, connection))


def _folders(store: Path, connection: str) -> tuple[Path, Path]:
    return store / "connections" / connection, Path(connection)


def find_connection(ground: Ground, connection: str | None, spaces: Collection[str] = ()) -> Path:
    """The folder of `connection`, a name or a folder.

    Without one it is the recipe's first that has `spaces`, else the only one of the store. Raises
    UsageError when there is no such connection, or several and none is named.
    """
    there = connections(ground.store)
    if connection is None:
        usual = next(
            (one.name for one in (ground.recipe.connect if ground.recipe else ())
             if set(spaces) <= set(one.spaces)),
            None,
        )  # fmt: skip
        if usual not in there and len(there) == 1:
            return ground.store / "connections" / there[0]
        if usual is None and there:
            raise UsageError(
                f"the store has {len(there)} connections, and none is named",
                where=ground.store / "connections",
                fix=f"give --connection, one of: {', '.join(there)}",
            )
        connection = usual
    for folder in _folders(ground.store, connection) if connection else ():
        if folder.is_dir():
            return folder
    raise UsageError(
        f"there is no connection {connection!r}" if connection else "there is no connection",
        where=ground.store / "connections",
        fix=near(connection or "", there)
        + "; make one with `cmcr connect`, or name its folder with --connection",
    )


def find_key(store: Path, place: str) -> "Key":
    """The dataset that SPACE/MODALITY[:DATASET] names; the only one where DATASET is left out.

    Raises UsageError when there are several to choose from, or none.
    """
    from cmcr.embeddings import Key, list_datasets

    space, modality, dataset = parse_place(place)
    there = list_datasets(store)
    fitting = [key for key in there if (key.space, key.modality) == (space, modality)]
    if dataset is not None:
        key = Key(space, modality, dataset)
        if key not in there:
            fix = near(str(key), map(str, there))
            raise UsageError(f"the store has no dataset {key}", where=store, fix=fix)
        return key
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        f"{place} could be {len(fitting)} datasets",
        where=store,
        fix=near(place, map(str, fitting or there)),
    )


def find_checkpoints(ground: Ground, given: Sequence[str]) -> dict[str, Path]:
    """Weights by space: those of the recipe, and `SPACE=FILE` strings before them.

    Raises UsageError for a string without "=".
    """
    files = {
        section.space: section.checkpoint
        for section in (ground.recipe.extract if ground.recipe else ())
        if section.checkpoint
    }
    for text in given:
        space, equals, file = text.partition("=")
        if not (space and equals and file):
            raise UsageError(f"{text!r} is not SPACE=FILE", fix="such as --checkpoint clip=clip.pt")
        files[space] = Path(file)
    return files
