"""What `cmcr evaluate retrieval` and `gap` search: flags, else a recipe, else the only datasets.

jobs = choose_searches(ground, flags, connection)
for done in do_jobs(ground, "retrieval", jobs): ...      # tasks.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cmcr.cli.recipes.ground import Ground, connections, find_connection
from cmcr.cli.recipes.pipelines import RetrievalSection, parse_place
from cmcr.cli.recipes.tasks import Flags, Job, Missed, arguments, beaten, given_of, selections
from cmcr.errors import CmcrError, UsageError

if TYPE_CHECKING:
    from cmcr.connect import Record, SpaceRecord
    from cmcr.embeddings.search.hubness import Hubness
    from cmcr.evaluate import Evaluated, IndexChoice


def choose_searches(ground: Ground, flags: Flags, connection: str | None = None) -> list[Job]:
    """What to search: the pairs of the recipe whose connection has been made, with flags in them.

    With a connection or dataset that is named it is the pairs of one connection: its own in the
    recipe, else all that are of its spaces. Where no recipe says it, it is the only dataset of each
    side. Raises UsageError when there is no such connection or dataset, or there are several.
    """
    from cmcr.connect import load_connection

    store, given = ground.store, given_of(flags)
    sections = ground.recipe.evaluate.retrieval if ground.recipe else []
    first = ground.recipe.connect[0].name if ground.recipe else None
    query, gallery = given.get("query"), given.get("gallery")
    if not (connection or query or gallery):
        made = set(connections(store))
        jobs = [
            Job(one.with_flags(given), store / "connections" / str(one.connection or first))
            for one in sections
            if (one.connection or first) in made
        ]
        if jobs:
            return list(dict.fromkeys(jobs))
    named = {parse_place(place)[0] for place in (query, gallery) if place}
    folder = find_connection(ground, connection, named)
    record = load_connection(folder).record
    spaces = {space.name for space in record.spaces}
    fitting = [one for one in sections if {_space(place) for place in one.places} <= spaces]
    own = [one for one in fitting if (one.connection or first) == folder.name]
    pairs = beaten(own or fitting, given)
    if not pairs:
        query, gallery = _sides(store, record, query, gallery)
        pairs = [RetrievalSection(**given | {"query": query, "gallery": gallery})]
    return list(dict.fromkeys(Job(pair, folder) for pair in pairs))


def not_made(ground: Ground) -> list[str]:
    """The connections of the recipe's pairs that the store does not have."""
    if ground.recipe is None:
        return []
    first, made = ground.recipe.connect[0].name, connections(ground.store)
    wanted = dict.fromkeys(one.connection or first for one in ground.recipe.evaluate.retrieval)
    return [name for name in wanted if name not in made]


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


def measure_indexes(
    ground: Ground, jobs: Sequence[Job], choice: "IndexChoice", hubness: "Hubness" = "none"
) -> Iterator["Evaluated | Missed"]:
    """The index of `choice` beside the exact search, for each job, or why it cannot be measured."""
    from cmcr.evaluate import evaluate_index

    for job in jobs:
        try:
            done = evaluate_index(
                *arguments(ground, job), choice, **selections(job), hubness=hubness
            )
        except CmcrError as error:
            yield Missed("index", job.section, error)
        else:
            yield done


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
