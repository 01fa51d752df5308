"""`cmcr connect`, `migrate`, `import-connection` and `project`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from cmcr.cli.terminal.console import answer, print_table, say
from cmcr.cli.terminal.options import (
    Device,
    Hubness,
    Hubs,
    Index,
    Json,
    Names,
    NoRecipe,
    Recipe,
    Replace,
    Store,
    checked_modality,
)

_TOLD_APART = 2  # standard errors


def connect(
    via: Annotated[str | None, typer.Option(help="The modality that both spaces share.")] = None,
    spaces: Annotated[
        str | None, typer.Option(metavar="A,B", help="What to connect; more than two: a chain.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="cca, ex-cca, c-mcr, ex-mcr, linear, textme, procrustes, ridge, kernel, identity; "
            "auto takes what held-out pairs show to be best.",
            show_default="the recipe's, else auto",
        ),
    ] = None,
    train: Names = None,
    memory: Annotated[
        list[str] | None,
        typer.Option(metavar="DATASET|none", help="Of another modality. Can be repeated."),
    ] = None,
    pool: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPACE/MODALITY:DATASET",
            help="Bridge items of which nobody knows which is which. Of both spaces.",
        ),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="No pair is known: all are found in the pools.")
    ] = False,
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
    from cmcr.cli.recipes.stages import choose_connection, connect_spaces, given_flags

    given = given_flags(via, spaces, memory, method=method, train=train, pool=pool, seed=seed,
                        blind=blind or None)  # fmt: skip
    ground, usual = ground_to_connect(recipes(pipeline, no_pipeline), pipeline, given, store)
    fields, title = choose_connection(ground, usual, given, settings or [], name)
    speaks = os.environ.get("RANK", "0") == "0"  # torchrun starts several, and one speaks
    if speaks:
        say(ground.line("connect", title))
    connected = connect_spaces(
        fields,
        title,
        ground.store,
        out,
        device,
        tensorboard=tensorboard,
        replace=replace,
        say=say,
    )
    if not speaks:
        return
    say(str(connected))
    if connected.methods and fields.get("method", "auto") == "auto" and not as_json:
        _show_methods(connected.methods, connected.record.model)
    if as_json:
        answer({"connection": str(connected.path), "fresh": connected.fresh,
                "methods": connected.methods, "warnings": connected.warnings,
                "health": {str(key): vars(one) for key, one in connected.health.items()},
        })  # fmt: skip


def migrate(
    old: Annotated[str, typer.Option("--from", metavar="SPACE", help="It stays as it is.")],
    new: Annotated[str, typer.Option("--to", metavar="SPACE", help="The new model's.")],
    via: Annotated[str, typer.Option(help="The modality of the items that both embedded.")],
    method: Annotated[
        str,
        typer.Option(help="ex-cca, procrustes, ridge, kernel, the best of them, or ex-mcr."),
    ] = "auto",
    train: Names = None,
    memory: Names = None,
    name: Annotated[
        str | None, typer.Option(help="Of the connection.", show_default="TO-in-FROM")
    ] = None,
    seed: Annotated[int, typer.Option(help="What is held out.")] = 0,
    replace: Replace = False,
    store: Store = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Search an old model's index by a new model: map its queries, and say what that keeps."""
    from cmcr.cli.recipes.ground import ground_to_measure, recipes
    from cmcr.connect import migrate
    from cmcr.devices import find_device
    from cmcr.embeddings import check_store

    places = [f"{space}/{via}" for space in (old, new)]
    modality = checked_modality(via)
    place = ground_to_measure(recipes(None, False), None, store, None, places).store
    title = name or f"{new}-in-{old}"
    check_store(place)
    say(f"migrate   store {place}, connection {title}")
    done = migrate(
        place,
        old,
        new,
        modality,
        name=title,
        method=method,
        train=train or [],
        memory=memory or [],
        seed=seed,
        device=str(find_device(device)),
        replace=replace,
    )
    say(str(done))
    lines = [figure.as_dict() for figure in done.figures]
    if as_json:
        answer({"connection": str(done.connected.path), "fresh": done.connected.fresh,
                "method": done.method, "tried": done.tried, "held_out": done.held,
                "labelled": done.labelled, "figures": lines})  # fmt: skip
    else:
        print_table(lines)
        say(f"next: cmcr search QUERY --space {new} --in {old}/{via}:DATASET --store {place}")


def _show_methods(methods: Mapping[str, Mapping[str, float]], taken: str) -> None:
    """What `auto` looked at, the best first, with an arrow at what it took; a chain has several."""
    lines = []
    for name, scores in methods.items():
        late = scores["behind"]
        told = f"{abs(late):.1f} {'worse' if late > 0 else 'better'}"
        if abs(late) <= _TOLD_APART:
            told = "" if name == taken else "not told apart"
        shown = ("log_likelihood", "hit_rate@1", "mrr", "pairs")
        lines.append({"": "→" if name == taken else "", "method": name, "difference": told}
                     | {score: scores[score] for score in shown})  # fmt: skip
    print_table(lines)
    print(
        (f"→ {taken} is taken; " if taken in methods else "")
        + "difference: in the log-likelihood of held-out pairs, in standard errors, to cca or the "
        "closed form that is clearly better than it; within 2 the pairs tell nothing apart"
    )


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

    checked_modality(via)
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
    hubness: Hubness = Hubs.none,
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
        hubness=hubness.value,
    ):
        say(str(projected))
        done.append(projected)
    if as_json:
        answer({"store": str(place), "datasets": [projected.as_dict() for projected in done]})
