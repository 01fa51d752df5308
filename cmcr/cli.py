"""The command line.

    cmcr run                            everything, on the world that ships with the package
    cmcr extract --encoder clap         media to embedding shards
    cmcr connect --via text             shards to projectors
    cmcr evaluate retrieval             projectors to numbers

A flag beats the recipe (`./pipelines.yaml`, else the packaged one), the recipe beats the default.
Results go to stdout; progress and messages go to stderr. Exit codes: 0 done, 1 failed, 2 wrong
usage or configuration. What a command needs is imported when it runs, so `cmcr --help` is quick.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cmcr.errors import CmcrError

app = typer.Typer(
    name="cmcr",
    help="Connect pretrained multi-modal contrastive representations without paired data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take longer than everything else in --help
)
evaluate_app = typer.Typer(
    help="Measure how well a connection works.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(evaluate_app, name="evaluate")

Store = Annotated[
    Path | None, typer.Option(help="Folder of the embeddings.", show_default="the recipe's")
]
Recipe = Annotated[
    str | None,
    typer.Option(
        "--pipeline", help="Recipe for what is not given.", show_default="the first that fits"
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Index = Annotated[str, typer.Option(help="FAISS factory string, or none.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Names = Annotated[list[str] | None, typer.Option(metavar="DATASET", help="Can be repeated.")]
Where = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=VALUE,...", help="Only rows with such a value. Can be repeated."),
]


class Precision(StrEnum):
    """How a stored value is kept."""

    float16 = "float16"
    float32 = "float32"


class Amp(StrEnum):
    """How numbers are kept while a GPU encodes."""

    auto = "auto"
    off = "off"
    bf16 = "bf16"
    fp16 = "fp16"


def main() -> None:
    """Run the command line; a mistake that a user can mend ends without a traceback."""
    try:
        app()
    except CmcrError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("stopped; the same command goes on where it stopped")
        sys.exit(130)


def say(text: str) -> None:
    """A message to the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def answer(document: Any) -> None:
    """The one JSON document on stdout."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


@app.command()
def run(
    pipeline: Annotated[str | None, typer.Argument(help="A recipe.")] = None,
    store: Store = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Extract, connect and evaluate a whole recipe, skipping what is up to date."""
    from cmcr.connect import read_config
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_pairs, connect_spaces, evaluate_pairs, extract_datasets

    pipelines = load_pipelines()
    recipe = pipelines.named(pipeline)
    place = store or recipe.store
    for section in recipe.extract:
        for summary in extract_datasets(section, place, device):
            say(f"extract   {summary}")
    config = read_config(recipe.connect.config, where="pipelines.yaml")
    connected = connect_spaces(config, recipe.connect.name, place, None, device)
    say(f"connect   {connected}")
    pairs, folder = choose_pairs(recipe, place, None, None, None)
    show(list(evaluate_pairs(pairs, folder, place)), as_json)


@app.command()
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
            help="Of file names in a folder: named groups label, group and any other are columns.",
        ),
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
    pipeline: Recipe = None,
    as_json: Json = False,
) -> None:
    """Turn media into embedding shards; goes on where an earlier run stopped."""
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_sources, extract_datasets

    section, default_store = choose_sources(
        load_pipelines(), encoder, source or [], dataset, pattern, checkpoint, pipeline
    )
    place = store or default_store
    done = []
    for summary in extract_datasets(
        section,
        place,
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
    ):
        say(str(summary))
        done.append(summary)
    if as_json:
        answer({"store": str(place), "datasets": [summary.as_dict() for summary in done]})


@app.command()
def connect(
    via: Annotated[str | None, typer.Option(help="The modality that both spaces share.")] = None,
    spaces: Annotated[str | None, typer.Option(metavar="A,B", help="What to connect.")] = None,
    method: Annotated[
        str | None, typer.Option(help="c-mcr, procrustes, ridge or identity.")
    ] = None,
    train: Names = None,
    memory: Names = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and noise.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting, such as noise_variance=0."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the connection, in the store.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Its folder.", show_default="STORE/connections/NAME")
    ] = None,
    store: Store = None,
    device: Device = "auto",
    pipeline: Recipe = None,
    as_json: Json = False,
) -> None:
    """Train the projectors that connect two spaces, on shards alone."""
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_connection, connect_spaces

    flags = {
        "via": via,
        "spaces": spaces and spaces.split(","),
        "method": method,
        "train": train,
        "memory": memory,
        "seed": seed,
    }
    config, title, default_store = choose_connection(
        load_pipelines(), flags, settings or [], name, pipeline
    )
    connected = connect_spaces(config, title, store or default_store, out, device)
    say(str(connected))
    if as_json:
        answer({"connection": str(connected.path), "fresh": connected.fresh})


@evaluate_app.command()
def retrieval(
    connection: Annotated[
        str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
    ] = None,
    query: Annotated[
        str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What searches.")
    ] = None,
    gallery: Annotated[
        str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What is searched.")
    ] = None,
    query_where: Where = None,
    gallery_where: Where = None,
    store: Store = None,
    pipeline: Recipe = None,
    as_json: Json = False,
) -> None:
    """Search one modality in another, both ways, beside chance and the closed forms."""
    from cmcr.pipelines import load_pipelines
    from cmcr.stages import choose_pairs, evaluate_pairs

    recipe = load_pipelines().named(pipeline)
    place = store or recipe.store
    pairs, folder = choose_pairs(recipe, place, connection, query, gallery)
    done = evaluate_pairs(pairs, folder, place, query_where or [], gallery_where or [])
    show(list(done), as_json)


