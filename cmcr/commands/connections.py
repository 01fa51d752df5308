"""Commands on a connection: `cmcr import-connection`, `project`."""

from pathlib import Path
from typing import Annotated

import typer

from cmcr.commands.options import Device, Index, Json, NoRecipe, Recipe, Replace, Store
from cmcr.commands.output import answer, say


def import_connection(
    file: Annotated[Path, typer.Argument(help="A projector checkpoint of C-MCR or Ex-MCR.")],
    out: Annotated[Path, typer.Option(help="Folder of the connection.")],
    spaces: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Space A and space B of the checkpoint, by your names.",
            show_default="clap, clip and ulip, for the authors' own files",
        ),
    ] = None,
    via: Annotated[
        str | None, typer.Option(help="The modality that they were connected through.")
    ] = None,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Make a published projector checkpoint a connection."""
    from cmcr.connect import import_connection
    from cmcr.embeddings import MODALITIES
    from cmcr.errors import UsageError, near

    if via is not None and via not in MODALITIES:
        raise UsageError(f"there is no modality {via!r}", cure=near(via, MODALITIES))
    named = None if spaces is None else spaces.split(",")
    record = import_connection(file, named, out, via=via, replace=replace).record
    first, second = (f"{space.name} ({space.dim})" for space in record.spaces)
    say(f"imported: {first} and {second} into {record.joint_dim} by {record.model}: {out}")
    if as_json:
        answer({"path": str(out), "connection": record.model_dump(mode="json")})


def project(
    connection: Annotated[
        str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
    ] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE/MODALITY[:DATASET]",
            help="What to project. Can be repeated.",
            show_default="all of both spaces",
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Its name.", show_default="the connection's")
    ] = None,
    index: Index = "Flat",
    store: Store = None,
    device: Device = "auto",
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Write embeddings in the joint space, as one more space of the store."""
    from cmcr.connect import load_connection, project_store
    from cmcr.devices import find_device
    from cmcr.ground import find_connection, find_key, ground_to_measure, recipes

    pipelines = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(pipelines, pipeline, store, connection, dataset or [])
    folder, place = find_connection(ground, connection), ground.store
    say(ground.line("project", folder.name))
    done = []
    for projected in project_store(
        place,
        load_connection(folder).to(find_device(device)),
        space=space or folder.resolve().name,
        datasets=[find_key(place, name) for name in dataset or []],
        index=None if index == "none" else index,
    ):
        say(str(projected))
        done.append(projected)
    if as_json:
        answer({"store": str(place), "datasets": [projected.as_dict() for projected in done]})
