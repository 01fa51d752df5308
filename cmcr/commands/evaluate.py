"""`cmcr evaluate retrieval` and `cmcr evaluate gap`."""

from functools import partial
from typing import Annotated

import typer

from cmcr.commands.options import Json, NoRecipe, Recipe, Store, Where
from cmcr.commands.output import say, show

Connection = Annotated[
    str | None, typer.Option(help="Its name or folder.", show_default="the recipe's")
]
Query = Annotated[
    str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What searches.")
]
Gallery = Annotated[
    str | None, typer.Option(metavar="SPACE/MODALITY[:DATASET]", help="What is searched.")
]


def retrieval(
    connection: Connection = None,
    query: Query = None,
    gallery: Gallery = None,
    query_where: Where = None,
    gallery_where: Where = None,
    index: Annotated[
        str | None,
        typer.Option(help="FAISS factory string: an index to measure beside the exact search."),
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(metavar="4G", help="Choose that index: so large at most.")
    ] = None,
    max_query_time: Annotated[
        str | None, typer.Option(metavar="10ms", help="What a query through it may take.")
    ] = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Search one modality in another, both ways, beside chance and the closed forms."""
    from cmcr.evaluate import evaluate_index, evaluate_retrieval, weak_spots
    from cmcr.ground import ground_to_measure, recipes
    from cmcr.searches import choose_index, choose_searches, evaluate_each, names

    choice = choose_index(index, max_memory, max_query_time)
    pipelines = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(pipelines, pipeline, store, connection, [query, gallery])
    searches = choose_searches(ground, connection, query, gallery)
    place = ground.store
    say(ground.line("evaluate", *names(searches)))
    where = (query_where or [], gallery_where or [])
    done = list(evaluate_each(evaluate_retrieval, searches, place, *where))
    if choice:
        measure_index = partial(evaluate_index, choice=choice)
        indexes = list(evaluate_each(measure_index, searches, place, *where))
    else:
        indexes = []
    show([*done, *indexes], as_json)
    if not as_json:
        print(weak_spots([row for evaluated in done for row in evaluated.rows]))


def gap(
    connection: Connection = None,
    query: Query = None,
    gallery: Gallery = None,
    query_where: Where = None,
    gallery_where: Where = None,
    store: Store = None,
    pipeline: Recipe = None,
    no_pipeline: NoRecipe = False,
    as_json: Json = False,
) -> None:
    """Distance, alignment and uniformity of two modalities, before and after connecting."""
    from cmcr.evaluate import evaluate_gap
    from cmcr.ground import ground_to_measure, recipes
    from cmcr.searches import choose_searches, evaluate_each, names

    pipelines = recipes(pipeline, no_pipeline)
    ground = ground_to_measure(pipelines, pipeline, store, connection, [query, gallery])
    searches = choose_searches(ground, connection, query, gallery)
    place = ground.store
    say(ground.line("evaluate", *names(searches)))
    where = (query_where or [], gallery_where or [])
    done = evaluate_each(evaluate_gap, searches, place, *where)
    show(list(done), as_json)
