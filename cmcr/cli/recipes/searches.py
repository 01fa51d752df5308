"""What `cmcr evaluate retrieval` and `gap` search: flags, else a recipe, else the only datasets.

searches = choose_searches(ground, connection, query, gallery)
for done in evaluate_each(evaluate_retrieval, searches, ground.store): ...
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmcr.cli.recipes.ground import Ground, connections, find_connection, find_key
from cmcr.cli.recipes.pipelines import parse_place
from cmcr.errors import UsageError

if TYPE_CHECKING:
    from cmcr.connect import Record, SpaceRecord
    from cmcr.embeddings import Key
    from cmcr.evaluate import Evaluated, IndexChoice


class Search(NamedTuple):
    """Two datasets to search in each other, and the folder of the connection to do it with."""

    query: "Key"
    gallery: "Key"
    connection: Path


def names(searches: Sequence[Search]) -> list[str]:
    """The connections that are searched with, each once."""
    return list(dict.fromkeys(search.connection.resolve().name for search in searches))


def choose_searches(
    ground: Ground, connection: str | None, query: str | None, gallery: str | None
) -> list[Search]:
    """What to search: the pairs of the recipe whose connection has been made, with flags in them.

    With `connection`, `query` or `gallery` it is the pairs of one connection, if the recipe has
    some. Where no recipe says it, it is the only dataset of each side. Raises UsageError when there
    is no such connection or dataset, or there are several.
    """
    from cmcr.connect import load_connection

    store = ground.store
    sections = ground.recipe.evaluate.retrieval if ground.recipe else []
    first = ground.recipe.connect[0].name if ground.recipe else None
    if not (connection or query or gallery):
        made = set(connections(store))
        searches = [
            Search(find_key(store, one.query), find_key(store, one.gallery),
                   store / "connections" / str(one.connection or first))
            for one in sections
            if (one.connection or first) in made
        ]  # fmt: skip
        if searches:
            return list(dict.fromkeys(searches))
    named = {parse_place(place)[0] for place in (query, gallery) if place}
    folder = find_connection(ground, connection, named)
    record = load_connection(folder).record
    spaces = {space.name for space in record.spaces}
    fitting = [one for one in sections if {_space(one.query), _space(one.gallery)} <= spaces]
    own = [one for one in fitting if (one.connection or first) == folder.name]
    pairs = [(query or one.query, gallery or one.gallery) for one in own or fitting[:1]]
    if not pairs:
        pairs = [_sides(store, record, query, gallery)]
    return list(
        dict.fromkeys(Search(find_key(store, a), find_key(store, b), folder) for a, b in pairs)
    )


def _space(place: str) -> str:
    return parse_place(place)[0]


def _sides(
    store: Path, record: "Record", query: str | None, gallery: str | None
) -> tuple[str, str]:
    """`query` and `gallery`; one that is not given is the only dataset of its side."""
    if query and gallery:
        return query, gallery
    if len(record.spaces) > 2:
        raise UsageError(
            f"the connection has {len(record.spaces)} spaces, and nothing says which two to search",
            where=store,
            fix="give --query and --gallery",
        )
    first, second = record.spaces
    if query or gallery:
        other = second if _space(query or gallery or "") == first.name else first
        found = _only_dataset(store, other, "--gallery" if query else "--query")
        return (query, found) if query else (found, gallery or "")
    return _only_dataset(store, second, "--query"), _only_dataset(store, first, "--gallery")


def _only_dataset(store: Path, space: "SpaceRecord", flag: str) -> str:
    """The dataset of `space` that is not of the bridge modality, one not trained on if need be."""
    from cmcr.embeddings import list_datasets

    there = [key for key in list_datasets(store) if key.space == space.name]
    other = [key for key in there if key.modality != space.bridge]
    unseen = [key for key in other if str(key) not in space.datasets]
    for keys in (other, unseen):
        if len(keys) == 1:
            return str(keys[0])
    if not there:
        names = {key.space for key in list_datasets(store)}
        raise UsageError(
            f"the store has no dataset of {space.name}, which the connection is for",
            where=store,
            fix=f"extract or import one into it; its spaces: {', '.join(sorted(names)) or 'none'}",
        )
    raise UsageError(
        f"{space.name} has {len(other)} datasets beside the bridge, and none is named",
        where=store,
        fix=f"give {flag}, one of: {', '.join(map(str, there))}",
    )


def evaluate_each(
    evaluate: Callable[..., "Evaluated"],
    searches: Sequence[Search],
    store: Path,
    query_where: Sequence[str] = (),
    gallery_where: Sequence[str] = (),
    **options: Any,
) -> Iterator["Evaluated"]:
    """Each search by `evaluate`: `evaluate_retrieval`, `evaluate_gap` or another of their kind."""
    from cmcr.evaluate import parse_where

    where = {
        "query_where": parse_where(query_where),
        "gallery_where": parse_where(gallery_where),
    }
    for query, gallery, connection in searches:
        yield evaluate(store, connection, query, gallery, **where, **options)


def choose_index(
    factory: str | None, max_memory: str | None, max_query_time: str | None
) -> "IndexChoice | None":
    """The index that `cmcr evaluate retrieval` is to measure; None where no flag asks for one.

    Raises UsageError for flags that contradict each other or cannot be read.
    """
    from cmcr.evaluate import IndexChoice, parse_budget

    if factory is None and max_memory is None and max_query_time is None:
        return None
    if factory is not None and max_memory is not None:
        raise UsageError(
            "--index names an index, --max-memory would have one chosen", fix="give one of them"
        )
    return IndexChoice(factory, parse_budget(max_memory, max_query_time))
