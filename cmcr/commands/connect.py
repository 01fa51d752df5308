"""`cmcr connect`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from cmcr.commands.options import Device, Json, Names, NoRecipe, Recipe, Replace, Store
from cmcr.commands.output import answer, print_table, say


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
    from cmcr.ground import ground_to_connect, recipes
    from cmcr.stages import choose_connection, connect_spaces, given_flags

    given = given_flags(via, spaces, memory, method=method, train=train, seed=seed)
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
    if connected.methods and not as_json:
        print_table([{"method": name, **scores} for name, scores in connected.methods.items()])
        print("behind: standard errors behind the best; up to 2 the held-out pairs show nothing")
    if as_json:
        answer({"connection": str(connected.path), "fresh": connected.fresh,
                "methods": connected.methods})  # fmt: skip
