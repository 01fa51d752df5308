"""`cmcr evaluate TASK`."""

from typing import Annotated

import typer

from cmcr.commands.options import Json, Recipe, Store, Where
from cmcr.commands.output import show


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