@app.command("import")
def import_(
    space: Annotated[str, typer.Option(help="Name of the space the vectors lie in.")],
    modality: Annotated[str, typer.Option(help="audio, image, pointcloud or text.")],
    dataset: Annotated[str, typer.Option(help="Name in the store.")],
    embeddings: Annotated[Path, typer.Option(help=".npy, .npz, .parquet or .safetensors.")],
    store: Annotated[Path, typer.Option(help="Folder of the embeddings.")],
    metadata: Annotated[
        Path | None, typer.Option(help=".parquet, .csv, .tsv or .jsonl, a row an embedding.")
    ] = None,
    precision: Annotated[Precision, typer.Option(help="Of a stored value.")] = Precision.float16,
    index: Index = "Flat",
) -> None:
    """Bring in embeddings that you already have."""
    from cmcr.embeddings import Key, import_embeddings

    imported = import_embeddings(
        store,
        Key(space, modality, dataset),  # type: ignore[arg-type]
        embeddings,
        metadata,
        precision=precision.value,
        index=None if index == "none" else index,
    )
    say(f"{imported.key}: {imported.rows:,} rows of {imported.dim}")


@app.command()
def info(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """List a store: spaces, modalities, datasets, rows, dimensions, encoders, connections."""
    from cmcr.connect import load_connection
    from cmcr.embeddings import Key, describe_store

    datasets = describe_store(store)
    connections = sorted(path.parent for path in store.glob("connections/*/config.json"))
    records = [load_connection(folder).record for folder in connections]
    lines = [
        {
            "connection": folder.name,
            "method": record.config.model_name,
            "via": record.config.via,
            "spaces": " + ".join(record.config.spaces),
            "pairs": record.pairs,
            "joint_dim": record.joint_dim,
        }
        for folder, record in zip(connections, records, strict=True)
    ]
    if as_json:
        answer({"datasets": datasets, "connections": lines})
    else:
        print_table(
            [
                {"dataset": "{space}/{modality}:{dataset}".format(**line)}
                | {name: line[name] for name in line if name not in Key.__annotations__}
                for line in datasets
            ]
        )
        if lines:
            print()
            print_table(lines)


@app.command()
def verify(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """Re-hash and check every part, index and connection of a store; name what is wrong."""
    from cmcr.connect import load_connection
    from cmcr.embeddings import verify_store

    problems: list[CmcrError] = []
    for verdict in verify_store(store):
        if verdict.problem is None:
            say(f"sound    {verdict.key}  {verdict.rows:,} rows")
        else:
            problems.append(verdict.problem)
            say(f"damaged  {verdict.key}  {verdict.problem}")
    for config in sorted(store.glob("connections/*/config.json")):
        try:
            load_connection(config.parent)
            say(f"sound    connection {config.parent.name}")
        except CmcrError as problem:
            problems.append(problem)
            say(f"damaged  connection {config.parent.name}  {problem}")
    if as_json:
        answer({"problems": [vars(problem) for problem in problems]})
    if problems:
        sys.exit(1)


@app.command()
def encoders(as_json: Json = False) -> None:
    """List the encoders that are installed, cmcr's own and other packages'."""
    from cmcr.extract import encoder_spec, registered

    lines: list[dict[str, Any]] = []
    for name, entry in registered().items():
        package = entry.dist.name if entry.dist else "?"
        try:
            spec = encoder_spec(name)
        except CmcrError as problem:
            lines.append({"encoder": name, "package": package, "problem": problem.what})
            continue
        lines.append(
            {
                "encoder": name,
                "modalities": ", ".join(spec.modalities),
                "dim": spec.dim,
                "licence": spec.licence,
                "weights": "present" if spec.weights_present() else "not here",
                "package": package,
            }
        )
    answer({"encoders": lines}) if as_json else print_table(lines)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can run, and what to do about what is missing."""
    from cmcr.doctor import examine

    lines = [finding._asdict() for finding in examine()]
    answer({"findings": lines}) if as_json else print_table(lines)


@app.command()
def pipelines(as_json: Json = False) -> None:
    """List the recipes that `cmcr run` knows."""
    from cmcr.pipelines import load_pipelines

    loaded = load_pipelines()
    lines = [
        {
            "pipeline": f"{name} (default)" if name == loaded.default else name,
            "encoders": ", ".join(section.encoder for section in recipe.extract),
            "via": recipe.connect.via,
            "store": str(recipe.store),
            "what": recipe.description,
        }
        for name, recipe in loaded.pipelines.items()
    ]
    answer({"pipelines": lines}) if as_json else print_table(lines)


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print rows of equal kind as a table; a hash is cut to eight digits."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for line in lines for name in line))
    table = Table(box=None, pad_edge=False)
    for name in names:
        numbers = all(isinstance(line.get(name), int | None) for line in lines)
        table.add_column(name, justify="right" if numbers else "left")
    for line in lines:
        table.add_row(*(_cell(line.get(name)) for name in names))
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    text = str(value)
    return text[:8] if len(text) == 64 else text


def show(done: list[Any], as_json: bool) -> None:
    """The rows of finished evaluations, as JSON or as tables with where the pictures are."""
    from rich.console import Console

    from cmcr.evaluate import results_table

    rows = [row for evaluated in done for row in evaluated.rows]
    for evaluated in done:
        say(f"evaluate  {evaluated}")
    if as_json:
        answer({"results": rows})
    else:
        Console().print(results_table(rows))
