"""Commands on a store: `cmcr import`, `info`, `verify`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cmcr.commands.options import Index, Json, Precision
from cmcr.commands.output import answer, print_table, say
from cmcr.errors import CmcrError, VersionError


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


def info(store: Annotated[Path, typer.Argument(help="A store.")], as_json: Json = False) -> None:
    """List a store: spaces, modalities, datasets, rows, dimensions, encoders, connections."""
    from cmcr.embeddings import Key, describe_store

    datasets = describe_store(store)
    connections = sorted(path.parent for path in store.glob("connections/*/config.json"))
    lines = [_connection(folder) for folder in connections]
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


def _connection(folder: Path) -> dict[str, Any]:
    """The line of a connection; one that cannot be read has its `problem` there."""
    from cmcr.connect import load_connection

    try:
        record = load_connection(folder).record
    except CmcrError as error:
        return {"connection": folder.name, "problem": error.what}
    return {
        "connection": folder.name,
        "method": record.model,
        "via": record.via,
        "spaces": " + ".join(space.name for space in record.spaces),
        "pairs": record.pairs,
        "joint_dim": record.joint_dim,
    }


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
            say(f"{_state(verdict.problem)}  {verdict.key}  {verdict.problem}")
    for config in sorted(store.glob("connections/*/config.json")):
        try:
            load_connection(config.parent)
            say(f"sound    connection {config.parent.name}")
        except CmcrError as problem:
            problems.append(problem)
            say(f"{_state(problem)}  connection {config.parent.name}  {problem}")
    if as_json:
        answer({"problems": [vars(problem) for problem in problems]})
    if problems:
        sys.exit(1)


def _state(problem: CmcrError) -> str:
    if isinstance(problem, VersionError):
        return "newer  " if problem.newer else "older  "
    return "damaged"
