"""`cmcr extract`, `plan`, which lays its sources out, and `prepare`, which makes some."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmcr.cli.terminal.console import answer, print_table, say
from cmcr.cli.terminal.options import (
    Amp,
    Device,
    Json,
    MaxFailures,
    NoRecipe,
    Precision,
    Recipe,
    Store,
    Up,
)
from cmcr.errors import UsageError

if TYPE_CHECKING:
    from cmcr.extract import Published


class Engine(StrEnum):
    """Who makes the parts."""

    local = "local"
    ray = "ray"


Pattern = Annotated[
    str | None,
    typer.Option(
        metavar="REGEX",
        help="Of file names in a folder, with a slash in it of the paths there: named groups "
        "label, group and any other are columns.",
    ),
]
Regions = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|grid[:N]|torchvision[:CHECKPOINT]",
        help="Embed regions of the pictures: boxes listed in a .jsonl, .csv, .tsv or .parquet "
        "(image, x0, y0, x1, y1), windows of several sizes (84, with grid:3 35), or a "
        "detector's.",
    ),
]
FilmFrames = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS|scene",
        help="Embed pictures of films: one every so many seconds, or one each time that they "
        "show something else.",
    ),
]
Window = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Embed windows of long recordings and of films' sound."),
]
Hop = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="From a window to the next.", show_default="the window"),
]
UpAxis = Annotated[
    Up | None,
    typer.Option(help="Axis of point clouds that points upwards.", show_default="y"),
]


def extract(
    encoder: Annotated[str, typer.Option(help="NAME or NAME:VARIANT; see `cmcr encoders`.")],
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=WHERE",
            help="WHERE: a folder, .txt, .csv, .tsv, .jsonl, .parquet, a webdataset .tar or "
            "builtin:NAME; with --frames or --window a file too. Can be repeated.",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name in the store.", show_default="the source's")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help="What the vectors are called, as of other weights of an encoder that the store "
            "has already.",
            show_default="the encoder's name",
        ),
    ] = None,
    pattern: Pattern = None,
    regions: Regions = None,
    frames: FilmFrames = None,
    window: Window = None,
    hop: Hop = None,
    up: UpAxis = None,
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
    part_rows: Annotated[
        int | None,
        typer.Option(min=1, help="Inputs in one Parquet part.", show_default="the plan's, or 8192"),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Decoding processes.", show_default="one a core")
    ] = None,
    item_timeout: Annotated[
        float,
        typer.Option(
            min=0.1, metavar="SECONDS", help="For one input to be decoded, else it fails."
        ),
    ] = 300.0,
    device: Device = "auto",
    shard_index: Annotated[int, typer.Option(help="Which of --num-shards this is.")] = 0,
    num_shards: Annotated[int, typer.Option(min=1, help="Processes that share the parts.")] = 1,
    engine: Annotated[
        Engine, typer.Option(help="Who makes the parts: this process, or actors on Ray, of a plan.")
    ] = Engine.local,
    actors: Annotated[
        int, typer.Option(min=0, help="Actors on Ray.", show_default="one a GPU, else 1")
    ] = 0,
    max_failures: MaxFailures = None,
    precision: Annotated[Precision, typer.Option(help="Of a stored value.")] = Precision.float16,
    index: Annotated[
        str | None,
        typer.Option(help="FAISS factory string, or none.", show_default="the recipe's, else Flat"),
    ] = None,
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
    from cmcr.cli.recipes.stages import choose_sources, extract_datasets, given_spans

    sources = source or []
    ground = ground_to_extract(recipes(pipeline, no_pipeline), pipeline, encoder, sources, store)
    section = choose_sources(
        ground, encoder, sources, dataset, pattern, regions, up and up.value, checkpoint,
        given_spans(frames, window, hop), space,
    )  # fmt: skip
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
        item_timeout=item_timeout,
        max_failures=max_failures,
        shard_index=shard_index,
        num_shards=num_shards,
        engine=engine.value,
        actors=actors,
        precision=precision.value,
        index=index,
        update=update,
        dry_run=dry_run,
    ):
        say(str(summary), "extracted", summary=summary.as_dict())
        done.append(summary)
    if as_json:
        answer({"store": str(ground.store), "datasets": [summary.as_dict() for summary in done]})


def plan(
    source: Annotated[
        str,
        typer.Option(metavar="MODALITY=WHERE", help="As `cmcr extract` takes it."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The plan, NAME.plan.parquet.", show_default="the source's name, here"),
    ] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Inputs in one Parquet part.")] = 8192,
    pattern: Pattern = None,
    regions: Regions = None,
    frames: FilmFrames = None,
    window: Window = None,
    hop: Hop = None,
    up: UpAxis = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Lay a source out by parts in one file, from which many processes embed their share.

    `cmcr extract --source MODALITY=NAME.plan.parquet --shard-index K --num-shards N` reads only the
    parts that are its own.
    """
    from cmcr.cli.recipes.pipelines import read_sources
    from cmcr.cli.recipes.stages import given_spans, open_wanted
    from cmcr.devices import find_device
    from cmcr.extract import write_plan

    spans = given_spans(frames, window, hop)
    (wanted,) = read_sources([source], None, pattern, regions, up and up.value, spans)
    target = (out or Path(f"{wanted.dataset}.plan.parquet")).expanduser()
    if not target.name.endswith(".plan.parquet"):
        raise UsageError(
            "a plan is known by its name", where=target, fix="call it NAME.plan.parquet"
        )
    opened = open_wanted(wanted, target.absolute().parent, str(find_device(device)))
    sha256 = write_plan(target, opened, part_rows)
    parts = -(-opened.total // part_rows)
    say(f"plan      {target}: {opened.total:,} {wanted.modality} in {parts:,} parts")
    if as_json:
        told = {"plan": str(target), "modality": wanted.modality, "items": opened.total}
        answer(told | {"parts": parts, "part_rows": part_rows, "sha256": sha256})


def prepare(
    name: Annotated[str | None, typer.Argument(help="A published data set; see --list.")] = None,
    folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="Where the publisher's files lie, unpacked. Can be repeated.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the manifests.", show_default="data/NAME")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Which part, or all.", show_default="the one that is evaluated"),
    ] = None,
    listing: Annotated[
        bool,
        typer.Option("--list", help="Where each set is got, its licence, splits and counts."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make manifests of a published data set; goes on where an earlier run stopped.

    Nothing is downloaded. Pictures and sounds are taken out of videos; whatever can be read as it
    lies stays there, and the manifests name it.
    """
    from cmcr.extract import prepare_dataset, published_sets

    if listing:
        sets = published_sets()
        if as_json:
            answer({"datasets": [_described(one) for one in sets]})
        else:
            print_table([_line(one) for one in sets])
        return
    if name is None or not folders:
        raise UsageError(
            "no data set to prepare" if name is None else f"nothing says where {name} lies",
            fix="`cmcr prepare NAME --from FOLDER`; --list has the names, and where each is got",
        )
    prepared = prepare_dataset(name, folders, out, split)
    say(f"prepare   {prepared}")
    if as_json:
        answer(prepared.as_dict())


def _described(one: "Published") -> dict[str, Any]:
    return {
        "dataset": one.name,
        "tables": list(one.tables),
        "split": one.split,
        "counts": dict(one.counts),
        "size": one.size,
        "licence": one.licence,
        "where": one.where,
        "needs": one.needs,
        "out": str(one.out),
    }


def _line(one: "Published") -> dict[str, Any]:
    counts = ", ".join(f"{split} {count:,}" for split, count in one.counts.items())
    return {
        "dataset": one.name,
        "becomes": ", ".join(one.tables),
        "split": one.split,
        "items": counts or "unknown",
        "size": one.size or "unknown",
        "licence": one.licence or "unknown",
        "where": one.where,
    }
