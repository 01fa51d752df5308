"""Commands on a store: `import`, `search`, `info`, `verify`, `report`, and its upkeep."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmcr.cli.terminal.console import INCOMPLETE, answer, print_table, say
from cmcr.cli.terminal.options import (
    Device,
    Hubness,
    Hubs,
    Index,
    Json,
    NoRecipe,
    Precision,
    Recipe,
    Where,
    checked_modality,
)
from cmcr.cli.terminal.options import Store as StoreFolder
from cmcr.errors import CmcrError, MovedError, UsageError, VersionError

if TYPE_CHECKING:
    from cmcr.embeddings.search.mixed import Hit


def import_(
    space: Annotated[str, typer.Option(help="Name of the space the vectors lie in.")],
    modality: Annotated[str, typer.Option(help="audio, image, molecule, any name.")],
    dataset: Annotated[str, typer.Option(help="Name in the store.")],
    embeddings: Annotated[Path, typer.Option(help=".npy, .npz, .parquet or .safetensors.")],
    store: Annotated[Path, typer.Option(help="Folder of the embeddings.")],
    metadata: Annotated[
        Path | None, typer.Option(help=".parquet, .csv, .tsv or .jsonl, a row an embedding.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of a stored value.")] = Precision.float16,
    index: Index = "Flat",
    as_json: Json = False,
) -> None:
    """Bring in embeddings that you already have."""
    from cmcr.embeddings import Key, import_embeddings

    imported = import_embeddings(
        store,
        Key(space, modality, dataset),
        embeddings,
        metadata,
        precision=precision.value,
        index=None if index == "none" else index,
    )
    say(f"{imported.key}: {imported.rows:,} rows of {imported.dim}")
    if as_json:
        line = {"dataset": str(imported.key), "rows": imported.rows, "dim": imported.dim}
        answer({"store": str(store), "datasets": [line]})


def search(
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...",
            help="Texts, files, folders of files, items of the store as "
            "SPACE/MODALITY:DATASET#ID, or - for lines of stdin.",
        ),
    ] = None,
    places: Annotated[
        list[str] | None,
        typer.Option(
            "--in", metavar="SPACE/MODALITY[:DATASET]", help="Where to search. Can be repeated."
        ),
    ] = None,
    connection: Annotated[
        str | None, typer.Option(help="Its name or folder.", show_default="the store's only one")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="What embeds the queries.", show_default="what is near")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Of the queries.", show_default="told from the file")
    ] = None,
    most: Annotated[int, typer.Option("-k", metavar="N", help="Results for each query.")] = 10,
    together: Annotated[
        bool, typer.Option("--together", help="All inputs are one query: their mean.")
    ] = False,
    weight: Annotated[
        list[float] | None,
        typer.Option(metavar="W", help="Of an input in that mean, one for each."),
    ] = None,
    where: Where = None,
    index: Annotated[
        bool, typer.Option("--index", help="Ask the FAISS indexes of the datasets.")
    ] = False,
    hubness: Hubness = Hubs.none,
    false_positives: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Find nothing that more of the unrelated items equal.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to see, hear and turn.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="SPACE=FILE", help="Weights that are not at their usual place."),
    ] = None,
    store: StoreFolder = None,
    device: Device = "auto",
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Find items by texts, pictures, sounds or shapes, in one dataset or in several at once."""
    from cmcr.cli.recipes.ground import find_checkpoints, ground_to_measure, recipes
    from cmcr.devices import cores, find_device
    from cmcr.evaluate import parse_where, write_found
    from cmcr.extract import find_media
    from cmcr.search.store import open_store

    words = [line for word in queries or [] for line in (_stdin() if word == "-" else [word])]
    asked_of = places or []
    recipe = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(recipe, pipeline, store, connection, asked_of)
    opened = open_store(
        ground.store,
        device=str(find_device(device)),
        checkpoints=find_checkpoints(ground, checkpoint or []),
    )
    answered = opened.search(
        *words,
        places=asked_of,
        connection=connection,
        space=space,
        modality=checked_modality(modality),
        k=most,
        together=together,
        weights=weight or [],
        where=parse_where(where or []),
        index=index,
        hubness=hubness.value,
        false_positives=false_positives,
        workers=cores(),
    )
    through = f", connection {answered.connection}" if answered.connection else ""
    by = ", ".join(f"{kind} in {name}" for kind, name in answered.spaces.items())
    say(f"search    store {ground.store}{through}; {by}")
    for failure in answered.failures:
        say(f"left out: {failure['uri']}: {failure['message']}")
    if html is not None:
        asked = [(one.asked, one.hits) for one in answered.found]
        write_found(ground.store, asked, html, find_media)
        say(f"page      {html} ({html.stat().st_size / 1e6:.1f} MB)")
    if as_json:
        left_out = {"left_out": list(answered.failures)} if answered.failures else {}
        answer({"store": str(ground.store), "connection": answered.connection,
                "queries": [one.as_dict() for one in answered.found], **left_out})  # fmt: skip
    else:
        everything = [hit for one in answered.found for hit in one.hits]
        for one in answered.found:
            print(f"{one.name}: nothing found" if not one.hits else one.name)
            if one.hits:
                print_table([_hit(hit, everything, len(asked_of) > 1) for hit in one.hits])
    if answered.failures:
        raise typer.Exit(INCOMPLETE)


