"""`cmcr extract`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmcr.cli.console import (
    Amp,
    Device,
    Index,
    Json,
    NoRecipe,
    Precision,
    Recipe,
    Store,
    Up,
    answer,
    say,
)
from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import (
    ExtractSection,
    read_sources,
    space_of,
)
from cmcr.errors import UsageError

if TYPE_CHECKING:
    from cmcr.extract import Preview, Summary


def extract(
    encoder: Annotated[str, typer.Option(help="NAME or NAME:VARIANT; see `cmcr encoders`.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=WHERE",
            help="WHERE: a folder, .txt, .csv, .tsv, .jsonl, .parquet, a webdataset .tar or "
            "builtin:NAME. Can be repeated.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name in the store.", show_default="the source's")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Of file names in a folder, with a slash in it of the paths there: named groups "
            "label, group and any other are columns.",
        ),
    ] = None,
    regions: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|grid|torchvision[:CHECKPOINT]",
            help="Embed regions of the pictures: boxes listed in a .jsonl, .csv, .tsv or .parquet "
            "(image, x0, y0, x1, y1), windows of several sizes, or a detector's.",
        ),
    ] = None,
    up: Annotated[
        Up | None,
        typer.Option(help="Axis of point clouds that points upwards.", show_default="y"),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights, in the publisher's own layout.")
    ] = None,
    store: Store = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Inputs encoded at once.", show_default="what fits"),
    ] = None,
    amp: Annotated[
        Amp, typer.Option(help="Mixed precision on CUDA; auto is bf16 where the GPU has it.")
    ] = Amp.auto,
    part_rows: Annotated[int, typer.Option(min=1, help="Inputs in one Parquet part.")] = 8192,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Decoding processes.", show_default="one a core")
    ] = None,
    device: Device = "auto",
    shard_index: Annotated[int, typer.Option(help="Which of --num-shards this is.")] = 0,
    num_shards: Annotated[int, typer.Option(min=1, help="Processes that share the parts.")] = 1,
    max_failures: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the inputs that may be bad.")
    ] = 0.01,
    precision: Annotated[Precision, typer.Option(help="Of a stored value.")] = Precision.float16,
    index: Index = "Flat",
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Follow a source that changed: embed what is new or changed, try again what "
            "failed, drop what is gone.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be done and how long it would take."),
    ] = False,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Turn media into embedding shards; goes on where an earlier run stopped."""
    from cmcr.cli.recipes.ground import ground_to_extract, recipes

    sources = source or []
    ground = ground_to_extract(recipes(pipeline, no_pipeline), pipeline, encoder, sources, store)
    section = choose_sources(
        ground, encoder, sources, dataset, pattern, regions, up and up.value, checkpoint
    )
    say(ground.line("extract"))
    done = []
    for summary in extract_datasets(
        section,
        ground.store,
        device,
        batch_size=batch_size,
        amp=amp.value,
        part_rows=part_rows,
        workers=workers,
        max_failures=max_failures,
        shard_index=shard_index,
        num_shards=num_shards,
        precision=precision.value,
        index=None if index == "none" else index,
        update=update,
        dry_run=dry_run,
    ):
        say(str(summary))
        done.append(summary)
    if as_json:
        answer({"store": str(ground.store), "datasets": [summary.as_dict() for summary in done]})


# extract


def choose_sources(
    ground: Ground,
    encoder: str,
    sources: Sequence[str],
    dataset: str | None,
    pattern: str | None,
    regions: str | None,
    up: str | None,
    checkpoint: Path | None,
) -> ExtractSection:
    """What `cmcr extract` is to do.

    Raises UsageError for an unknown encoder, or when neither flags nor a recipe say what to embed.
    """
    from cmcr.extract import encoder_spec

    encoder_spec(encoder)
    usual = next(
        (one for one in (ground.recipe.extract if ground.recipe else ()) if one.encoder == encoder),
        None,
    )
    weights = checkpoint or (usual.checkpoint if usual else None)
    if sources:
        wanted = read_sources(sources, dataset, pattern, regions, up)
        return ExtractSection(encoder=encoder, checkpoint=weights, sources=wanted)
    if dataset or pattern or regions or up:
        raise UsageError(
            "--dataset, --pattern, --regions and --up go with --source", cure="name a --source too"
        )
    if usual is None:
        raise UsageError(
            f"nothing says what {encoder} is to embed",
            cure="give --source MODALITY=WHERE, or a pipeline with this encoder in pipelines.yaml",
        )
    return usual.model_copy(update={"checkpoint": weights})


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
    space = space_of(section.encoder)
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
