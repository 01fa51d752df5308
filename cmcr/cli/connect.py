"""`cmcr connect`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cmcr.cli.console import (
    Device,
    Index,
    Json,
    Names,
    NoRecipe,
    Recipe,
    Replace,
    Store,
    answer,
    print_table,
    say,
)
from cmcr.cli.recipes.ground import Ground
from cmcr.cli.recipes.pipelines import ConnectSection
from cmcr.errors import UsageError, near

if TYPE_CHECKING:
    from cmcr.connect import Chained, Connected
    from cmcr.embeddings import Key
    from cmcr.embeddings.verify import Health


def connect(
    via: Annotated[str | None, typer.Option(help="The modality that both spaces share.")] = None,
    spaces: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to connect; more than two: a chain.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="c-mcr, ex-mcr, linear, procrustes, ridge, identity; auto tries all."),
    ] = None,
    train: Names = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET|none", help="Of another modality. Can be repeated."),
    ] = None,
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
    replace: Replace = False,
    store: Store = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Curves to OUT/tensorboard too.")
    ] = False,
    device: Device = "auto",
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Train the projectors that connect spaces, on shards alone."""
    from cmcr.cli.recipes.ground import ground_to_connect, recipes

    given = given_flags(via, spaces, memory, method=method, train=train, seed=seed)
    ground, usual = ground_to_connect(recipes(pipeline, no_pipeline), pipeline, given, store)
    fields, title = choose_connection(ground, usual, given, settings or [], name)
    speaks = os.environ.get("RANK", "0") == "0"  # torchrun starts several, and one speaks
    if speaks:
        say(ground.line("connect", title))
    health: dict[Key, Health] = {}
    connected = connect_spaces(
        fields,
        title,
        ground.store,
        out,
        device,
        tensorboard=tensorboard,
        replace=replace,
        health=health,
    )
    if not speaks:
        return
    say(str(connected))
    if connected.methods and not as_json:
        print_table([{"method": name, **scores} for name, scores in connected.methods.items()])
        print("behind: standard errors behind the best; up to 2 the held-out pairs show nothing")
    if as_json:
        answer({"connection": str(connected.path), "fresh": connected.fresh,
                "methods": connected.methods,
                "health": {str(key): vars(found) for key, found in health.items()}})  # fmt: skip


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
    from cmcr.cli.recipes.ground import find_connection, find_key, ground_to_measure, recipes
    from cmcr.connect import load_connection, project_store
    from cmcr.devices import find_device

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


# connect


def given_flags(
    via: str | None, spaces: str | None, memory: Sequence[str] | None, **others: Any
) -> dict[str, Any]:
    """The flags of `cmcr connect` as fields of `ConnectConfig`, those that are given.

    `--memory none` is a memory of nothing. Raises UsageError for a modality that there is not.
    """
    from cmcr.embeddings import MODALITIES

    if via is not None and via not in MODALITIES:
        raise UsageError(f"there is no modality {via!r}", cure=near(via, MODALITIES))
    if memory and "none" in memory and len(memory) > 1:
        raise UsageError("--memory none goes with no other --memory", cure="give one of them")
    fields = others | {
        "via": via,
        "spaces": spaces and spaces.split(","),
        "memory": [] if memory == ["none"] else memory,
    }
    return {field: value for field, value in fields.items() if value is not None}


def choose_connection(
    ground: Ground,
    usual: ConnectSection | None,
    given: dict[str, Any],
    settings: Sequence[str],
    name: str | None,
) -> tuple[dict[str, Any], str]:
    """The fields of the config of `cmcr connect`, and the name of the connection.

    `usual` is the section of the recipe that flags in `given` and `settings` beat. Raises
    UsageError when they do not say what to connect.
    """
    from cmcr.connect import parse_settings
    from cmcr.embeddings import list_datasets

    section = usual.config if usual else {}
    fields = section | given | parse_settings(settings)
    if len(fields.get("spaces", ("", ""))) < 2:
        raise UsageError(
            f"{', '.join(fields['spaces'])} alone cannot be connected", cure="give --spaces A,B"
        )
    chain = len(fields.get("spaces", ())) > 2  # it finds its bridges itself
    needed = ("spaces",) if chain else ("spaces", "via", "train")
    missing = [f"--{field}" for field in needed if field not in fields]
    if missing:
        there = ", ".join(map(str, list_datasets(ground.store))) or "nothing"
        raise UsageError(
            f"nothing says what to connect: no {', no '.join(missing)}",
            where=ground.store,
            cure=f"give {' and '.join(missing)}, or --pipeline for a recipe that says it; the "
            f"store has: {there}",
        )
    title = name or (usual.name if usual else "-".join(fields["spaces"]))
    if name is None and (changed := _model_name(fields)) != _model_name(section):
        title = f"{title}-{changed}"
    return fields, title


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
    health: "dict[Key, Health] | None" = None,
) -> "Connected | Chained":
    """Train or solve the connection `name`, or the chain where there are more than two spaces.

    Another connection of that name is refused, unless `replace` it is. `health` is filled with that
    of each dataset, and embeddings that do not tell their rows apart are told at the terminal.
    """
    from cmcr.connect import connect, connect_chain, read_config
    from cmcr.devices import find_device

    told = {} if health is None else health

    def opened(measured: "Mapping[Key, Health]") -> None:
        for key, found in measured.items():
            if found.problem and key not in told:
                say(f"warning: {found.problem}")
        told.update(measured)

    place = str(find_device(device))
    if len(fields["spaces"]) > 2:
        return connect_chain(store, fields["spaces"], fields, name=name, out=out, device=place,
                             tensorboard=tensorboard, replace=replace, opened=opened)  # fmt: skip
    config = read_config(fields)
    return connect(store, config, name=name, out=out, device=place, tensorboard=tensorboard,
                   replace=replace, opened=opened)  # fmt: skip