def _stdin() -> list[str]:
    return [line for line in map(str.strip, sys.stdin) if line]


def _hit(hit: "Hit", everything: "Sequence[Hit]", of_several: bool) -> dict[str, Any]:
    """A line of the table, with the same columns for `everything` that a command found.

    Items of several kinds are ranked by their share.
    """
    item = hit.item
    spans = any("start" in one.item for one in everything)
    corrected = any(one.score != one.cosine for one in everything)
    seconds = f"{item['start']:g}-{item['end']:g}" if "start" in item else None
    return {
        "": hit.rank,
        "dataset": hit.dataset,
        "id": item["id"],
        "label": ", ".join(item["label"] or []),
        **({"seconds": seconds} if spans else {}),
        "cosine": hit.cosine,
        **({"corrected": hit.score} if corrected else {}),
        **({"share": f"{hit.share:.1g}"} if of_several else {}),
        "false positives": _rate(hit),
        "what": item["text"] or item["uri"],
    }


def _rate(hit: "Hit") -> str | None:
    """The rate of false positives, or the least that there are unpaired rows enough to tell."""
    if hit.false_positives is None or hit.least_known is None:
        return None
    return f"{hit.false_positives:.1g}" if hit.known else f"<{hit.least_known:.1g}"


def info(
    store: Annotated[Path, typer.Argument(help="A store.")],
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Where the bytes are, leftovers among them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List a store: spaces, modalities, datasets, rows, dimensions, encoders, connections."""
    from cmcr.connect import describe_connections
    from cmcr.embeddings import Key, describe_store, stray_folders
    from cmcr.embeddings.upkeep.sizes import measure_sizes

    datasets, connections = describe_store(store), describe_connections(store)
    strays = stray_folders(store)
    inner = {joint for line in connections for joint in line.pop("joints")}
    measured = [vars(size) for size in measure_sizes(store)] if sizes else []
    if as_json:
        left_out = [{"folder": name, "problem": why} for name, why in strays.items()]
        more = {"sizes": measured, "left_out": left_out}
        answer({"datasets": datasets, "connections": connections}
               | {name: lines for name, lines in more.items() if lines})  # fmt: skip
        return
    for name, why in strays.items():
        say(f"left out  {name}: {why}")
    print_table(
        [
            {"dataset": "{space}/{modality}:{dataset}".format(**line)}
            | {name: line[name] for name in line if name not in Key.__annotations__}
            for line in datasets
            if line["space"] not in inner
        ]
    )
    if connections:
        print()
        print_table([part for line in connections for part in _with_links(line)])
    if sizes:
        print()
        print_table(measured)
        print(f"{sum(line['bytes'] - line['shared'] for line in measured):,} bytes in all")


def _with_links(line: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A line of the table, and one for each link of a chain."""
    yield {name: value for name, value in line.items() if name != "links"}
    for number, link in enumerate(line.get("links", ()), 1):
        yield {"connection": f"  link {number}"} | link


def rename(
    old: Annotated[str, typer.Argument(help="SPACE/MODALITY:DATASET, or a connection.")],
    new: Annotated[str, typer.Argument(help="Its new name; of a dataset DATASET is enough.")],
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Give a dataset or a connection another name, or the one that its folder was moved to."""
    from cmcr.connect import rename_connection, uses_of
    from cmcr.embeddings import Key
    from cmcr.embeddings.upkeep.rename import rename_dataset

    place = _place_of(store, [old])
    say(f"rename    store {place}")
    uses: list[str] = []
    if "/" in old:
        key = Key.parse(old)
        target = Key.parse(new) if "/" in new else replace(key, dataset=new)
        fresh = rename_dataset(place, key, target)
        uses = [use for use in uses_of(place, key) if not use.startswith(f"{target} ")]
        new = str(target)
    else:
        fresh = rename_connection(place, old, new)
    say(f"renamed: {old} is {new}" if fresh else f"up to date: {new}")
    for use in uses if fresh else []:
        say(f"  {use}, and keeps the name {old} in its record")
    if as_json:
        answer({"store": str(place), "old": old, "new": new, "fresh": fresh, "uses": uses})


def remove(
    what: Annotated[
        list[str], typer.Argument(help="SPACE/MODALITY:DATASET or connections.", metavar="WHAT...")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Delete datasets, with their indexes, and connections, with their results."""
    from cmcr.connect import remove_connection, uses_of
    from cmcr.embeddings import Key
    from cmcr.embeddings.upkeep.remove import check_there, remove_dataset

    place = _place_of(store, what)
    say(f"remove    store {place}")
    things = {name: Key.parse(name) if "/" in name else name for name in what}
    uses = {}
    for name, thing in things.items():
        if isinstance(thing, Key):
            check_there(place, thing)
        uses[name] = uses_of(place, thing)
        for use in uses[name]:
            say(f"  {name}: {use}")
    if not yes:
        _ask(f"Delete {', '.join(things)}, for good?")
    for thing in things.values():
        if isinstance(thing, Key):
            remove_dataset(place, thing)
        else:
            remove_connection(place, thing)
        say(f"removed: {thing}")
    if as_json:
        answer({"store": str(place), "removed": list(things), "uses": uses})


def _ask(question: str) -> None:
    """Go on with a yes. Raises UsageError without one, or where nobody can be asked."""
    if not sys.stdin.isatty():
        raise UsageError("nothing is deleted unasked, and nobody can be asked", fix="--yes")
    if not typer.confirm(question, err=True):
        raise UsageError("nothing was deleted", fix="answer yes, or give --yes")


def merge(
    datasets: Annotated[
        list[str],
        typer.Argument(help="Two or more, in order.", metavar="SPACE/MODALITY:DATASET..."),
    ],
    into: Annotated[str, typer.Option(help="What they become; DATASET is enough.")],
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Make one dataset of several of one space and modality, without copying; they stay."""
    from cmcr.embeddings import Key
    from cmcr.embeddings.upkeep.merge import merge_datasets

    place = _place_of(store, datasets)
    say(f"merge     store {place}")
    keys = [Key.parse(dataset) for dataset in datasets]
    target = Key.parse(into) if "/" in into else replace(keys[0], dataset=into)
    merged = merge_datasets(place, keys, target)
    say(str(merged))
    if as_json:
        answer({"store": str(place)} | merged.as_dict())


def _place_of(store: Path | None, names: Sequence[str]) -> Path:
    """The store that is named, else that of the recipe that has the spaces, else ./store."""
    from cmcr.cli.recipes.ground import ground_to_measure, recipes
    from cmcr.embeddings import check_store

    if store is None:
        places = [name for name in names if "/" in name]
        connection = next((name for name in names if "/" not in name), None)
        store = ground_to_measure(recipes(None, False), None, None, connection, places).store
    check_store(store)
    return store


def verify(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """Re-hash and check every part, index and connection of a store; name what is wrong."""
    from cmcr.connect import load_connection
    from cmcr.embeddings import verify_store

    problems: list[CmcrError] = []
    for verdict in verify_store(store):
        if verdict.problem is None:
            say(f"ok       {verdict.key}  {verdict.rows:,} rows")
        else:
            problems.append(verdict.problem)
            say(f"{_state(verdict.problem)}  {verdict.key}  {verdict.problem}")
    for config in sorted(store.glob("connections/*/config.json")):
        try:
            load_connection(config.parent)
            say(f"ok       connection {config.parent.name}")
        except CmcrError as problem:
            problems.append(problem)
            say(f"{_state(problem)}  connection {config.parent.name}  {problem}")
    if as_json:
        answer({"problems": [vars(problem) for problem in problems]})
    if problems:
        sys.exit(1)


def _state(problem: CmcrError) -> str:
    if isinstance(problem, MovedError):
        return "moved  "
    if isinstance(problem, VersionError):
        return "newer  " if problem.newer else "older  "
    return "damaged"


def report(
    store: Annotated[Path, typer.Argument(help="A store.")],
    out: Annotated[
        Path | None, typer.Option(help="The page.", show_default="STORE/report.html")
    ] = None,
    connection: Annotated[
        str | None, typer.Option(help="Only this one.", show_default="all")
    ] = None,
    media_root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Where media were moved, looked at first. Can be repeated."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page about a store: sources, numbers, pictures, what found what."""
    from cmcr.evaluate import write_report
    from cmcr.extract import find_media

    roots = media_root or []
    for root in roots:
        if not root.is_dir():
            raise UsageError("there is no such folder", where=root, fix="--media-root DIR")
    find = partial(find_media, roots=roots)
    page = write_report(store, out or store / "report.html", find, connection)
    say(f"report    {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if as_json:
        answer({"report": str(page), "bytes": page.stat().st_size})
