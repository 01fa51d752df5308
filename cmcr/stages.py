"""The stages as the command line runs them: flags, else a recipe, else defaults; then the stage.

    extract_datasets(section, store) ─▶ connect_spaces(...) ─▶ evaluate_each(...)

Nothing heavy is imported before a stage needs it.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cmcr.errors import UsageError
from cmcr.pipelines import (
    ExtractSection,
    Pipeline,
    Pipelines,
    SourceSection,
    checked,
    parse_place,
)

if TYPE_CHECKING:
    from cmcr.connect import Chained, Connected
    from cmcr.embeddings import Key
    from cmcr.embeddings.health import Health
    from cmcr.evaluate import Evaluated, IndexChoice
    from cmcr.extract import Preview, Summary

STORE = Path("store")  # where neither a flag nor a recipe names one


# extract


def choose_sources(
    pipelines: Pipelines,
    encoder: str,
    sources: Sequence[str],
    dataset: str | None,
    pattern: str | None,
    regions: str | None,
    up: str | None,
    checkpoint: Path | None,
    pipeline: str | None,
) -> tuple[ExtractSection, Path]:
    """What `cmcr extract` is to do, and the store it goes to.

    Raises UsageError for an unknown encoder, or when neither flags nor a recipe say what to embed.
    """
    from cmcr.extract import encoder_spec

    encoder_spec(encoder)
    recipe = pipelines.using(encoder=encoder, name=pipeline)
    store = recipe.store if recipe else STORE
    if sources:
        wanted = [_source(source, dataset, pattern, regions, up) for source in sources]
        if len({(source.modality, source.dataset) for source in wanted}) < len(wanted):
            raise UsageError(
                "two sources of one modality would become one dataset",
                cure="extract them one by one, each with its own --dataset",
            )
        return ExtractSection(encoder=encoder, checkpoint=checkpoint, sources=wanted), store
    if dataset or pattern or regions or up:
        raise UsageError(
            "--dataset, --pattern, --regions and --up go with --source", cure="name a --source too"
        )
    for section in recipe.extract if recipe else []:
        if section.encoder == encoder:
            return section.model_copy(
                update={"checkpoint": checkpoint or section.checkpoint}
            ), store
    raise UsageError(
        f"nothing says what {encoder} is to embed",
        cure="give --source MODALITY=WHERE, or a pipeline with this encoder in pipelines.yaml",
    )


def _source(
    text: str, dataset: str | None, pattern: str | None, regions: str | None, up: str | None
) -> SourceSection:
    modality, equals, where = text.partition("=")
    if not equals or not where:
        raise UsageError(
            f"{text!r} is not MODALITY=WHERE", cure="such as --source audio=recordings/"
        )
    stem = Path(where.rpartition(":")[2]).resolve().stem
    section = {
        "modality": modality,
        "where": where,
        "dataset": dataset or (f"{stem}-regions" if regions else stem),
        "pattern": pattern,
        "regions": regions,
        "up": up or "y",
    }
    return checked(SourceSection, section, text)


def extract_datasets(
    section: ExtractSection, store: Path, device: str, *, dry_run: bool = False, **options: Any
) -> Iterator["Summary | Preview"]:
    """Embed every source of `section`; `options` are those of `cmcr.extract.extract`.

    With `dry_run` each is looked at instead, and nothing is written.
    """
    from cmcr.devices import find_device
    from cmcr.embeddings import Key
    from cmcr.extract import (
        encoder_spec,
        extract,
        load_encoder,
        open_regions,
        open_source,
        preview_extraction,
    )

    place = str(find_device(device))
    space = re.sub("[^A-Za-z0-9._+-]", "-", section.encoder)  # clip:ViT-L-14/openai has one too
    sources = []
    for wanted in section.sources:
        source = open_source(wanted.modality, wanted.where, wanted.pattern, wanted.up)
        if dry_run and (wanted.regions or "").startswith("torchvision"):
            raise UsageError(
                "only running a detector tells how many regions it finds",
                cure="--dry-run without --regions says what it would look at",
            )
        if wanted.regions:
            folder = Key(space, wanted.modality, wanted.dataset).folder(store)
            source = open_regions(source, wanted.regions, folder, place)
        sources.append((source, wanted.dataset))
    encoder = load_encoder(section.encoder, checkpoint=section.checkpoint, device=place)
    default_weights = ":" not in section.encoder and section.checkpoint is None
    licence = encoder_spec(section.encoder).licence if default_weights else None
    work = preview_extraction if dry_run else extract
    for source, dataset in sources:
        yield work(store, encoder, source, dataset, space=space, licence=licence, **options)


# connect


def choose_connection(
    pipelines: Pipelines,
    flags: dict[str, Any],
    settings: Sequence[str],
    name: str | None,
    pipeline: str | None,
) -> tuple[dict[str, Any], str, Path]:
    """The fields of the config of `cmcr connect`, the name of the connection, and the store.

    `flags` are fields of `ConnectConfig`, None or empty where not given. Raises UsageError when
    flags and recipe together do not say what to connect.
    """
    from cmcr.connect import parse_settings

    given = {field: value for field, value in flags.items() if value is not None}
    recipe = pipelines.using(via=given.get("via"), spaces=given.get("spaces"), name=pipeline)
    usual = recipe.connection(via=given.get("via"), spaces=given.get("spaces")) if recipe else None
    section = usual.config if usual else {}
    fields = section | given | parse_settings(settings)
    chain = len(fields.get("spaces", ())) > 2  # it finds its bridges itself
    needed = ("spaces",) if chain else ("spaces", "via", "train")
    missing = [field for field in needed if field not in fields]
    if missing:
        raise UsageError(
            f"nothing says what to connect: {', '.join(missing)} not given",
            cure="give --via, --spaces and --train, or a pipeline that does",
        )
    title = name or (usual.name if usual else "-".join(fields["spaces"]))
    if name is None and (changed := _model_name(fields)) != _model_name(section):
        title = f"{title}-{changed}"
    return fields, title, recipe.store if recipe else STORE


def _model_name(fields: dict[str, Any]) -> str:
    """What the connection is called in a table of results, whatever it connects."""
    from cmcr.connect import read_config

    anything = {"spaces": ("a", "b"), "via": "text", "train": ("c",)}
    return read_config(fields | anything).model_name


def connect_spaces(
    fields: dict[str, Any],
    name: str,
    store: Path,
    out: Path | None,
    device: str,
    tensorboard: bool = False,
    replace: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> "Connected | Chained":
    """Train or solve the connection `name`, or the chain where there are more than two spaces.

    Another connection of that name is refused, unless `replace` it is. `say` is told how well the
    embeddings of each dataset tell its rows apart.
    """
    from cmcr.connect import connect, connect_chain, read_config
    from cmcr.devices import find_device

    def opened(health: "Mapping[Key, Health]") -> None:
        for key, found in health.items():
            say(f"{key}  {found}{found.warning}")

    place = str(find_device(device))
    if len(fields["spaces"]) > 2:
        return connect_chain(store, fields["spaces"], fields, name=name, out=out, device=place,
                             tensorboard=tensorboard, replace=replace, opened=opened)  # fmt: skip
    config = read_config(fields)
    return connect(store, config, name=name, out=out, device=place, tensorboard=tensorboard,
                   replace=replace, opened=opened)  # fmt: skip


# evaluate


class Search(NamedTuple):
    """Two datasets to search in each other, and the folder of the connection to do it with."""

    query: "Key"
    gallery: "Key"
    connection: Path


def choose_searches(
    recipe: Pipeline,
    store: Path,
    connection: str | None,
    query: str | None,
    gallery: str | None,
) -> list[Search]:
    """What to search: the pairs of the recipe whose connection has been made, with flags in them.

    With `connection` it is its pairs, if the recipe has some; with `query` or `gallery` those of
    the recipe's first connection. Raises UsageError when there is no such connection or dataset.
    """
    first = recipe.connect[0].name
    sections = recipe.evaluate.retrieval
    if connection or query or gallery:
        name = connection or first
        sections = [one for one in sections if (one.connection or first) == name] or sections[:1]
    else:
        made = [one for one in sections if _is_made(store, one.connection or first)]
        sections = made or sections[:1]
    searches = [
        Search(
            find_key(store, query or section.query),
            find_key(store, gallery or section.gallery),
            find_connection(recipe, store, connection or section.connection),
        )
        for section in sections
    ]
    return list(dict.fromkeys(searches))


def _is_made(store: Path, connection: str) -> bool:
    return (store / "connections" / connection / "config.json").exists()


def find_connection(recipe: Pipeline, store: Path, connection: str | None) -> Path:
    """The folder of `connection`, a name or a folder, else of the recipe's first.

    Raises UsageError when there is no such connection.
    """
    name = connection or recipe.connect[0].name
    for folder in (store / "connections" / name, Path(name)):
        if folder.is_dir():
            return folder
    raise UsageError(
        f"there is no connection {name!r}",
        where=store / "connections",
        cure="make it with `cmcr connect`, or name its folder with --connection",
    )


def find_key(store: Path, place: str) -> "Key":
    """The dataset that SPACE/MODALITY[:DATASET] names; the only one where DATASET is left out.

    Raises UsageError when there are several to choose from, or none.
    """
    from cmcr.embeddings import Key, list_datasets

    space, modality, dataset = parse_place(place)
    if dataset is not None:
        return Key(space, modality, dataset)
    there = list_datasets(store)
    fitting = [key for key in there if (key.space, key.modality) == (space, modality)]
    if len(fitting) == 1:
        return fitting[0]
    raise UsageError(
        f"{place} could be {len(fitting)} datasets",
        where=store,
        cure=f"one of: {', '.join(map(str, fitting or there)) or 'nothing is there'}",
    )


def evaluate_each(
    evaluate: Callable[..., "Evaluated"],
    searches: Sequence[Search],
    store: Path,
    query_where: Sequence[str] = (),
    gallery_where: Sequence[str] = (),
) -> Iterator["Evaluated"]:
    """Each search by `evaluate`: `evaluate_retrieval`, `evaluate_gap` or another of their kind."""
    from cmcr.evaluate import parse_where

    where = {
        "query_where": parse_where(query_where),
        "gallery_where": parse_where(gallery_where),
    }
    for query, gallery, connection in searches:
        yield evaluate(store, connection, query, gallery, **where)


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
            "--index names an index, --max-memory would have one chosen", cure="give one of them"
        )
    return IndexChoice(factory, parse_budget(max_memory, max_query_time))
